"""Data: from files to encoded rows on disk, and from those to the batches of a step."""

from halfbyte.data.encoded import EncodedSet
from halfbyte.data.example_json import dump_example, load_example
from halfbyte.data.prepare import Prepared, PreparedRows
from halfbyte.data.records import Batch, Encoded, Example, Message, Segment
from halfbyte.data.report import Report
from halfbyte.data.templates import Template

__all__ = [
    "Batch",
    "Encoded",
    "EncodedSet",
    "Example",
    "Message",
    "Prepared",
    "PreparedRows",
    "Report",
    "Segment",
    "Template",
    "dump_example",
    "load_example",
]
