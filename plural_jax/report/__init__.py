"""`plural-jax report RUN...`: one page about one or several runs, made from what their folders hold and from nothing else.

A run is a folder that `execute` left, or the JSON file of `plural-jax limit --out` and `plural-jax audit --out`. Equal folders
give equal bytes: the page has no date, no path and no version but those in the folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from plural_jax.report import folders, page

__all__ = ["Report", "build", "write"]


@dataclass(frozen=True)
class Report:
    """One HTML page about runs, with everything in it: it opens without a network and can be sent by mail."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]]
    """Folders of finished runs, and files that `limit --out` or `audit --out` wrote."""
    out: Path = Path("report.html")
    """The page; what is there is replaced."""
    audit: bool = True
    """Audit the landscapes behind the runs, a few configurations of each."""


def write(command: Report) -> str:
    """Make the page and say where it is.

    Raises:
        ValueError: no run, a run that is none or is unfinished, or a page that cannot be where it should.
    """
    if command.out.is_dir():
        raise ValueError(f"out={str(command.out)!r} is a folder; name a file, such as {command.out / 'report.html'}.")
    if command.out.exists() and not command.out.read_bytes().lstrip()[:15].lower().startswith(b"<!doctype html>"):
        raise ValueError(f"out={str(command.out)!r} exists and is no page; choose another file.")
    content = build(command.runs, audit=command.audit).encode()
    command.out.parent.mkdir(parents=True, exist_ok=True)
    command.out.write_bytes(content)
    return f"The report is {command.out} ({len(content) / 1e6:.1f} MB, everything in one file).\n"


def build(runs: Sequence[str | Path], *, audit: bool = True) -> str:
    """The page about these runs.

    Args:
        runs: folders of finished runs, and files of `limit` and `audit`.
        audit: whether to audit the landscapes behind the runs.

    Returns:
        HTML with everything in it.

    Raises:
        ValueError: no run, or one that is none or is unfinished.
    """
    if not runs:
        raise ValueError("report needs at least one run, such as: plural-jax report runs/sweep")
    found = [folders.read(Path(run)) for run in runs]  # all of them, before anything is computed
    return page.page(found, audit=audit)
