"""Writing a report: four files from one view, each whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from halfbyte.evaluate.report.page import page
from halfbyte.evaluate.report.plain import lm_eval_results, markdown, side_by_side
from halfbyte.evaluate.report.view import ReportInput, view_of
from halfbyte.run.files import write_atomic

PAGE: Final = "report.html"
MARKDOWN: Final = "report.md"
RESULTS: Final = "results.json"
ANSWERS: Final = "results.txt"


def write_report(folder: Path, given: ReportInput) -> list[Path]:
    """Write `report.html`, `report.md`, `results.json` and `results.txt` into `folder`; returns
    their paths, the page first."""
    view = view_of(given)
    results = json.dumps(lm_eval_results(given), indent=1, ensure_ascii=False, allow_nan=False)
    texts = {
        PAGE: page(given, view),
        MARKDOWN: markdown(given, view),
        RESULTS: results + "\n",
        ANSWERS: side_by_side(given),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text)
    return [folder / name for name in texts]
