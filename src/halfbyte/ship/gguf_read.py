"""Reading our own GGUF files again, by what is in them alone: tokenizer, template, weights."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, ReaderTensor, TokenType
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GgufConfig, PretrainedConfig, PreTrainedModel

from halfbyte.errors import IntegrityError
from halfbyte.model.pretokenizers import PRETOKENIZERS
from halfbyte.ship.gguf_shapes import deinterleave, gguf_name, heads_of, out_of_gguf, shape_of
from halfbyte.ship.gguf_vocab import SPACE
from halfbyte.ship.reopen import reopen

# Those whose GGUF files transformers reads rightly by code of its own; the others go through ours
# (it has no Gemma, takes Qwen3's heads for 128 wide, and drops rotary scaling).
_READ_BY_TRANSFORMERS: Final = ("llama", "mistral", "qwen2")


def open_gguf(path: Path) -> GGUFReader:
    """Open a GGUF file.

    Raises:
        IntegrityError: it is none, or damaged.
    """
    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise IntegrityError(f"{path}: not a GGUF file that can be read: {error}") from None


def value(reader: GGUFReader, key: str) -> Any:
    """A metadata value; None where the file has none of this name."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


@dataclass(frozen=True, slots=True)
class _Sentencepiece:
    """llama.cpp's way through a sentencepiece vocabulary: join the best-scored neighbours first."""

    ids: dict[str, int]
    scores: list[float]
    unknown: int

    def encode(self, text: str) -> list[int]:
        parts: list[str | None] = list(text)
        after = list(range(1, len(parts) + 1))
        before = list(range(-1, len(parts) - 1))
        heap: list[tuple[float, int, int, str]] = []

        def propose(left: int, right: int) -> None:
            if left < 0 or right >= len(parts):
                return
            whole = f"{parts[left]}{parts[right]}"
            if whole in self.ids:
                heapq.heappush(heap, (-self.scores[self.ids[whole]], left, right, whole))

        for place in range(len(parts) - 1):
            propose(place, place + 1)
        while heap:
            _, left, right, whole = heapq.heappop(heap)
            if parts[left] is None or parts[right] is None or after[left] != right:
                continue
            if f"{parts[left]}{parts[right]}" != whole:
                continue  # one of the two has grown since
            parts[left], parts[right] = whole, None
            after[left] = after[right]
            if after[right] < len(parts):
                before[after[right]] = left
            propose(before[left], left)
            propose(left, after[left])
        return [index for part in parts if part is not None for index in self._piece(part)]

    def _piece(self, part: str) -> Iterator[int]:
        if part in self.ids:
            yield self.ids[part]
            return
        for byte in part.encode():
            yield self.ids.get(f"<0x{byte:02X}>", self.unknown)


class GgufTokenizer:
    """Text to ids by a GGUF file's metadata, as llama.cpp does it with special texts allowed."""

    def __init__(self, reader: GGUFReader) -> None:
        pieces: list[str] = value(reader, "tokenizer.ggml.tokens")
        kinds: list[int] = value(reader, "tokenizer.ggml.token_type")
        whole = (TokenType.CONTROL, TokenType.USER_DEFINED)
        self._special = {piece: i for i, piece in enumerate(pieces) if kinds[i] in whole}
        longest = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile("|".join(map(re.escape, longest))) if longest else None
        self._space = bool(value(reader, "tokenizer.ggml.add_space_prefix"))
        self.template: str | None = value(reader, "tokenizer.chat_template")
        self.adds_bos = bool(value(reader, "tokenizer.ggml.add_bos_token"))
        self.bos: int | None = value(reader, "tokenizer.ggml.bos_token_id")
        self.marks = {
            f"{name}_token": pieces[index]
            for name in ("bos", "eos", "unk")
            if (index := value(reader, f"tokenizer.ggml.{_KEYS[name]}_token_id")) is not None
        }
        self._pieces = pieces
        ids = {piece: i for i, piece in enumerate(pieces)}
        self._sentencepiece: _Sentencepiece | None = None
        self._byte_level: Tokenizer | None = None
        if value(reader, "tokenizer.ggml.model") == "llama":
            unknown = value(reader, "tokenizer.ggml.unknown_token_id") or 0
            scores = value(reader, "tokenizer.ggml.scores")
            self._sentencepiece = _Sentencepiece(ids, scores, unknown)
        else:
            self._byte_level = _byte_level(reader, ids)

    def piece(self, index: int) -> str:
        """The text of an id."""
        return self._pieces[index]

    def encode(self, text: str) -> list[int]:
        """The ids of a text that may hold special tokens; no BOS is put before it."""
        ids: list[int] = []
        for special, piece in _cut(text, self._cut):
            ids += [self._special[piece]] if special else self._plain(piece)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a rendered prompt: BOS first where the file says so, but never twice."""
        ids = self.encode(text)
        if self.adds_bos and self.bos is not None and ids[:1] != [self.bos]:
            return [self.bos, *ids]
        return ids

    def _plain(self, text: str) -> list[int]:
        if self._sentencepiece is not None:
            spaced = f" {text}" if self._space else text
            return self._sentencepiece.encode(spaced.replace(" ", SPACE))
        assert self._byte_level is not None
        return list(self._byte_level.encode(text, add_special_tokens=False).ids)


_KEYS: Final = {"bos": "bos", "eos": "eos", "unk": "unknown"}


def _byte_level(reader: GGUFReader, ids: dict[str, int]) -> Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in value(reader, "tokenizer.ggml.merges") or ()]
    rule = value(reader, "tokenizer.ggml.pre")
    if rule not in PRETOKENIZERS:
        raise IntegrityError(f"its tokenizer cuts by the rule {rule!r}, which is not known here")
    # Llama 3's tokenizer takes whole words from the vocabulary first; llama.cpp ties it to the rule
    whole_words = rule in ("llama-bpe", "tekken")
    core = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=whole_words))
    core.pre_tokenizer = PRETOKENIZERS[rule]
    return core


def _cut(text: str, special: re.Pattern[str] | None) -> Iterator[tuple[bool, str]]:
    place = 0
    for match in special.finditer(text) if special is not None else ():
        if match.start() > place:
            yield False, text[place : match.start()]
        yield True, match[0]
        place = match.end()
    if place < len(text):
        yield False, text[place:]


def read_tensor(tensor: ReaderTensor) -> Tensor:
    """A tensor's values in float32, in the order transformers has them."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if tensor.tensor_type in (Kind.F32, Kind.F16):
        data = np.asarray(tensor.data).astype(np.float32)
    else:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(np.array(data, np.float32, copy=True).reshape(shape))


def load_model(path: Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model a GGUF file holds, in float32, by transformers' reader where it has one.

    Raises:
        IntegrityError: tensors are missing, or not of the config's shapes.
    """
    scaled = (config.rope_parameters or {}).get("rope_type", "default") != "default"
    if scaled or config.model_type not in _READ_BY_TRANSFORMERS:
        return _load_ourselves(path, config)
    return reopen(path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True))


def _load_ourselves(path: Path, config: PretrainedConfig) -> PreTrainedModel:
    tensors = {tensor.name: tensor for tensor in open_gguf(path).tensors}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    assert isinstance(model, PreTrainedModel)
    targets: dict[str, nn.Parameter] = dict(model.named_parameters())
    names = {name: gguf_name(name) for name in targets}
    if absent := sorted(name for name, target in names.items() if target not in tensors):
        raise IntegrityError(f"{path}: {len(absent)} tensors are missing:", absent[:3])
    with torch.no_grad():
        for name, parameter in targets.items():
            target = names[name]
            assert target is not None
            parameter.copy_(out_of_gguf(target, read_tensor(tensors[target]), config))
    return model.eval()


def read_adapter(path: Path, config: PretrainedConfig) -> dict[str, Tensor]:
    """What a LoRA GGUF adds to each tensor, by GGUF's name, float32 [out, in], in transformers'
    order of rows; scaled as llama.cpp scales it."""
    reader = open_gguf(path)
    alpha = float(value(reader, gguf.Keys.Adapter.LORA_ALPHA))
    factors = {tensor.name: read_tensor(tensor) for tensor in reader.tensors}
    added = {}
    for name, b in factors.items():
        target, found, _ = name.partition(".lora_b")
        if not found:
            continue
        count = heads_of(target, config) if shape_of(config).interleaved else None
        delta = (b @ factors[f"{target}.lora_a"]).mul_(alpha / b.shape[1])
        added[target] = deinterleave(delta, count) if count else delta
    return added
