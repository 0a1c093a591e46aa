"""Tiny bases with tokenizers of the two kinds GGUF knows, and adapters with weights that matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from halfbyte.model.pretokenizers import PRETOKENIZERS
from tests.tiny import CHATML, SPECIAL, tiny_model

CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "There are 12345 ways to say hello; hello there, hello world, hello again!",
    "Numbers like 3.14159 and 2024 stand in lists:\n\n1. one\n2. two\n  - three",
    "naïve café — Привет, мир. def f(x):\n\treturn x ** 2  # comment",
)
GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == "
    "'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def bpe_tokenizer(rule: str = "smollm") -> PreTrainedTokenizerFast:
    """Byte-level BPE with some merges, cut by a rule llama.cpp knows; ChatML."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = PRETOKENIZERS[rule]
    if rule == "qwen2":
        core.normalizer = normalizers.NFC()  # as Qwen's own
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=list(SPECIAL)
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[2],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def spm_tokenizer(prefix: bool = False) -> PreTrainedTokenizerFast:
    """Sentencepiece-like BPE with byte pieces, as Gemma's; with `prefix` a space goes first, as in
    Llama 2's and Mistral's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=180, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    state = json.loads(trained.to_str())["model"]
    learnt = sorted(state["vocab"], key=state["vocab"].get)
    vocab = {piece: i for i, piece in enumerate([*pieces, *learnt])}
    core = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[tuple(merge) for merge in state["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [normalizers.Replace(" ", "▁")]
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if prefix else steps)
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*ends, decoders.Strip(" ", 1, 0)] if prefix else ends)
    core.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = GEMMA_TURNS
    return tokenizer


def base(
    folder: Path, arch: str = "llama", tokenizer: PreTrainedTokenizerFast | None = None, **more: Any
) -> Path:
    """A transformers folder of a tiny model; bf16, as bases come."""
    tokenizer = tokenizer or bpe_tokenizer()
    model = tiny_model(
        arch,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapted(model: Any, seed: int = 1, size: float = 0.05, **more: Any) -> PeftModel:
    """A model with an adapter whose B is not zero, as if it had been trained."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **more}
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.data.mul_(1 + 0.1 * noise)
            else:
                parameter.data.copy_(noise * size)
    return peft.eval()
