"""The table that every benchmark prints, and the command line that they share."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from benchmarks.timing import Comparison

RESULTS = Path("benchmarks/results")
#: Characters in a line of a table that goes to a file.
WIDTH = 140
#: What a contender may need beyond the library itself -> how to get it.
PEERS = {
    "numba": "pip install 'plural_jax[benchmark]'",
    "cvxpy": "pip install 'plural_jax[benchmark]'",
    "sklearn": "pip install 'plural_jax[benchmark]'",
    "torch": "pip install torch",
}


def absent() -> str:
    """One line that says whose contenders are left out; empty where everybody is there."""
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return f"Not installed, so left out: {', '.join(missing)} ({'; '.join(dict.fromkeys(PEERS[n] for n in missing))})."


def heading(where: Mapping[str, Any]) -> str:
    """Where it was measured, and who is not there."""
    lines = [
        f"{where['cpu']}, {timing.cores()} cores, load {where['load_before']:.1f} before; NumPy on {where['blas']}."
    ]
    return "\n".join([*lines, absent(), ""] if absent() else [*lines, ""])


def print_comparisons(out: Console, comparisons: Sequence[Comparison]) -> None:
    """One table of ratios, and below it what was computed."""
    out.print(table(comparisons))
    for comparison in comparisons:
        out.print(f"[bold]{comparison.name}[/bold]: {'; '.join([comparison.workload, *comparison.notes])}.")


def table(comparisons: Sequence[Comparison]) -> Table:
    """Ratios with their quartiles; a rate only for the reference of each comparison, to tell its size."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("", no_wrap=True)
    for name in ("time, relative", "quartiles", "speed, relative", "of ceiling"):
        shown.add_column(name, justify="right", no_wrap=True)
    for comparison in comparisons:
        reference = comparison.rows[comparison.reference].median
        shown.add_row(f"[bold]{comparison.name}[/bold]")
        for name, ratio in comparison.ratios.items():
            label = f"  {name}"
            if name in comparison.scaled:
                label += f" (a part, times {comparison.scaled[name]:g})"
            if name == comparison.reference:
                rate = f"{amount(comparison.work / reference)} {comparison.unit}/s"
                cells = ["1", rate, "1"]
            else:
                cells = [short(ratio.median), f"{short(ratio.low)} to {short(ratio.high)}", short(1 / ratio.median)]
            fraction = comparison.fractions.get(name)
            shown.add_row(label, *cells, "" if fraction is None else f"{fraction:.2f}")
        shown.add_row("")
    return shown


def roofline_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Bounds in cell-steps a second."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    names = ("operations", "bytes", "bound by operations", "bound by bytes", "measured", "gap")
    shown.add_column("roofline, per cell-step", no_wrap=True)
    for name in names:
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        rates = [f"{amount(row[name])}/s" for name in names[2:5]]
        shown.add_row(row["workload"], f"{row['operations']:g}", f"{row['bytes']:.4g}", *rates, f"{row['gap']:.2f}")
    return shown


def short(value: float) -> str:
    """Three digits, whole numbers from a hundred on."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def amount(value: float) -> str:
    """A number with the prefix of its size: 9.1 G, 350 k."""
    for size, prefix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def console() -> Console:
    """Where tables go; as wide as they are when nobody looks at a terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)


def arguments(doc: str | None, name: str) -> argparse.Namespace:
    """The command line of one benchmark."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller workloads and fewer turns")
    parser.add_argument("--repeats", type=int, help="turns of each contender")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="where the JSON goes")
    return parser.parse_args()


def quiet_threads() -> None:
    """Threads of OpenMP that go on spinning after their loop would slow down whoever is measured next.

    Read when a library loads its OpenMP, so this comes before numba, PyTorch and scikit-learn are imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(
    name: str,
    doc: str | None,
    measure: Callable[[bool, int | None], Any],
    show: Callable[[Any], Any] | None = None,
    **config: Any,
) -> None:
    """Measure, print a table, write JSON.

    Args:
        name: of the module.
        doc: what `--help` says.
        measure: `(quick, repeats) -> comparisons`; repeats is None where the benchmark decides.
        show: makes a table of what `measure` returned, where that is not a list of comparisons but a dict for the JSON.
        **config: what JAX is set to before.
    """
    args = arguments(doc, name)
    quiet_threads()
    for option, value in config.items():
        jax.config.update(option, value)
    where = timing.machine()
    found = measure(args.quick, args.repeats)
    out = console()
    out.print(heading(where))
    if show is None:
        print_comparisons(out, found)
        found = {"comparisons": [c.to_json() for c in found]}
    else:
        out.print(show(found))
    timing.write_json(args.out, {"machine": where, "quick": args.quick, **found})
