"""Training: a loop that yields events, exact checkpoints, and the consumers of events."""

from halfbyte.train.checkpoint import (
    Found,
    Saver,
    fault,
    load_weights,
    newest_verified,
    resume,
    set_aside,
)
from halfbyte.train.console import ConsoleProgress
from halfbyte.train.events import (
    Dropped,
    Evaluated,
    Event,
    Finished,
    Resumed,
    Saved,
    Shrunk,
    Skipped,
    Started,
    Stepped,
    Stopped,
    to_record,
)
from halfbyte.train.held_out import held_out_loss
from halfbyte.train.loop import Hooks, fit
from halfbyte.train.observers import JsonLines, Observer, TensorBoard, observe
from halfbyte.train.optimizers import OptimizerSettings, build_optimizer
from halfbyte.train.plot import Losses, LossPlot, draw_losses
from halfbyte.train.room import (
    checkpoint_bytes,
    disk_bytes,
    free_memory,
    require_disk,
    require_memory,
)
from halfbyte.train.schedules import Schedule
from halfbyte.train.signals import Stop
from halfbyte.train.state import (
    Progress,
    Source,
    State,
    Update,
    make_accelerator,
    prepare_state,
)

__all__ = [
    "ConsoleProgress",
    "Dropped",
    "Evaluated",
    "Event",
    "Finished",
    "Found",
    "Hooks",
    "JsonLines",
    "LossPlot",
    "Losses",
    "Observer",
    "OptimizerSettings",
    "Progress",
    "Resumed",
    "Saved",
    "Saver",
    "Schedule",
    "Shrunk",
    "Skipped",
    "Source",
    "Started",
    "State",
    "Stepped",
    "Stop",
    "Stopped",
    "TensorBoard",
    "Update",
    "build_optimizer",
    "checkpoint_bytes",
    "disk_bytes",
    "draw_losses",
    "fault",
    "fit",
    "free_memory",
    "held_out_loss",
    "load_weights",
    "make_accelerator",
    "newest_verified",
    "observe",
    "prepare_state",
    "require_disk",
    "require_memory",
    "resume",
    "set_aside",
    "to_record",
]
