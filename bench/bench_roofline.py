"""How far a step is from its bare matrix products, on dense rows (nothing shared, all trained).

    python bench/bench_roofline.py --rows 4 --length 256
    python bench/bench_roofline.py --rows 16 --at-once 4096 --without-plain

In one process, in turn: halfbyte's step, the products alone that such a step cannot do without,
and the step of plain transformers and PEFT (no checkpointing, no dropout) on the same rows. All in
the type this machine computes in. Prints medians, minima and ratios, and the peak memory of
halfbyte's first step, before there is anything else in the process.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch

from halfbyte.model import bases
from halfbyte.model.compute import choose
from machine import begin_as_train, machine_words
from steps import BY_CPU, clock, dense_rows, make_ready, set_threads


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--at-once", type=int, help="tokens computed at once (default: all)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--without-plain", action="store_true", help="leave transformers out")
    return parser.parse_args()


class Products:
    """The matrix products of one step, on tensors that are there already.

    A linear layer: forward, and the gradient by its input (but for the first layer's projections
    of embeddings, which need none). An adapter: two forward, four backward. The head: forward and
    the gradient by its input. Attention: two forward, four backward, over half of the square, as
    causality leaves it. Nothing computed a second time is counted.
    """

    def __init__(self, config: Any, rows: int, length: int, rank: int, dtype: torch.dtype) -> None:
        self._made: dict[tuple[int, ...], torch.Tensor] = {}
        self._dtype = dtype
        tokens, wide, inner = rows * length, config.hidden_size, config.intermediate_size
        head_dim = getattr(config, "head_dim", None) or wide // config.num_attention_heads
        query = config.num_attention_heads * head_dim
        key = config.num_key_value_heads * head_dim
        entry = [(wide, query), (wide, key), (wide, key)]
        rest = [(query, wide), (wide, inner), (wide, inner), (inner, wide)]
        self._calls: list[tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor]] = []
        self.flops = 0
        for layer in range(config.num_hidden_layers):
            for inputs, outputs in entry + rest:
                below = layer > 0 or (inputs, outputs) not in entry
                self._linear(tokens, inputs, outputs, rank, below)
            self._attention(rows, length, config.num_attention_heads, head_dim)
        self._add(torch.mm, (tokens, wide), (wide, config.vocab_size))
        self._add(torch.mm, (tokens, config.vocab_size), (config.vocab_size, wide))

    def _linear(self, tokens: int, inputs: int, outputs: int, rank: int, below: bool) -> None:
        self._add(torch.mm, (tokens, inputs), (inputs, outputs))
        self._add(torch.mm, (tokens, inputs), (inputs, rank))
        self._add(torch.mm, (tokens, rank), (rank, outputs))
        self._add(torch.mm, (tokens, outputs), (outputs, rank))
        self._add(torch.mm, (outputs, tokens), (tokens, rank))
        self._add(torch.mm, (rank, tokens), (tokens, inputs))
        if below:
            self._add(torch.mm, (tokens, outputs), (outputs, inputs))
            self._add(torch.mm, (tokens, rank), (rank, inputs))

    def _attention(self, rows: int, length: int, heads: int, width: int) -> None:
        some, half = rows * heads, (length + 1) // 2
        for _ in range(3):  # scores, and the gradients by probabilities and by keys or queries
            self._add(torch.bmm, (some, half, width), (some, width, length))
            self._add(torch.bmm, (some, half, length), (some, length, width))

    def _add(self, call: Any, left: tuple[int, ...], right: tuple[int, ...]) -> None:
        self._calls.append((call, self._tensor(left), self._tensor(right)))
        batch = left[0] if len(left) == 3 else 1
        self.flops += 2 * batch * left[-2] * left[-1] * right[-1]

    def _tensor(self, shape: tuple[int, ...]) -> torch.Tensor:
        if shape not in self._made:
            self._made[shape] = torch.randn(shape, dtype=self._dtype)
        return self._made[shape]

    def __call__(self) -> float:
        """Seconds for all of them."""
        began = clock()
        for call, left, right in self._calls:
            call(left, right)
        return clock() - began


def plain_step(base: str, given: argparse.Namespace, dtype: torch.dtype) -> Callable[[], float]:
    """The same step with transformers, bitsandbytes and PEFT as they come."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    recipe = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=recipe, dtype=dtype)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=given.rank, lora_alpha=32, target_modules="all-linear"
    )
    model = get_peft_model(model.requires_grad_(False), config).train()
    rows = dense_rows(given.rows, given.length, model.config.vocab_size)
    ids = torch.stack([torch.from_numpy(row.ids).long() for row in rows])
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, 2e-4, fused=True)

    def step() -> float:
        began = clock()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return clock() - began

    return step


def main() -> None:
    given = arguments()
    begin_as_train()
    threads = set_threads(given.threads)
    dtype = choose("auto", "cpu").dtype
    words = ["method=qlora", f"model.base={given.base}", f"lora.rank={given.rank}"]
    tokens = given.rows * given.length
    at_once = min(given.at_once or tokens, tokens)
    ready = make_ready(words, given.rows, given.length, at_once)
    ready.step()
    peak = ready.memory
    config = ready.model.config.get_text_config()
    products = Products(config, given.rows, given.length, given.rank, dtype)
    others: dict[str, Callable[[], float]] = {"bare products": products}
    if not given.without_plain:
        folder = str(bases.resolve(given.base).folder)
        others["transformers + PEFT"] = plain_step(folder, given, dtype)
    for call in others.values():
        call()  # the first one makes the optimizer's state and fills the caches
    kinds = {"halfbyte": ready.step, **others}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(given.repeats):
        for name, call in kinds.items():
            times[name].append(call())
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine_words(threads)}")
    shape = f"{given.rows} × {given.length} tokens, {at_once:,} at once"
    print(f"{given.base}, NF4, rank {given.rank}, {shape}, {dtype}")
    print("in processor seconds\n" if BY_CPU else "in seconds on the clock\n")
    print_table(times, tokens, products.flops)
    print(f"halfbyte's first step: peak RSS {peak / 1e6:,.0f} MB")


def print_table(times: dict[str, list[float]], tokens: int, flops: int) -> None:
    bare = statistics.median(times["bare products"])
    least = min(times["bare products"])
    print("| | seconds, median | least | tokens/s | × bare products, medians | of the least |")
    print("|---|---|---|---|---|---|")
    for name, found in times.items():
        middle, best = statistics.median(found), min(found)
        print(
            f"| {name} | {middle:.3f} | {best:.3f} | {tokens / middle:,.0f} "
            f"| {middle / bare:.2f} | {best / least:.2f} |"
        )
    print(f"\n{flops / 1e9:,.0f} GFLOP in the products, {flops / bare / 1e9:,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
