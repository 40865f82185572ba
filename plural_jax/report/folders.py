"""What the folder of a run says, and the file of an answer; one sentence for those that are none or are unfinished."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import xarray as xr

from plural_jax.experiments import EXPERIMENTS, SWEEP
from plural_jax.experiments.base import Experiment
from plural_jax.report import options
from plural_jax.store import SweepStore

#: What a finished run has at least; `execute` writes these in this order, after the dataset, and figures last.
_FILES = ("dataset.zarr", "config.json", "versions.json", "table.txt")
#: The last bytes of a whole PNG file.
_PNG_END = b"IEND\xaeB`\x82"


class Table(NamedTuple):
    """A table of a run: its file's name, its caption, its cells as text."""

    name: str
    caption: str
    columns: list[str]
    rows: list[list[str]]


class RunFolder(NamedTuple):
    """What a finished run's folder says.

    Attributes:
        name: of the folder.
        experiment: from the registry; None for one that this version does not have.
        config: plain values, with the experiment's name taken out.
        title: the experiment's name.
        dataset: opened, not read.
        tables: in the order of `table.txt`.
        figures: names and contents of the PNG files, then of GIF files, which move.
        versions: by package.
    """

    name: str
    experiment: Experiment | None
    config: dict[str, Any]
    title: str
    dataset: xr.Dataset
    tables: list[Table]
    figures: list[tuple[str, bytes]]
    versions: dict[str, str]


class Answer(NamedTuple):
    """What `limit` or `audit` wrote: the file's name without its ending, the command's name and its answer."""

    name: str
    command: str
    plain: dict[str, Any]


def read(path: Path) -> RunFolder | Answer:
    """What lies at a path.

    Raises:
        ValueError: nothing, no run, or an unfinished one.
    """
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        return read_answer(path)
    raise ValueError(f"run {str(path)!r} does not exist.")


def read_answer(path: Path) -> Answer:
    """What `limit` or `audit` wrote to a file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # neither text nor JSON
        plain = None
    for command, keys in (
        ("audit", {"assumptions", "results", "phi", "eps", "num_steps"}),
        ("limit", {"atoms", "objective", "gap", "phi", "converged", "reward_mean"}),
    ):
        if isinstance(plain, dict) and keys <= plain.keys():
            return Answer(path.resolve().stem, command, plain)
    raise ValueError(
        f"run {str(path)!r} is a file that neither `plural-jax limit --out` nor `plural-jax audit --out` wrote; name the "
        "folder of a run, or such a file."
    )


def read_folder(path: Path) -> RunFolder:
    """What the folder of a finished run says.

    Raises:
        ValueError: the folder holds no run, or an unfinished one.
    """
    _check(path)
    config = _json(path / "config.json")
    title = config.pop("experiment")
    with pd.option_context("display.width", None):  # what `table.txt` was written with, whatever the terminal
        tables = _tables(path)
    return RunFolder(
        name=path.resolve().name,
        experiment={**EXPERIMENTS, SWEEP.name: SWEEP}.get(title),
        config=config,
        title=title,
        dataset=xr.open_zarr(path / "dataset.zarr", consolidated=False, chunks=None),
        tables=tables,
        figures=[(file.stem, file.read_bytes()) for file in (*_pictures(path), *_pictures(path, "gif"))],
        versions=_json(path / "versions.json"),
    )


def _check(path: Path) -> None:
    """Refuse a folder that is no run, or whose run is unfinished, and say what to do."""
    missing = [name for name in _FILES if not (path / name).exists()]
    begun = any((path / name).exists() for name in (*_FILES[:2], "arms")) or any(path.glob(".dataset.zarr.*"))
    if not begun:
        inside = sorted(p.name for p in path.iterdir() if (p / "config.json").is_file())
        hint = f"; it holds runs: plural-jax report {shlex.join(str(path / name) for name in inside)}" if inside else ""
        raise ValueError(f"run {str(path)!r} is not the folder of a run{hint or ', which has a config.json'}.")
    if "config.json" not in missing and not isinstance(_json(path / "config.json").get("experiment"), str):
        raise ValueError(f"run {str(path)!r} is not the folder of a run: its config.json names no experiment.")
    pictures = _pictures(path)
    cut = [file.name for file in pictures if not file.read_bytes().endswith(_PNG_END)]
    if missing or cut or not pictures:
        raise ValueError(
            f"run {str(path)!r} is unfinished ({_state(path, missing, cut)}); {_how_to_go_on(path)} completes it."
        )


def _state(path: Path, missing: list[str], cut: list[str]) -> str:
    attrs = _attributes(path)
    if "config.json" in missing and "fingerprint" in attrs:
        finished = SweepStore(path / "dataset.zarr").finished()
        if not finished.all():
            return f"{int((~finished).sum())} of {finished.size} batches are missing"
    if missing:
        return f"there is no {missing[0]}"
    return f"{cut[0]} is cut off" if cut else "there is no figure"


def _how_to_go_on(path: Path) -> str:
    """The command that completes a run, where its store says which run it is."""
    attrs = _attributes(path)
    experiment = {**EXPERIMENTS, SWEEP.name: SWEEP}.get(str(attrs.get("experiment")))
    if experiment is None or "fingerprint" not in attrs:  # other stores are written last, with settings of their preset
        return "the same command with --resume"
    config = json.loads(attrs["config"])
    dataset = xr.open_zarr(path / "dataset.zarr", consolidated=False, chunks=None)
    command, _ = options.command_line(experiment, config, x64=options.is_x64(dataset))
    return f"`{command} --out {shlex.quote(str(path))} --resume`"


def _attributes(path: Path) -> dict[str, Any]:
    meta = path / "dataset.zarr" / "zarr.json"
    return _json(meta).get("attributes", {}) if meta.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} holds no JSON object.")
    return value


def _pictures(path: Path, kind: str = "png") -> list[Path]:
    return sorted(path.glob(f"[!.]*.{kind}"), key=lambda file: _natural(file.stem))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts figure6 before figure10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _tables(path: Path) -> list[Table]:
    """Every CSV file with its caption from `table.txt`, in that order."""
    # Blocks between empty lines are a title and its table in turns.
    blocks = (path / "table.txt").read_text(encoding="utf-8").strip("\n").split("\n\n")
    printed = [(title, table.split()) for title, table in zip(blocks[::2], blocks[1::2], strict=False)]
    found = []
    for file in sorted(path.glob("*.csv"), key=lambda file: _natural(file.stem)):
        try:
            frame = pd.read_csv(file)
            cells = pd.read_csv(file, dtype=str, keep_default_na=False, header=None)
        except (pd.errors.EmptyDataError, pd.errors.ParserError):
            continue  # no columns, or not ours
        words = frame.to_string(index=False, float_format=lambda v: f"{v:.4g}").split()
        place = max(range(len(printed)), key=lambda i: _alike(words, printed[i][1]), default=None)
        if place is not None and _alike(words, printed[place][1]) < 0.5:
            place = None
        title = file.stem if place is None else " ".join(printed[place][0].split())
        rows = cells.to_numpy().tolist()
        found.append((len(printed) if place is None else place, Table(file.stem, title, rows[0], rows[1:])))
    return [table for _, table in sorted(found, key=lambda pair: pair[0])]


def _alike(words: list[str], others: list[str]) -> float:
    """Share of words that two tables have at the same place."""
    return sum(a == b for a, b in zip(words, others, strict=False)) / max(len(words), len(others), 1)
