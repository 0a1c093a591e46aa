"""The run folder: the only layer that knows file names on disk, and how to write them safely."""

from halfbyte.run.files import (
    atomic_folder,
    folder_bytes,
    remove_folder,
    require_space,
    sha256_of,
    write_atomic,
)
from halfbyte.run.folder import LATEST, RunFolder
from halfbyte.run.lock import Holder
from halfbyte.run.metrics import MetricsLog, read_metrics, rewind
from halfbyte.run.receipt import Difference, Receipt, Resumption, package_versions
from halfbyte.run.summary import RunDetails, RunSummary, describe, summarize

__all__ = [
    "LATEST",
    "Difference",
    "Holder",
    "MetricsLog",
    "Receipt",
    "Resumption",
    "RunDetails",
    "RunFolder",
    "RunSummary",
    "atomic_folder",
    "describe",
    "folder_bytes",
    "package_versions",
    "read_metrics",
    "remove_folder",
    "require_space",
    "rewind",
    "sha256_of",
    "summarize",
    "write_atomic",
]
