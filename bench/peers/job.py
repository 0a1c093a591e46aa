"""What the parent asks of a peer's script, and what comes back: plain JSON, no dependencies."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One training. `rows`: a JSONL file of {"messages": [...]}, prompt and answer in each.

    `batch` rows are computed at once by the peers, `batch * accumulate` make a step. `tokens` are
    the real tokens of all rows as halfbyte counts them, so that everybody's rate has one numerator.
    """

    base: str
    rows: str
    held_out: str
    output: str
    variant: str
    count: int
    tokens: int
    best_dtype: str = "float32"
    batch: int = 4
    accumulate: int = 4
    rate: float = 2e-4
    rank: int = 16
    alpha: int = 32
    max_length: int = 512
    seed: int = 42

    @property
    def packed_accumulate(self) -> int:
        """Sequences of `max_length` that hold about as many tokens as a step's rows."""
        step = self.tokens / self.count * self.batch * self.accumulate
        return max(1, round(step / self.max_length))

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


def read_job() -> Job:
    """The job named by the first argument."""
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def read_rows(path: str) -> list[dict[str, list[dict[str, str]]]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def answer(**figures: object) -> None:
    """One line of JSON, the last of the output: `seconds`, `cpu` (seconds), `steps`, `adapter` …"""
    print(json.dumps(figures), flush=True)


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}
