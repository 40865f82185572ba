"""What an experiment is, and the folder that a run of it leaves behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import figures, hosts, labels
from plural_jax.experiments import movies
from plural_jax.experiments.movies import Movie
from plural_jax.process import Meter


class Experiment(NamedTuple):
    """A study of the paper, or one of ours, in three steps that can be used apart.

    Attributes:
        name: what the command line calls it.
        title: one line that says what it shows.
        config: a frozen dataclass; its defaults are the paper's constants, or our documented ones.
        run: `(config, store, progress) -> Dataset`; the dataset's attributes hold the configuration. Where `parts`, it also
            takes `part`, as `sweep` does.
        tables: `Dataset -> {name: table}`.
        plot: `Dataset -> {name: figure}`.
        parts: whether several processes can share its store.
        movie: the densities of one configuration, to be animated; None where there are none on a grid.
    """

    name: str
    title: str
    config: type[Any]
    run: Callable[..., xr.Dataset]
    tables: Callable[[xr.Dataset], dict[str, pd.DataFrame]]
    plot: Callable[[xr.Dataset], dict[str, Figure]]
    parts: bool = False
    movie: Callable[[xr.Dataset], Movie] | None = None


class Run(NamedTuple):
    """A finished run: its folder and everything in it."""

    folder: Path
    dataset: xr.Dataset
    tables: dict[str, pd.DataFrame]
    figures: list[Path]


def execute(
    experiment: Experiment,
    config: Any,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool | Meter = False,
    part: tuple[int, int] | None = None,
    animate: bool = False,
) -> Run:
    """Run an experiment and leave a folder with its dataset, configuration, versions, tables and figures.

    In a job of `jax.distributed` all processes call it with a folder that they share; process 0 writes what is not the dataset.

    Args:
        experiment: from the registry.
        config: an instance of `experiment.config`.
        out: the folder; it must not exist or be empty, unless `resume`.
        resume: continue a run that was interrupted; batches already in the folder's store are not computed again.
        progress: True for a bar, or a `Meter`.
        part: (index, count): compute only that part of the dataset, beside others that do theirs in the same folder.
        animate: also write the densities of one configuration, round by round, as `animation.gif`, and as
            `animation.mp4` where ffmpeg is installed.

    Returns:
        The folder's contents: `dataset.zarr`, `config.json`, `versions.json`, `table.txt`, a CSV for each table, and each
        figure as PNG and PDF. With `part`, and in all processes but the first, the dataset alone.

    Raises:
        ValueError: a folder in use without `resume`, or one that holds another run; several processes or a `part` for an
            experiment that is computed by one; `animate` for one without densities on a grid.
    """
    if animate and experiment.movie is None:
        raise ValueError(f"animate=True needs densities on a grid, which experiment {experiment.name!r} does not have.")
    processes = 1 if part is not None else jax.process_count()
    if (part is not None or processes > 1) and not experiment.parts:
        raise ValueError(f"experiment {experiment.name!r} is computed by one process; only 'sweep' is cut into parts.")
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(folder)!r} is a file; choose a folder.")
    if not resume and folder.exists() and any(_foreign(folder, part)):
        raise ValueError(f"out={str(folder)!r} is not empty; choose another folder, or --resume to continue that run.")
    if processes > 1:
        hosts.meet()  # nobody writes into the folder before all have looked into it
    # The store is opened before anything is written beside it: a folder of another run is refused untouched.
    options = {"part": part} if experiment.parts else {}
    dataset = experiment.run(config, folder / "dataset.zarr", progress, **options)
    if part is not None or (processes > 1 and jax.process_index() != 0):
        return Run(folder, dataset, {}, [])
    dataset = dataset.load()
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
                figure.set_layout_engine("none")  # what was laid out once is not laid out again
    if animate and experiment.movie is not None:
        saved += movies.write(experiment.movie(dataset), folder)
    return Run(folder, dataset, tables, saved)


def _foreign(folder: Path, part: tuple[int, int] | None) -> Iterator[Path]:
    """What a folder holds that a run does not expect; with `part`, others may have made the store or be making it."""
    for path in folder.iterdir():
        if part is None or "dataset.zarr" not in path.name:
            yield path


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


def entropy(share: np.ndarray | xr.DataArray) -> np.ndarray:
    """Shannon entropy in nats along the last axis.

    Example:
        >>> print(np.round(entropy(np.array([0.5, 0.5, 0.0])), 3))
        0.693
    """
    values = np.asarray(share, np.float64)
    found = -np.sum(np.where(values > 0, values * np.log(np.where(values > 0, values, 1)), 0), axis=-1)
    return np.maximum(found, 0.0)  # shares that sum to a little more than one


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n")
