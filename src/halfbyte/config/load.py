"""Reading recipes: YAML and overrides in, one frozen Config out, every fault at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from halfbyte.config.check import cross_faults
from halfbyte.config.settings import Config
from halfbyte.errors import ConfigError

Tree = dict[str, Any]
_MAX_BYTES: Final = 1 << 20  # a recipe is a page of text; a larger file is a mistake


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config and, for every setting that is not a default, where its value came from."""

    config: Config
    origin: Mapping[str, str]


def setting_rows(
    model: type[BaseModel] = Config, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Name, default and description of every setting."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_rows(kind, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            text = "" if default is None else yaml.safe_dump(default, default_flow_style=True)
            yield prefix + name, text.removesuffix("...\n").strip(), field.description or ""


def load_config(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> Resolved:
    """Read a recipe (or nothing) and `key.sub=value` overrides.

    Raises:
        ConfigError: with every fault of both.
    """
    tree, where = ({}, "") if recipe is None else (_read_yaml(Path(recipe)), str(recipe))
    origin = dict.fromkeys(_leaves(tree), where)
    faults: list[str] = []
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            faults.append(f"{text!r}: an override reads key.sub=value")
            continue
        _put(tree, key.strip().split("."), _scalar(value), faults)
        origin[key.strip()] = "command line"
    return resolve(tree, origin, faults)


def resolve(
    tree: Mapping[str, Any], origin: Mapping[str, str] | None = None, faults: Iterable[str] = ()
) -> Resolved:
    """Validate a tree of settings; `faults` found before are reported with those found here."""
    found = list(faults)
    config: Config | None = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found += _explanations([dict(fault) for fault in error.errors(include_url=False)])
    if config is not None:
        found += cross_faults(config)
    if config is None or found:
        count = f"{len(found)} fault{'s' if len(found) != 1 else ''} in the settings:"
        raise ConfigError(count, found, "`halfbyte config` lists every setting and its default.")
    return Resolved(config, dict(origin or {}))


def write_config(config: Config) -> str:
    """The whole config as YAML: reading it again gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> Tree:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than 1 MiB: this is not a recipe")
        tree = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such recipe", hint="`halfbyte recipes` lists the ones that come with it."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{path}{where}: not YAML: {problem}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings, not {type(tree).__name__}")
    return tree


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _put(tree: Tree, keys: Sequence[str], value: Any, faults: list[str]) -> None:
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            faults.append(f"{'.'.join(keys)}: {key} is a value, not a group of settings")
            return
        tree = child
    tree[keys[-1]] = value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and prefix + str(key) != "data.columns":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _explanations(faults: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line a setting: the branches of a union are joined."""
    names = [name for name, _, _ in setting_rows()]
    found: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for fault in faults:
        path = [str(part) for part in fault["loc"]]
        if fault["type"] == "extra_forbidden":
            found[".".join(path)] = [_no_such(path, names)]
            continue
        # pydantic names the branch of a union last ("int", "literal[...]"); users know the setting
        while len(path) > 1 and ".".join(path) not in names:
            path.pop()
        message = str(fault["msg"]).removeprefix("Value error, ").removeprefix("Input ")
        found.setdefault(".".join(path), []).append(message[0].lower() + message[1:])
        given[".".join(path)] = f" (given: {fault['input']!r})"
    return [f"{name}: {', or '.join(found[name])}{given.get(name, '')}" for name in found]


def _no_such(path: Sequence[str], names: Sequence[str]) -> str:
    name = ".".join(path)
    groups = sorted({known.rpartition(".")[0] for known in names} - {""})
    near = difflib.get_close_matches(name, [*names, *groups], n=1, cutoff=0.6)
    last = [known for known in names if known.rpartition(".")[2] == path[-1]]
    guess = (near or last or [""])[0]
    return "no such setting" + (f"; did you mean {guess}?" if guess else "")
