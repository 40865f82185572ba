"""What an experiment is, and the folder that a run of it leaves behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import figures, labels
from plural_jax.process import Meter


class Experiment(NamedTuple):
    """A study of the paper, or one of ours, in three steps that can be used apart.

    Attributes:
        name: what the command line calls it.
        title: one line that says what it shows.
        config: a frozen dataclass; its defaults are the paper's constants, or our documented ones.
        run: `(config, store, progress) -> Dataset`; the dataset's attributes hold the configuration.
        tables: `Dataset -> {name: table}`.
        plot: `Dataset -> {name: figure}`.
    """

    name: str
    title: str
    config: type[Any]
    run: Callable[[Any, Path | None, bool | Meter], xr.Dataset]
    tables: Callable[[xr.Dataset], dict[str, pd.DataFrame]]
    plot: Callable[[xr.Dataset], dict[str, Figure]]


class Run(NamedTuple):
    """A finished run: its folder and everything in it."""

    folder: Path
    dataset: xr.Dataset
    tables: dict[str, pd.DataFrame]
    figures: list[Path]


def execute(
    experiment: Experiment, config: Any, out: str | Path, *, resume: bool = False, progress: bool | Meter = False
) -> Run:
    """Run an experiment and leave a folder with its dataset, configuration, versions, tables and figures.

    Args:
        experiment: from the registry.
        config: an instance of `experiment.config`.
        out: the folder; it must not exist or be empty, unless `resume`.
        resume: continue a run that was interrupted; batches already in the folder's store are not computed again.
        progress: True for a bar, or a `Meter`.

    Returns:
        The folder's contents: `dataset.zarr`, `config.json`, `versions.json`, `table.txt`, a CSV for each table, and each
        figure as PNG and PDF.

    Raises:
        ValueError: a folder in use without `resume`, or one that holds another run.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(folder)!r} is a file; choose a folder.")
    if not resume and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"out={str(folder)!r} is not empty; choose another folder, or --resume to continue that run.")
    # The store is opened before anything is written beside it: a folder of another run is refused untouched.
    dataset = experiment.run(config, folder / "dataset.zarr", progress).load()
    _write_json(folder / "config.json", {"experiment": experiment.name, **dataclasses.asdict(config)})
    _write_json(folder / "versions.json", labels.versions())
    tables = experiment.tables(dataset)
    (folder / "table.txt").write_text(render(tables))
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    saved = []
    with figures.style():
        for name, figure in experiment.plot(dataset).items():
            for suffix in ("png", "pdf"):
                path = folder / f"{name}.{suffix}"
                figure.savefig(path)
                saved.append(path)
    return Run(folder, dataset, tables, saved)


def render(tables: dict[str, pd.DataFrame]) -> str:
    """Tables as text, each under its title."""
    parts = []
    for name, table in tables.items():
        title = table.attrs.get("title", name)
        parts.append(f"{title}\n\n{table.to_string(index=False, float_format=lambda v: f'{v:.4g}')}\n")
    return "\n".join(parts)


def titled(table: pd.DataFrame, title: str) -> pd.DataFrame:
    """The table with a title for `render`."""
    table.attrs["title"] = title
    return table


def study(experiment: str, config: Any) -> dict[str, Any]:
    """Dataset attributes that say which experiment this is and with which configuration."""
    return {"experiment": experiment, "config": dataclasses.asdict(config)}


def config_of(dataset: xr.Dataset) -> dict[str, Any]:
    """The configuration that a dataset was computed with."""
    return json.loads(dataset.attrs["config"])


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
