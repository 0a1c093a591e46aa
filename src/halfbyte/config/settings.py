"""Every setting, with its default, its range and the source of the default.

The settings are frozen: what is derived from them is a property, never an assignment. Help texts,
the JSON schema and the docs are made from the descriptions here.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "MB": 10**6, "GB": 10**9}
Method = Literal["full", "lora", "qlora"]


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("may not be empty")
    return value


Text = Annotated[str, AfterValidator(_not_blank)]


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MB|GB|MiB|GiB)")


def _size(value: str) -> str:
    found = _SIZE.fullmatch(value)
    if value != "auto" and (found is None or not float(found[1])):
        raise ValueError("a size reads 12GB or 500MB (MB, GB, MiB or GiB), or auto")
    return value


def _spoken(value: object) -> object:
    """YAML 1.1 reads `on` and `off` as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_spoken)]


class Settings(BaseModel):
    """The common behaviour of every group: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Settings):
    """The base, and how its weights are held."""

    base: Text = Field(
        "smollm2-135m",
        description="A catalogue name, a hub id, a local folder or a .gguf file.",
    )
    revision: str | None = Field(
        None, description="A hub revision; the commit it stands for is pinned in the receipt."
    )
    compute: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="The type of matrix products. `auto`: bf16 where the device has instructions "
        "for it, else fp16 on a GPU and fp32 on a CPU (bf16 is emulated there, 8 times slower "
        "than fp32 on AVX2, measured). `full` computes in fp32, the type of its weights.",
    )
    quantization: Literal["nf4", "fp4", "int8"] = Field(
        "nf4",
        description="How `qlora` holds the frozen base (QLoRA, arXiv:2305.14314: NF4).",
    )
    double_quant: bool = Field(
        True,
        description="Quantize the quantization constants too: 0.37 bits a weight less "
        "(QLoRA, arXiv:2305.14314).",
    )


class LoraSettings(Settings):
    """The adapter (LoRA, arXiv:2106.09685)."""

    rank: int = Field(16, ge=1, le=1024, description="Width of the two low-rank factors.")
    alpha: float = Field(
        32.0, gt=0, description="Scale: alpha / rank, or alpha / sqrt(rank) with rslora."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the adapter's input (QLoRA for 7B: 0.1)."
    )
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = Field(
        "all-linear",
        description="Which linear layers get an adapter: every one but the head (QLoRA, section "
        "4), those of attention, or a list of module names.",
    )
    rslora: bool = Field(
        False, description="Rank-stabilized scale, alpha / sqrt(rank) (arXiv:2312.03732)."
    )
    dora: bool = Field(False, description="Weight-decomposed adapters (DoRA, arXiv:2402.09353).")
    plus_ratio: float | None = Field(
        None,
        ge=1,
        description="LoRA+: learning rate of B over that of A (arXiv:2402.12354 advises 16).",
    )


class DataSettings(Settings):
    """Rows: where they come from and how they become tokens."""

    train: Text = Field(
        "builtin:tutor",
        description="A JSON, JSONL, CSV or Parquet file, a folder with train/valid/test files, "
        "a hub data set id, or `builtin:NAME`.",
    )
    valid: str | None = Field(
        None, description="Held-out rows; without it they are split off `train`."
    )
    valid_size: float = Field(
        0.1,
        gt=0,
        description="What is split off: a fraction below 1, else a number of rows.",
    )
    format: Literal["auto", "instruction", "completion", "messages", "sharegpt", "text"] = Field(
        "auto", description="How to read a row; `auto` recognises it and says so."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Which column plays which part, e.g. {instruction: question, response: text}.",
    )
    template: Text = Field(
        "auto",
        description="How messages become text: `tokenizer` (its chat template), `instruction`, "
        "`alpaca`, `plain` or the path of a Jinja file. `auto`: `tokenizer` where the tokenizer "
        "has a chat template, else `instruction`.",
    )
    system: str | None = Field(
        None, description="A system message for rows that have none of their own."
    )
    max_length: int = Field(512, ge=8, le=1_048_576, description="Longest row, in tokens.")
    too_long: Literal["drop", "cut_prompt", "fail"] = Field(
        "drop",
        description="What to do with a longer row: leave it out, cut its prompt on the left, or "
        "stop. Answers and their end marks are never cut.",
    )
    train_on: Literal["answers", "all"] = Field(
        "answers", description="Which tokens are trained: those of the answers, or every one."
    )
    leakage: Literal["report", "drop", "fail"] = Field(
        "report",
        description="What to do with training rows that stand, exactly or nearly, in the held-out "
        "rows too.",
    )
    skip_bad: bool = Field(
        False, description="Leave bad rows out (they are written to a file) instead of stopping."
    )
    limit: int | None = Field(None, ge=1, description="Read only so many training rows.")


class TrainSettings(Settings):
    """The loop."""

    epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many steps at the latest.")
    batch_size: int = Field(
        16, ge=1, description="Rows in a step (QLoRA for 7B: 16), over all processes."
    )
    micro_batch: int | Literal["auto"] = Field(
        "auto",
        description="Rows computed at once at most; a step accumulates as many micro-batches as "
        "it needs. `auto` lets the memory limit decide.",
    )
    micro_tokens: int | Literal["auto"] = Field(
        "auto", description="Tokens computed at once at most: the packing budget."
    )
    pack: bool = Field(
        True, description="Several rows in one sequence, each seeing only itself: no padding."
    )
    share_prefixes: bool = Field(
        True, description="Compute the common beginning of a step's rows once (exact)."
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak rate. Default by method: 2e-4 for lora and qlora (QLoRA, table 9), "
        "2e-5 for full training.",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the rate falls after the warm-up."
    )
    warmup: float = Field(
        0.03, ge=0, description="Warm-up: a fraction of the steps below 1, else a number of steps."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="torch's AdamW, or bitsandbytes' 8-bit ones (CUDA only)."
    )
    beta2: float = Field(0.999, gt=0, lt=1, description="Adam's second decay (QLoRA: 0.999).")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients are scaled down to this norm (QLoRA: 0.3)."
    )
    checkpointing: Switch = Field(
        "auto",
        description="Recompute activations in the backward pass; `auto`: where memory is short.",
    )
    memory_limit: Annotated[str, AfterValidator(_size)] = Field(
        "auto",
        description="What the training may take: `12GB`, or `auto` for what is free on the device.",
    )
    eval_every: int | Literal["epoch"] = Field(
        "epoch", description="Steps between evaluations on the held-out rows."
    )
    save_every: int | Literal["epoch"] = Field("epoch", description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Newest checkpoints that stay on disk, beside the best.")
    patience: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without a better held-out loss."
    )
    keep_best: bool = Field(
        True, description="The run's model is the best on held-out rows (else the last)."
    )
    seed: int = Field(42, ge=0, le=2**32 - 1, description="Of every random choice.")
    threads: int | None = Field(None, ge=1, description="CPU threads (default: the cores).")
    tensorboard: bool = Field(True, description="Write TensorBoard events into the run folder.")


class EvalSettings(Settings):
    """Scoring base and tuned on held-out rows."""

    rows: int = Field(
        100, ge=0, description="Held-out rows that are answered and scored (0: only likelihood)."
    )
    max_new_tokens: int = Field(256, ge=1, le=32768, description="Longest answer, in tokens.")
    scores: tuple[str, ...] = Field(
        (),
        description="Your own scores: `file.py:function`, called as "
        "function(answer, reference, row) -> float.",
    )
    retention: bool = Field(
        True, description="Also score general rows the training did not touch: forgetting shows."
    )
    judge: str | None = Field(
        None, description="URL of an OpenAI-compatible endpoint for pairwise judging (off)."
    )
    judge_model: str | None = Field(None, description="The model's name at the judge's endpoint.")


class Config(Settings):
    """A whole run. A recipe names only what differs from these defaults."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="The run's name (default: base, method and time).",
    )
    runs: Text = Field("runs", description="The folder that holds the run folders.")
    method: Method = Field("qlora", description="full, lora or qlora.")
    model: ModelSettings = Field(default_factory=ModelSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    eval: EvalSettings = Field(default_factory=EvalSettings)

    @property
    def memory_limit(self) -> int | None:
        """`train.memory_limit` in bytes; None for `auto`."""
        text = self.train.memory_limit
        if text == "auto":
            return None
        found = _SIZE.fullmatch(text)
        assert found is not None
        return int(float(found[1]) * _UNITS[found[2]])

    @property
    def learning_rate(self) -> float:
        """The peak rate: as set, or the method's default."""
        if self.train.learning_rate is not None:
            return self.train.learning_rate
        return 2e-5 if self.method == "full" else 2e-4
