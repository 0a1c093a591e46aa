"""Tiny models and a tokenizer, made in code: two layers, width 64, no files, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

ARCHS: Final = ("llama", "mistral", "qwen2", "gemma", "gpt2")

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL: Final = (END_OF_TEXT, TURN_START, TURN_END, "<|reserved|>")
VOCAB: Final = 256 + len(SPECIAL)  # one token a byte, then the special ones: ids 256 to 259

CHATML: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_COMMON: Final[dict[str, Any]] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
_GPT2: Final[dict[str, Any]] = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 2048,
    # dropout would make every comparison of logits a comparison of seeds
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}


def tiny_config(arch: str = "llama", **overrides: Any) -> PretrainedConfig:
    """The config of a tiny model of this architecture; `overrides` win."""
    end = 256 + SPECIAL.index(TURN_END)
    settings: dict[str, Any] = {
        **(_GPT2 if arch == "gpt2" else _COMMON),
        # larger than the usual 0.02: at width 64 logits would hardly differ otherwise
        "initializer_range": 0.1,
        "bos_token_id": 256 + SPECIAL.index(END_OF_TEXT),
        "eos_token_id": end,
        "pad_token_id": end,
        **overrides,
    }
    return AutoConfig.for_model(arch, **settings)


def tiny_model(arch: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A float32 model with seeded random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            tiny_config(arch, **overrides), dtype=torch.float32
        )
    return model.eval()


def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, and the ChatML marks; pad is the end mark, as in many real tokenizers.

    With `bos`, encoding puts `<|endoftext|>` first, as Llama's and Mistral's tokenizers put `<s>`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 256)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=TURN_END,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_base(tmp_path: Path, arch: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """Write a transformers folder (safetensors, config, tokenizer) and return it."""
    folder = tmp_path / f"tiny-{arch}"
    tiny_model(arch, seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
