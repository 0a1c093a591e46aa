"""Recipes are read, counted and held to their promises without any weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from halfbyte.config import Config, load_config
from halfbyte.data.builtin import BUILTINS

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = {
    path.relative_to(FOLDER).with_suffix("").as_posix(): path
    for path in sorted(FOLDER.rglob("*.yaml"))
}
each_recipe = pytest.mark.parametrize("name", RECIPES)


def _config(name: str) -> Config:
    return load_config(RECIPES[name]).config


def test_every_recipe_is_known() -> None:
    """A recipe that comes or goes is noticed here, and in the tests that train each."""
    assert set(RECIPES) == {
        "ai-tutor-mistral-7b",
        "demo",
        "hinglish-tinyllama-1b",
        "instruction-mistral-7b-12gb",
        "methods/full",
        "methods/lora",
        "methods/qlora",
        "production-7b",
    }


@each_recipe
def test_header_says_for_whom_and_where(name: str) -> None:
    """The comment above the first setting answers the four questions a reader has."""
    header = [line for line in RECIPES[name].read_text().splitlines() if line.startswith("#")]
    for word in ("For whom:", "Hardware:", "Run:", "Source:"):
        assert any(line.startswith(f"# {word}") for line in header), word


@each_recipe
def test_only_what_differs(name: str) -> None:
    """No recipe repeats a default: what it says is what makes it different."""
    default = Config().model_dump(mode="json")
    for group, value in yaml.safe_load(RECIPES[name].read_text()).items():
        given = value if isinstance(value, dict) else {group: value}
        known = default[group] if isinstance(value, dict) else default
        resolved = getattr(_config(name), group) if isinstance(value, dict) else _config(name)
        for key in given:
            assert resolved.model_dump(mode="json")[key] != known[key], f"{group}.{key}"


@each_recipe
def test_runs_as_it_is_and_on_the_embedded_base(name: str) -> None:
    """The data of every recipe come with the package; the laptop line of its header is valid."""
    assert _config(name).data.train.removeprefix("builtin:") in BUILTINS
    small = load_config(RECIPES[name], ["model.base=smollm2-135m", "model.compute=auto"]).config
    assert small.model.base == "smollm2-135m"


def test_methods_differ_in_nothing_else() -> None:
    """full, lora and qlora see the same rows in the same steps; only method and rate differ."""
    dumps = [_config(f"methods/{method}").model_dump() for method in ("full", "lora", "qlora")]
    assert [dump.pop("method") for dump in dumps] == ["full", "lora", "qlora"]
    for dump in dumps:
        dump["train"].pop("learning_rate")
    assert dumps[0] == dumps[1] == dumps[2]


def test_twelve_gigabytes_recipe_trains_a_twentieth_of_a_percent() -> None:
    """Rank 8 on q_proj and v_proj of Mistral-7B (hidden 4096, values 1024, 32 layers, 7.24e9)."""
    config = _config("instruction-mistral-7b-12gb")
    assert config.lora.targets == ("q_proj", "v_proj")
    trained = 32 * config.lora.rank * ((4096 + 4096) + (4096 + 1024))
    assert 0.0004 < trained / 7.24e9 < 0.0006
    assert (config.data.template, config.data.train_on) == ("instruction", "answers")
    assert config.train.checkpointing == "on"  # YAML 1.1 reads a bare `on` as true


def test_production_values() -> None:
    """The values that were asked for hold, whether written down or by default."""
    config = _config("production-7b")
    lora, train = config.lora, config.train
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 32, 0.05)
    assert (train.epochs, train.batch_size, config.learning_rate) == (3, 4, 2e-4)
    assert (config.data.max_length, train.schedule, train.tensorboard) == (512, "cosine", True)
    assert train.warmup > 0
    assert isinstance(train.eval_every, int)
    assert isinstance(train.save_every, int)
