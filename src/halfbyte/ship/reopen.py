"""What was written is opened again: plain transformers, float32, and nothing on the terminal."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def reopen(folder: Path, **more: Any) -> PreTrainedModel:
    """A folder's model in float32, ready to answer; `more` goes to transformers.

    Its bars are not shown: transformers' own can be switched off, but those of its GGUF reader
    are tqdm's and know no switch. Faults are raised, not printed.
    """
    with redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, **more
        )
    assert isinstance(model, PreTrainedModel)
    return model.eval()
