"""How the cost grows with cells, rounds, preferences and configurations: fitted exponents and a log-log figure.

    python -m benchmarks.scaling [--quick] [--repeats N] [--out FILE]

The tilt and the finite pool (K = 10) in float32 on one device, compiled, the last round saved. One size varies and the others
stay at 4,096 cells, 200 rounds, 2 preferences and 32 configurations (finite pool: 100 rounds). Preferences are
bumps on a line, and configurations differ in phi. An exponent of 1 means that cost is linear; it is fitted to the three largest
sizes, because below them what a run costs by itself counts too, and its value over all sizes stands in the JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from rich.table import Table

import plural_jax as pj
from benchmarks import report, timing
from plural_jax import figures

#: Axis -> its label.
AXES = {"cells": "cells", "rounds": "rounds", "preferences": "preferences m", "configurations": "configurations"}
PROCESSES = ("tilt", "finite pool")
#: Sizes that an exponent is fitted to.
LARGEST = 3


class Size(NamedTuple):
    """One workload."""

    cells: int
    rounds: int
    preferences: int
    configurations: int


BASE = {"tilt": Size(4096, 200, 2, 32), "finite pool": Size(4096, 100, 2, 32)}
#: Factors on the base of each axis.
FACTORS = {
    "cells": (0.25, 1, 4, 16),
    "rounds": (0.5, 1, 2, 4, 8),
    "preferences": (1, 2, 4, 8),
    "configurations": (1 / 32, 0.25, 1, 4, 16),
}
QUICK_FACTORS = {"cells": (1, 4), "configurations": (1, 4)}


def library(process: str, size: Size) -> Callable[[], Any]:
    """All configurations in one call."""
    rng = np.random.default_rng(0)
    centers = np.linspace(-4.0, 4.0, size.preferences, dtype=np.float32)[:, None]
    land = pj.Landscape.on(pj.Grid.uniform(-5.0, 5.0, size.cells), pj.rewards.bump(centers, 5.0, 1.0))
    phis = jnp.asarray(rng.dirichlet(np.full(size.preferences, 3.0), size=size.configurations), jnp.float32)

    def one(phi: Array) -> Any:
        pool = {} if process == "tilt" else {"pool_size": 10.0}
        made = (pj.density.finite_pool if pool else pj.density.large_pool)(land, phi, **pool)
        return pj.run(made, made.init(), size.rounds, save="final")[1]

    return partial(jax.jit(jax.vmap(one)).lower(phis).compile(), phis)


def measure(quick: bool, repeats: int | None) -> dict[str, Any]:
    """Seconds and exponents for each process and axis; quick: of the tilt along two axes: all must compile."""
    factors, processes = (QUICK_FACTORS, PROCESSES[:1]) if quick else (FACTORS, PROCESSES)
    wanted = {process: {axis: _sizes(process, axis, factors[axis]) for axis in factors} for process in processes}
    # The base is on every axis and is compiled once. Compiling takes most of the time and has a core to itself at a time.
    every = {(process, size) for process, axes in wanted.items() for sizes in axes.values() for size in sizes}
    with ThreadPoolExecutor(timing.cores()) as pool:
        compiled = {key: pool.submit(library, *key) for key in every}
    times = {}
    for process in processes:
        of_process = {str(key): future.result() for key, future in compiled.items() if key[0] == process}
        times |= timing.interleaved(of_process, repeats or (3 if quick else 9))

    def line(process: str, axis: str) -> dict[str, Any]:
        sizes = wanted[process][axis]
        return along(axis, sizes, [times[str((process, size))].median for size in sizes])

    return {"scaling": {process: {axis: line(process, axis) for axis in axes} for process, axes in wanted.items()}}


def _sizes(process: str, axis: str, factors: Sequence[float]) -> list[Size]:
    base = BASE[process]
    return [base._replace(**{axis: max(1, round(getattr(base, axis) * factor))}) for factor in factors]


def along(axis: str, sizes: list[Size], seconds: list[float]) -> dict[str, Any]:
    """One line of the figure."""
    values = [getattr(size, axis) for size in sizes]
    largest = slice(-LARGEST, None)
    return {
        "sizes": values,
        "seconds": seconds,
        "exponent": timing.exponent(values[largest], seconds[largest]),
        "exponent over all": timing.exponent(values, seconds),
    }


def _fitted(line: Mapping[str, Any]) -> str:
    """The sizes that the exponent is of."""
    fitted = line["sizes"][-LARGEST:]
    return f"{fitted[0]:,} to {fitted[-1]:,}"


def plot(scaling: Mapping[str, Any]) -> Figure:
    """Cost against size, both relative to the smallest, a panel for each axis; exponents in the legend, linear cost dashed."""
    measured = next(iter(scaling.values()))
    with figures.style():
        figure, axes = figures.panels(len(measured), width=2.8)
        for ax, axis in zip(axes[0], measured, strict=True):
            largest = 1.0
            for process, marker, color in zip(scaling, "os", figures.PREFERENCE_COLORS, strict=False):
                line = scaling[process][axis]
                sizes, seconds = (np.asarray(line[x], float) for x in ("sizes", "seconds"))
                name = f"{process}, {_fitted(line)}: {line['exponent']:.2f}"
                ax.plot(sizes / sizes[0], seconds / seconds[0], f"{marker}-", ms=4, color=color, label=name)
                largest = max(largest, sizes[-1] / sizes[0])
            ax.plot([1, largest], [1, largest], color="0.4", lw=0.8, ls="--", label="linear")
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_major_formatter("{x:.4g}")
            ax.set_xlabel(f"{AXES[axis]} / smallest")
            # Room above the lines, where the legend hides none of them.
            low, high = ax.get_ylim()
            ax.set_ylim(low, high * (high / low) ** 0.4)
            ax.legend(title="fitted exponents", loc="upper left", fontsize=7.5, title_fontsize=7.5)
        axes[0, 0].set_ylabel("time / that of the smallest")
        return figure


def table(content: Mapping[str, Any]) -> Table:
    """Exponents alone."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("time grows like size to the power", no_wrap=True)
    for process in content["scaling"]:
        shown.add_column(process, justify="right", no_wrap=True)
    for axis in next(iter(content["scaling"].values())):
        lines = [axes[axis] for axes in content["scaling"].values()]
        shown.add_row(AXES[axis], *(f"{x['exponent']:.2f} ({_fitted(x)})" for x in lines))
    return shown


def save(figure: Figure, path: Path) -> None:
    """As PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    report.main("scaling", __doc__, measure, table)
