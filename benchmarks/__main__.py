"""Every comparison in one run: a table of ratios, a roofline, a JSON of it all and a figure of how costs grow.

    python -m benchmarks [--quick] [--only NAME...] [--repeats N] [--out FOLDER]

Each benchmark runs in a process of its own, one after another, because they differ in precision, host devices and thread pools.
Peers that are not installed are left out. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import ceilings, report, scaling, timing
from benchmarks.roofline import roofline
from benchmarks.timing import Comparison

#: In the order in which they run: those that everything else is judged by come first.
NAMES = ("ceilings", "tilt", "finite_pool", "limit", "gaussian", "mixture", "sweep", "retraining", "scaling")
#: Of these, what a quick run leaves out: seconds of compiling for one number.
NOT_QUICK = ("retraining",)
#: Where a quick run writes, so that it does not take the place of the full run that is recorded.
QUICK_OUT = Path("runs/benchmarks")


def main() -> int:
    """Run, print, write; the number of benchmarks that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller workloads and fewer turns, under two minutes")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--repeats", type=int, help="turns of each contender (default: each benchmark's own)")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"folder of suite.json, suite.txt and scaling.png (default: the recorded results, or {QUICK_OUT} with --quick)",
    )
    args = parser.parse_args()
    folder = args.out or (QUICK_OUT if args.quick else report.RESULTS)
    # Child processes inherit it.
    report.quiet_threads()
    out = report.console()
    where = timing.machine()
    heading = report.heading(where)
    out.print(heading)
    results, failed = {}, 0
    start = time.perf_counter()
    for name in args.only or [n for n in NAMES if not (args.quick and n in NOT_QUICK)]:
        began = time.perf_counter()
        found = run_alone(name, args.quick, args.repeats)
        failed += found is None
        took = f"{time.perf_counter() - began:.0f} s"
        out.print(f"{name:12s} {took if found is not None else 'failed after ' + took}")
        if found is not None:
            results[name] = found
    out.print(f"{'together':12s} {time.perf_counter() - start:.0f} s\n")
    show(out, results)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "suite.txt").open("w") as file:
        in_file = Console(file=file, width=report.WIDTH, highlight=False)
        in_file.print(heading)
        show(in_file, results)
    content = {"machine": where, "quick": args.quick, "results": results, "roofline": roofline(results)}
    timing.write_json(folder / "suite.json", content)
    if "scaling" in results:
        scaling.save(scaling.plot(results["scaling"]["scaling"]), folder / "scaling.png")
    return failed


def run_alone(name: str, quick: bool, repeats: int | None) -> dict[str, Any] | None:
    """What one benchmark wrote, or None where it failed; what it printed is shown only then."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(file)]
        command += ["--quick"] if quick else []
        command += ["--repeats", str(repeats)] if repeats else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode or not file.exists():
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            return None
        return json.loads(file.read_text())


def show(out: Console, results: dict[str, dict[str, Any]]) -> None:
    """All tables, from what the benchmarks wrote."""
    comparisons = [Comparison.from_json(c) for found in results.values() for c in found.get("comparisons", [])]
    if comparisons:
        report.print_comparisons(out, comparisons)
    tables: list[Table] = []
    if "ceilings" in results:
        tables.append(ceilings.table(results["ceilings"]))
    if rows := roofline(results):
        tables.append(report.roofline_table(rows))
    if "scaling" in results:
        tables.append(scaling.table(results["scaling"]))
    for table in tables:
        out.print()
        out.print(table)


if __name__ == "__main__":
    sys.exit(main())
