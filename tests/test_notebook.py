"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_base

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "inference.ipynb"


def cells() -> list[dict[str, Any]]:
    """Its code cells, in order."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_every_cell_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny base in place of the parameters: two adapters are trained, the base is held in
    4 bits, and base and adapters answer in turn."""
    monkeypatch.chdir(tmp_path)
    given = {
        "BASE": str(tiny_base(tmp_path / "base", "llama")),
        "RUNS": str(tmp_path / "runs"),
        "STEPS": 2,
        "NEW_TOKENS": 4,
    }
    space: dict[str, Any] = {}
    for cell in cells():
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(given) <= set(space)
            space |= given
    printed = capsys.readouterr().out
    assert space["names"] == ["tutor", "hinglish"]
    assert "tutor: step 2, held-out loss" in printed
    assert "million weights" in printed
    for who in ("base", "tutor", "hinglish"):
        assert printed.count(f"[{who}]") >= 2
    assert "tokens/s" in printed


def test_it_was_saved_with_what_it_printed() -> None:
    """A reader sees answers without running anything, and no cell failed."""
    outputs = [cell["outputs"] for cell in cells() if "print(" in "".join(cell["source"])]
    assert all(outputs)
    assert not any(one["output_type"] == "error" for many in outputs for one in many)
