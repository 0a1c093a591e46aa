"""The public Python API and the composition root: hands each layer what it needs of another."""

from halfbyte.api.chatting import Chat
from halfbyte.api.comparing import compare_run, compare_runs, require
from halfbyte.api.evaluating import Asked, evaluate_run
from halfbyte.api.evidence import Compared, report_run
from halfbyte.api.generating import Question, answer, demo_questions, sampling, with_template
from halfbyte.api.opening import Opened, find_run, open_any, open_base, open_run, run_config
from halfbyte.api.shipping import Exporting, Merging, export, merge
from halfbyte.api.training import Summary, Training, prepare_resume, prepare_training

__all__ = [
    "Asked",
    "Chat",
    "Compared",
    "Exporting",
    "Merging",
    "Opened",
    "Question",
    "Summary",
    "Training",
    "answer",
    "compare_run",
    "compare_runs",
    "demo_questions",
    "evaluate_run",
    "export",
    "find_run",
    "merge",
    "open_any",
    "open_base",
    "open_run",
    "prepare_resume",
    "prepare_training",
    "report_run",
    "require",
    "run_config",
    "sampling",
    "with_template",
]
