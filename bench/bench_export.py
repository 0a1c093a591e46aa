"""GGUF exports in a real llama.cpp: the same ids, the same greedy tokens?

NODE_LLAMA_CPP=FOLDER python bench/bench_export.py BASE ADAPTER [--into dequantized]

BASE is a base's name or a transformers folder, ADAPTER an adapter folder trained on it (in 4 bits
by default). For 20 chats: ids by llama.cpp against the tokenizer's, and two measures, over 16 and
64 tokens, for the merged model in q8_0 and for the adapter on the base's GGUF. Choices: llama.cpp's
first choice at each place of transformers' greedy answer, fed to it. Free: the tokens of its own
answer before the first that differs; all after it count as lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import llama_peer

from halfbyte.data.records import Message
from halfbyte.model import bases
from halfbyte.ship import export as ship
from halfbyte.ship.chats import chats
from halfbyte.ship.check import Agreement, Trial, check
from halfbyte.ship.companions import ChatForm, Companions
from halfbyte.ship.deltas import open_parts
from halfbyte.ship.gguf_write import Label
from halfbyte.ship.merge import MergedWeights
from halfbyte.ship.quantize import Quantized
from halfbyte.ship.weights import Slot, write_weights

LENGTHS = (16, 64)


def model_of(weights: MergedWeights, shipment: ship.Shipment) -> PreTrainedModel:
    """The summed weights in plain transformers, in float32."""
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        slots = {
            name: Slot(torch.float32, weights.shape(name), "model.safetensors")
            for name in weights.names()
        }
        write_weights(folder, slots, weights.read)
        shipment.companions.write(folder, torch.float32)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model: PreTrainedModel, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """`count` greedy tokens after each prompt, or fewer where the end mark comes."""
    made = []
    for ids in prompts:
        given = torch.tensor([list(ids)])
        out = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=count,
        )
        made.append(out[0, len(ids) :].tolist())
    return made


def report(name: str, wanted: list[list[int]], said: llama_peer.Answers) -> None:
    """Print both measures at each length."""
    for count in LENGTHS:
        rows = [row[:count] for row in wanted]
        total = sum(map(len, rows))
        equal = sum(
            one == two
            for row, choices in zip(rows, said.choices, strict=True)
            for one, two in zip(row, choices, strict=False)  # choices go on to the full length
        )
        own = [ids[: len(row)] for row, ids in zip(rows, said.greedy, strict=True)]
        free = Agreement.of(rows, own)
        print(f"{name}, {count} tokens: {equal / total:.1%} of {total} choices equal")
        print(f"{name}, {count} tokens, free: {free.line()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--into", choices=["dequantized", "original"], default="dequantized")
    parser.add_argument("--type", default="q8_0")
    given = parser.parse_args()
    if reason := llama_peer.missing():
        sys.exit(reason)
    folder = bases.resolve(given.base).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(messages: Sequence[Message]) -> list[int]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

    tried = chats(encode)
    texts = [tokenizer.decode(chat.ids) for chat in tried]
    prompts = [chat.ids for chat in tried]
    form = ChatForm(stop_ids=(tokenizer.eos_token_id,))
    shipment = ship.Shipment(Companions(folder, folder, form), Label("bench", "bench"))
    quantized = Quantized("nf4", True, torch.float32)
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp)
        merged = MergedWeights(folder, open_parts({given.adapter: 1.0}), given.into, quantized)
        start = time.perf_counter()
        exported = ship.export_gguf(merged, out / "model", shipment, given.type)
        print(f"{given.type}: {time.perf_counter() - start:.1f} s to write")
        print("ids by our reader:", check(exported, Trial(tried)).ids.line())
        wanted = greedy(model_of(merged, shipment), prompts, LENGTHS[-1])
        asked = {"texts": texts, "prompts": prompts, "forced": wanted, "count": LENGTHS[-1]}
        said = llama_peer.ask(out / "model" / ship.MODEL_GGUF, **asked)
        print("ids by llama.cpp: ", Agreement.of(prompts, said.ids).line())
        report("merged", wanted, said)
        base = MergedWeights(folder, (), given.into, quantized)
        ship.export_gguf(base, out / "base", shipment, given.type)
        ship.export_lora_gguf(given.adapter, out / "lora", shipment)
        files = (out / "base" / ship.MODEL_GGUF, out / "lora" / ship.ADAPTER_GGUF)
        report("base and adapter", wanted, llama_peer.ask(*files, **asked))


if __name__ == "__main__":
    main()
