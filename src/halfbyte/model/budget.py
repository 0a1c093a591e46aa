"""What a training takes of memory, from a model's shape alone: every term a formula, none a guess.

All sizes are bytes. The terms were counted in the code (what each function keeps for its backward
pass) and then compared with the peak of real processes: `bench/bench_plan.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

from halfbyte.config.settings import Method
from halfbyte.model.fast.head import chunk_rows
from halfbyte.model.fast.layout import BUNDLE, QUERIES
from halfbyte.model.fast.weights import SMALL, pieces
from halfbyte.model.shape import Shape

__all__ = ["Load", "Memory", "Way", "memory"]

# 4 bits and one constant a block of 64 weights: 8 bits and a share of its own constants where
# doubled (arXiv:2305.14314), else 32.
_DOUBLED: Final = (4 + 8 / 64 + 32 / (64 * 256)) / 8
_SINGLE: Final = (4 + 32 / 64) / 8
# Bytes of optimizer state a trained weight: two float32 moments, or two bytes and their constants.
_MOMENTS: Final = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1}
FLOAT: Final = 4
HALF: Final = 2
# Holes that glibc's allocator cannot use again where its caches of small blocks are on
# (`fast.alloc`): what every training leaves, and a share of what comes and goes in a step. Fitted
# to two steps of each of the six settings of bench/bench_plan.py; longer trainings take up to a
# sixth more (DECISIONS.md).
_HOLES: Final = 130_000_000
_SCATTERED: Final = 0.25


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is trained, as far as memory goes.

    `weights`, `compute`: bytes of an unquantized weight, and of an activation. `quantization`:
    nf4, fp4, int8 or None. `rank`: the adapter's (0 in full training). `dora`: its layers are
    PEFT's. `scatters`: freed memory is not all found again (`fast.alloc.finds_again`).
    """

    method: Method
    weights: int
    compute: int
    quantization: str | None = None
    double_quant: bool = True
    rank: int = 16
    dora: bool = False
    dropout: bool = False
    optimizer: str = "adamw"
    cuda: bool = False
    scatters: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """The largest micro-batch of a training, and the rest of its step.

    `tokens`: places computed at once. `targets`: places whose token is predicted. `longest`: the
    longest row. `parts`: micro-batches in a step.
    """

    tokens: int
    targets: int
    longest: int
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """What a training takes at its peak, by what it is taken for.

    `runtime`: interpreter and libraries (on CUDA: its context). `activations`: what the largest
    micro-batch keeps for its backward pass. `logits`: the vocabulary's scores, a chunk of them
    where the head allows it; `working`: what the widest operation takes beyond them, as they are
    gone when a layer's backward pass begins. `scattered`: freed memory the allocator cannot use.
    """

    runtime: int
    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int
    scattered: int

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(getattr(self, one.name) for one in fields(self))


def trained(shape: Shape, way: Way) -> int:
    """How many weights are trained."""
    if way.method == "full":
        return shape.parameters
    magnitudes = sum(one.outputs for one in shape.linear if one.adapted) if way.dora else 0
    return shape.adapter(way.rank) + magnitudes


def base_bytes(shape: Shape, way: Way) -> int:
    """The base's weights as they are held."""
    each = {"nf4": _SINGLE, "fp4": _SINGLE, "int8": 1.0}.get(
        way.quantization or "", float(way.weights)
    )
    linear = round(shape.linear_weights * each)
    if way.double_quant and way.quantization in ("nf4", "fp4"):
        # the constants of small layers are made whole (`fast.weights.unfold`)
        large = sum(one.weights for one in shape.linear if one.weights >= SMALL)
        linear -= round(large * (_SINGLE - _DOUBLED))
    # a quantized base that computes in float32 keeps embeddings and head as its files have them
    as_stored = way.quantization is not None and shape.halves and not way.cuda
    ends = min(HALF, way.weights) if as_stored else way.weights
    return linear + shape.ends * ends + (shape.others - shape.ends) * way.weights


def memory(shape: Shape, way: Way, load: Load, recomputed: int = 0, runtime: int = 0) -> Memory:
    """The peak of a training whose first `recomputed` layers recompute their activations.

    `runtime` is what the process holds before the model is loaded.
    """
    recomputed = min(recomputed, shape.blocks)
    count, logits = trained(shape, way), _logits(shape, way, load)
    whole = Memory(
        runtime=runtime,
        base=base_bytes(shape, way),
        adapter=0 if way.method == "full" else FLOAT * count,
        gradients=FLOAT * count,
        optimizer=round(_MOMENTS[way.optimizer] * count),
        activations=_activations(shape, way, load, recomputed),
        logits=logits,
        working=max(0, _working(shape, way, load, recomputed) - logits),
        scattered=0,
    )
    return replace(whole, scattered=_scattered(whole, way))


def _kept(shape: Shape, way: Way) -> int:
    """Activations that one layer keeps of a token.

    Two residual inputs, query, key, value and the attention's output, gate and up, and the narrow
    products. The inputs of our own layers are made again (`fast/fused.py`); in full training, and
    where layers, norms or MLPs are not ours, they are kept too. DoRA in PEFT's layers keeps what
    the base gives and what the factors give, and what comes and goes between them leaves holes of
    about as much again as one of these (measured); with dropout an input of each layer's own.
    """
    attention = 2 * shape.heads * shape.head_width + 2 * shape.groups * shape.head_width
    count = 2 * shape.width + attention + 2 * shape.inner
    if way.method == "full" or way.dora or not shape.lean:
        count += 2 * shape.width + shape.inner
    if way.method != "full":
        adapted, active = [one for one in shape.linear if one.adapted], _active(shape)
        count += round(way.rank * len(adapted) / active)
        if way.dora:
            own = sum(3 * one.outputs + one.inputs * way.dropout for one in adapted)
            count += round(own / active)
    if shape.route != "segments":
        count += shape.heads * shape.head_width  # the kernel's own output
    return count


def _active(shape: Shape) -> int:
    """Layers that keep anything: those from the lowest adapter on."""
    return max(1, shape.layers - shape.idle)


def _activations(shape: Shape, way: Way, load: Load, recomputed: int) -> int:
    """What is kept of the largest micro-batch: whole layers, and the inputs of recomputed ones."""
    layer = _kept(shape, way)
    recomputed = max(0, recomputed - shape.idle)
    ends = 3 * shape.width * load.tokens  # embeddings, the last norm's input and output
    rest = (_active(shape) - recomputed) * layer + recomputed * shape.width
    # while a recomputed layer is in its backward pass, the whole ones are gone
    again = recomputed * shape.width + layer if recomputed else 0
    mask = load.tokens**2 if shape.route == "mask" else 0
    if way.dora and way.dropout:  # PEFT multiplies what it dropped by dense weights, and keeps them
        ends += sum(one.weights for one in shape.linear if one.adapted)
    found = max(rest, again) * load.tokens + ends + mask
    return way.compute * found + way.compute * 2 * shape.width * load.targets


def _logits(shape: Shape, way: Way, load: Load) -> int:
    """A chunk of scores in the type of the products (its softmax in float32 takes a few rows at a
    time); in full training also the gradient of the output weights, and the product that is added
    to it. Where the model computes them all at once, three times all of them in float32: in the
    backward pass their logarithms, and the gradients by these and by the scores."""
    if shape.chunked:
        rows = chunk_rows(load.targets, way.compute * shape.vocabulary)
        found = rows * shape.vocabulary * way.compute
    else:
        found = 3 * load.targets * shape.vocabulary * FLOAT
    if way.method == "full":
        found += 2 * FLOAT * shape.vocabulary * shape.width
    return found


def _working(shape: Shape, way: Way, load: Load, recomputed: int) -> int:
    """The widest moment of a layer's backward pass: the MLP's gate, up, their gradients, and
    scores of attention for one bundle of queries; and dense weights where they are held
    quantized."""
    mlp = 6 * shape.inner * load.tokens
    piece = min(QUERIES, load.longest) * load.longest
    # scores, probabilities and the gradients by both
    scores = 4 * shape.heads * max(piece, min(BUNDLE, load.tokens * load.longest))
    if shape.route == "mask":
        scores = 2 * shape.heads * load.tokens**2 if not way.cuda else 0
    again = 2 * shape.inner * load.tokens if recomputed else 0
    return way.compute * (max(mlp, scores) + again + _dense(shape, way))


def _dense(shape: Shape, way: Way) -> int:
    """Quantized weights that are dense at once: the largest layer's; of 4 bits a slab of it, or, on
    a CPU, the small ones of one decoder layer (`fast.blocks`)."""
    if way.dora:  # the base's, the factors' product, their sum, and it once more for the norm
        return 4 * shape.widest
    if way.quantization not in ("nf4", "fp4"):
        return shape.widest if way.quantization else 0
    small = sum(one.weights for one in shape.linear if one.weights < SMALL)
    together = 0 if way.cuda else small // max(1, shape.blocks)
    return max(shape.widest // pieces(way.compute * shape.widest), together)


def _scattered(whole: Memory, way: Way) -> int:
    """Holes between what is kept, where the allocator leaves any."""
    if not way.scatters:
        return 0
    return _HOLES + round(_SCATTERED * (whole.activations + whole.logits + whole.working))
