"""Writes tutor.jsonl beside this package, or to the path given: always the same bytes."""

from __future__ import annotations

import sys
from pathlib import Path

from halfbyte.data.builtin.make.tutor import tutor_lines

target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "tutor.jsonl"
target.write_text(tutor_lines(), encoding="utf-8", newline="\n")
