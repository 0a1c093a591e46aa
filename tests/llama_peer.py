"""A real llama.cpp to compare with: node-llama-cpp, whose npm package brings it as a binary.

`npm install --ignore-scripts node-llama-cpp` in any folder; NODE_LLAMA_CPP names that folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("llama_peer.mjs")


@dataclass(frozen=True)
class Answers:
    """`ids`: of each text. `greedy`: what follows each prompt. `choices`: llama.cpp's first choice
    at each place of `forced`, fed after its prompt."""

    ids: list[list[int]]
    greedy: list[list[int]]
    choices: list[list[int]]


def missing() -> str:
    """Why llama.cpp cannot be asked here; empty if it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    folder = Path(os.environ.get("NODE_LLAMA_CPP", "."))
    if not (folder / "node_modules" / "node-llama-cpp").is_dir():
        return "NODE_LLAMA_CPP names no folder with node-llama-cpp installed"
    return ""


def ask(
    model: Path,
    lora: Path | None = None,
    *,
    texts: Sequence[str] = (),
    prompts: Sequence[Sequence[int]] = (),
    forced: Sequence[Sequence[int]] | None = None,
    count: int = 0,
) -> Answers:
    """Tokenize texts, answer prompts greedily with up to `count` tokens, follow forced answers."""
    question = {
        "model": str(model.resolve()),
        "lora": str(lora.resolve()) if lora else None,
        "texts": list(texts),
        "prompts": [[int(i) for i in ids] for ids in prompts],
        "forced": None if forced is None else [[int(i) for i in ids] for ids in forced],
        "count": count,
    }
    with tempfile.TemporaryDirectory() as temp:
        asked, answered = Path(temp, "question.json"), Path(temp, "answer.json")
        asked.write_text(json.dumps(question), encoding="utf-8")
        done = subprocess.run(
            ["node", str(SCRIPT), str(asked), str(answered)],
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        answer = json.loads(answered.read_text(encoding="utf-8"))
    return Answers(answer["ids"], answer["greedy"], answer["choices"])
