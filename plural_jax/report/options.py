"""A configuration as a person would type it: the command that reproduces a run, and what each option means."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import math
import shlex
import textwrap
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from plural_jax.experiments.axis import parse_axis
from plural_jax.experiments.base import Experiment


class Option(NamedTuple):
    """An option of an experiment: value and default as text, whether they differ, and what it means."""

    name: str
    value: str
    default: str
    changed: bool
    meaning: str


def command_line(experiment: Experiment, config: dict[str, Any], *, x64: bool = False) -> tuple[str, list[str]]:
    """The shortest command that runs an experiment with this configuration, and the settings that no option can say.

    Args:
        experiment: from the registry.
        config: plain values, as in `config.json`; what is missing has its default.
        x64: whether it was computed in float64.

    Example:
        >>> from plural_jax.experiments import SWEEP
        >>> command_line(SWEEP, {"phi": [0.1, 0.2, 0.3, 0.4], "num": 50})[0]
        'plural-jax sweep --phi 0.1:0.4:4 --num 50'
    """
    words = ["sweep"] if experiment.name == "sweep" else ["run", experiment.name]
    typed, unsaid = typed_options(experiment.config, config)
    return shlex.join(["plural-jax", *words, *typed, *(["--x64"] if x64 else [])]), unsaid


def typed_options(kind: type[Any], config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The words that set what differs from the defaults of a dataclass, and the names of what no option can say."""
    words: list[str] = []
    defaults = plain_defaults(kind)
    unsaid = [name for name in config if name not in defaults]
    for name, default in defaults.items():
        value = config.get(name, default)
        if value == default:
            continue
        if value == []:
            unsaid.append(name)
            continue
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", *_words(value)]
    return words, unsaid


def options(kind: type[Any] | None, config: dict[str, Any], resolved: dict[str, Any]) -> list[Option]:
    """Every setting of a run beside its default.

    Args:
        kind: the dataclass of its options; None where it is not known.
        config: as in `config.json`.
        resolved: the same as the dataset has it, where a preset has filled in what was not given.
    """
    defaults = {} if kind is None else plain_defaults(kind)
    meanings = {} if kind is None else _meanings(kind)
    found = []
    for name in [*defaults, *(name for name in config if name not in defaults)]:
        value = config.get(name, defaults.get(name))
        known = name in defaults
        shown = _text(value)
        if value is None and resolved.get(name) is not None:
            shown = f"{_text(resolved[name])} (by the preset)" if "preset" in config else _text(resolved[name])
        meaning = meanings.get(name, "")
        if not known and kind is not None:
            meaning = "No option of this version."
        default = _text(defaults[name]) if known else ""
        found.append(Option(name, shown, default, kind is not None and (not known or value != defaults[name]), meaning))
    return found


def is_x64(dataset: xr.Dataset) -> bool:
    """Whether a sweep was computed in float64. Stores that are no sweep's hold float64 either way."""
    return "fingerprint" in dataset.attrs and any(v.dtype == np.float64 for v in dataset.data_vars.values())


def plain_defaults(config: type[Any]) -> dict[str, Any]:
    """The defaults of a configuration as `config.json` would hold them."""
    return json.loads(json.dumps(dataclasses.asdict(config()), default=str))


def _words(value: Any) -> list[str]:
    if not isinstance(value, list):
        return [_word(value)]
    words = [_word(v) for v in value]
    numbers = all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
    if len(value) > 3 and numbers and value[0] >= 0:  # -2:2:5 would be the name of an option
        spaced = f"{words[0]}:{words[-1]}:{len(words)}"
        if parse_axis([spaced]) == tuple(value):
            return [spaced]
    return words


def _word(value: Any) -> str:
    """A value that an option reads back exactly."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if value == int(value) and abs(value) < 1e15:
            return str(int(value))
        # An option takes -1e-05 for the name of another one.
        return np.format_float_positional(value) if value < 0 else repr(value)
    return str(value)


def _text(value: Any) -> str:
    """A value for a person to read."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        if len(_words(value)) < len(value):
            return f"{_word(value[0])} to {_word(value[-1])}, {len(value)} evenly spaced"
        return ", ".join(_text(v) for v in value) or "none"
    return "∞" if value == math.inf else _word(value)


def _meanings(config: type[Any]) -> dict[str, str]:
    """The strings under the fields of a dataclass and its bases, which the command line's help shows too."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except (OSError, TypeError):  # made in an interpreter, or without its source
            continue
        (definition,) = ast.parse(source).body
        lines = definition.body if isinstance(definition, ast.ClassDef) else []
        for field, text in itertools.pairwise(lines):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found
