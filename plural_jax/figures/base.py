"""One style for every figure: colour-blind safe, readable in print, one colour for each preference everywhere."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.colors
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Colours of preferences 1, 2, 3, ... (Okabe and Ito's palette, without its yellow, which vanishes in print).
PREFERENCE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
#: Perceptually uniform map for an ordered parameter, such as distance or pool size, and for densities.
SEQUENCE_MAP = "viridis"
DENSITY_MAP = "magma"

_STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.prop_cycle": cycler(color=PREFERENCE_COLORS),
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,  # text stays text in the PDF
}


@contextmanager
def style() -> Iterator[None]:
    """The project's style, for the duration of a block; the user's own settings stay as they are."""
    # Only our own keys: `rc_context` would also undo a backend that a notebook activates inside the block.
    before = {name: mpl.rcParams[name] for name in _STYLE}
    mpl.rcParams.update(_STYLE)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def panels(
    columns: int, rows: int = 1, *, width: float = 3.1, height: float = 2.7, **kwargs: Any
) -> tuple[Figure, Any]:
    """A figure of equal panels that belongs to no window system; axes as a 2-D array of [rows, columns]."""
    figure = Figure(figsize=(width * columns, height * rows))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def sequence_colors(count: int, name: str = SEQUENCE_MAP, last: float = 0.9) -> list[Any]:
    """Colours for `count` ordered values from a map of matplotlib's, dark to bright, without the palest end."""
    colors = mpl.colormaps[name]
    return [colors(last * i / max(1, count - 1)) for i in range(count)]


def listed(count: int) -> Any:
    """A map of `count` separate colours for counts 1, 2, ..., `count`."""
    return mpl.colors.ListedColormap(sequence_colors(count))


def caption(figure: Figure, text: str) -> None:
    """The parameters of a figure, in small type below it, broken to its width."""
    columns = int(figure.get_figwidth() * 15)
    figure.supxlabel("\n".join(textwrap.wrap(text, columns)), fontsize=8, color="0.35")


def share_labels(axes: Any, xlabel: str, ylabel: str) -> None:
    """Label the outer axes of a panel grid: x on the last row, y on the first column."""
    for ax in axes[-1, :]:
        ax.set_xlabel(xlabel)
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)


def density_image(ax: Axes, x: Any, y: Any, density: Any) -> Any:
    """A 2-D density as an image, brightest at its own maximum; density [len(x), len(y)]."""
    image = ax.imshow(
        density.T, origin="lower", extent=(x[0], x[-1], y[0], y[-1]), cmap=DENSITY_MAP, aspect="equal", vmin=0
    )
    ax.grid(False)
    return image
