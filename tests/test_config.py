"""The settings: defaults, overrides, faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from halfbyte.config import Config, load_config, resolve, write_config
from halfbyte.config.load import setting_rows
from halfbyte.errors import ConfigError


def faults(*overrides: str, recipe: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    assert caught.value.exit_code == 2
    return caught.value.faults


def test_there_are_few_settings_and_each_is_described() -> None:
    """At most 60 settings, each with a description."""
    rows = list(setting_rows())
    assert len(rows) <= 60
    assert all(text.endswith(".") for _, _, text in rows)


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    """The resolved config survives YAML."""
    config = load_config(None, ["lora.targets=[q_proj, v_proj]", "data.columns={a: b}"]).config
    path = tmp_path / "config.yaml"
    path.write_text(write_config(config))
    assert load_config(path).config == config


@given(st.floats(1e-8, 1e-1))
def test_numbers_in_scientific_notation_are_numbers(rate: float) -> None:
    """YAML 1.1 reads 2e-4 as text; a setting is a number all the same."""
    assert load_config(None, [f"train.learning_rate={rate:.3e}"]).config.learning_rate > 0


def test_a_recipe_in_scientific_notation(tmp_path: Path) -> None:
    """The same in a file."""
    path = tmp_path / "r.yaml"
    path.write_text("train:\n  learning_rate: 2e-4\n")
    assert yaml.safe_load(path.read_text())["train"]["learning_rate"] == "2e-4"
    assert load_config(path).config.learning_rate == 2e-4


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_are_words(tmp_path: Path, word: str) -> None:
    """YAML 1.1 reads on and off as true and false; in a recipe, as an override and read back from
    a run they are the words."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train:\n  checkpointing: {word}\n")
    assert load_config(recipe).config.train.checkpointing == word
    given = load_config(None, [f"train.checkpointing={word}"])
    assert given.config.train.checkpointing == word
    recipe.write_text(write_config(given.config))
    assert load_config(recipe).config.train.checkpointing == word


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    """Unknown keys, wrong types, wrong ranges of the file and the command line, in one error."""
    path = tmp_path / "r.yaml"
    path.write_text("train:\n  lerning_rate: 1\nlora:\n  rank: 0\nmethd: lora\n")
    found = "\n".join(faults("train.micro_batch=x", "nonsense", recipe=path))
    assert "train.lerning_rate: no such setting; did you mean train.learning_rate?" in found
    assert "methd: no such setting; did you mean method?" in found
    assert "lora.rank: should be greater than or equal to 1 (given: 0)" in found
    assert found.count("train.micro_batch") == 1
    assert "'nonsense': an override reads key.sub=value" in found


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=full", "lora.rank=8"], "method full has no adapter"),
        (["train.micro_batch=32"], "a step has only train.batch_size=16"),
        (["train.micro_tokens=100"], "less than one row may have"),
        (["lora.dora=true", "lora.rslora=true"], "choose one"),
        (["lora.targets=[]"], "would train nothing"),
        (["train.save_every=0"], "at least 1"),
        (["data.valid_size=1.5"], "a whole number of rows"),
        (["eval.judge=http://x"], "which model shall judge"),
        (["method=full", "model.compute=fp16"], "fp16"),
        (["train.learning_rate=.nan"], "finite"),
        (["train.memory_limit=12G"], "a size reads 12GB or 500MB"),
        (["train.memory_limit=-5GB"], "a size reads 12GB or 500MB"),
        (["train.memory_limit=0.0GB"], "a size reads 12GB or 500MB"),
    ],
)
def test_impossible_combinations_are_refused(overrides: list[str], words: str) -> None:
    """Each names the setting and the reason."""
    assert words in "\n".join(faults(*overrides))


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\x00", "a: !!python/object:os.system x"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    """Broken or hostile YAML is an error with the file's name, never a traceback."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(path)


def test_origins_are_kept(tmp_path: Path) -> None:
    """Each value that is not a default knows where it came from."""
    path = tmp_path / "r.yaml"
    path.write_text("method: lora\ntrain: {epochs: 1}\n")
    origin = load_config(path, ["train.epochs=2"]).origin
    assert origin == {"method": str(path), "train.epochs": "command line"}


def test_a_config_is_frozen() -> None:
    """Derived values are properties, and nothing is assigned after validation."""
    config = resolve({}).config
    with pytest.raises(ValueError, match="frozen"):
        config.method = "lora"  # type: ignore[misc]
    assert (config.learning_rate, Config(method="full").learning_rate) == (2e-4, 2e-5)
