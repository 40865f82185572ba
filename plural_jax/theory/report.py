"""What an audit found: statements with verdicts and numbers, as a table and as plain Python."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

HOLDS = "holds"
FAILS = "fails"
NOT_CHECKED = "not checked"

#: Columns of the printed table.
WIDTH = 110


def holds_until(num_steps: int) -> str:
    """The verdict for what was checked over the run, and not beyond."""
    return f"holds for t <= {num_steps}"


def weakest(verdicts: Iterable[str]) -> str:
    """The verdict on several statements together: a failure outweighs what is not known, and that what is."""

    def strength(verdict: str) -> int:
        return {FAILS: 0, NOT_CHECKED: 1, HOLDS: 3}.get(verdict, 2)

    return min(verdicts, key=strength, default=HOLDS)


@dataclass(frozen=True)
class Statement:
    """A clause of Assumption 1 or a result of the paper, on one landscape.

    Attributes:
        name: what `audit[...]` and `to_dict` call it.
        source: where it stands in the paper.
        text: what it says, in a line.
        verdict: "holds" (proved for every round, with room left for rounding), "holds for t <= T" (checked in every round
            of the run, and not beyond), "fails" (with the number that breaks it) or "not checked". For a result this is
            the verdict on what it assumes: "fails" means that the paper promises nothing here, not that the conclusion
            is false.
        numbers: everything measured for it, by name.
        note: the numbers that matter, as a sentence.
    """

    name: str
    source: str
    text: str
    verdict: str
    numbers: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """An atom outside the basins, and what the preferences make of it in one round.

    Attributes:
        index: of the atom.
        coordinates: of the atom, or None where the landscape has no points.
        rewards: r_i there.
        shortfalls: r_i* - r_i, in units of reward; each exceeds eps.
        round: t.
        log_multiplier: log W_t there.
        contributions: phi_i e^(r_i / tau) / Z_i(t), whose sum is W_t.
        initial_mass, final_mass: p_0 and p_T there.
        kind: "compromise" where W_t >= 1 although no preference alone would keep the atom, "shoulder" where one would,
            "loses" where W_t < 1.
        preferences: indices (from 0) of the preferences that contribute at least a tenth of W_t.
    """

    index: int
    coordinates: tuple[float, ...] | None
    rewards: tuple[float, ...]
    shortfalls: tuple[float, ...]
    round: int
    log_multiplier: float
    contributions: tuple[float, ...]
    initial_mass: float
    final_mass: float
    kind: str
    preferences: tuple[int, ...]

    def __str__(self) -> str:
        where = "" if self.coordinates is None else f" at x = {numbers(self.coordinates)}"
        liked = ", ".join(f"r_{i + 1}" for i in self.preferences[:6]) + (", ..." if len(self.preferences) > 6 else "")
        kind = {
            "compromise": f"a compromise that {liked} keep together",
            "shoulder": f"on the shoulder of a basin, kept by {liked} alone"
            if len(self.preferences) == 1
            else f"on the shoulder of a basin, liked by {liked}",
            "loses": "losing mass",
        }[self.kind]
        gained = "won" if self.final_mass > self.initial_mass else "lost"
        return (
            f"atom {self.index}{where}, rewards {numbers(self.rewards)}, {numbers(self.shortfalls)} below the best: "
            f"{kind} (W = {power(self.log_multiplier)} in round {self.round}); it {gained} mass in the run, "
            f"{number(self.initial_mass)} -> {number(self.final_mass)}"
        )


@dataclass(frozen=True)
class Audit:
    """What `pj.theory.audit` found. `print` it, index it by a statement's name, or take `to_dict()`.

    Attributes:
        phi, eps, temperature, num_steps: as given.
        num_preferences, num_atoms, dtype: of the landscape.
        assumptions: the clauses of Assumption 1.
        results: what the paper promises, with the verdict on what each result assumes.
        worst_cell: where W is largest outside the basins, over the run; None where no mass lies outside.
        winner: the outside atom with the most mass after the run, if it won mass; else None.
    """

    phi: tuple[float, ...]
    eps: float
    temperature: float
    num_steps: int
    num_preferences: int
    num_atoms: int
    dtype: str
    assumptions: tuple[Statement, ...]
    results: tuple[Statement, ...]
    worst_cell: Cell | None
    winner: Cell | None

    def __getitem__(self, name: str) -> Statement:
        for statement in self.assumptions + self.results:
            if statement.name == name:
                return statement
        names = ", ".join(s.name for s in self.assumptions + self.results)
        raise KeyError(f"no statement {name!r} in this audit; there are: {names}")

    def to_dict(self) -> dict[str, Any]:
        """Everything as dictionaries, lists, strings, numbers and None (for numbers that are not finite)."""

        def by_name(statements: tuple[Statement, ...]) -> dict[str, Any]:
            return {s.name: {k: v for k, v in asdict(s).items() if k != "name"} for s in statements}

        own = {k: v for k, v in vars(self).items() if k not in ("assumptions", "results", "worst_cell", "winner")}
        cells = {
            k: None if c is None else asdict(c) for k, c in (("worst_cell", self.worst_cell), ("winner", self.winner))
        }
        return _plain({**own, "assumptions": by_name(self.assumptions), "results": by_name(self.results), **cells})

    def __str__(self) -> str:
        head = (
            f"Audit of {self.num_preferences} preferences on {self.num_atoms} atoms ({self.dtype}): "
            f"phi = {numbers(self.phi)}, eps = {number(self.eps)}, temperature = {number(self.temperature)}, "
            f"{self.num_steps} rounds of an infinite pool"
        )
        foot = (
            "holds: proved for every round. holds for t <= T: checked in every round of the run, not beyond. For a result, "
            "the verdict is on what it assumes: where that fails, the paper promises nothing."
        )
        parts = [
            Text(head),
            _table("Assumption 1", self.assumptions),
            *(Text(f"{name}: {cell}\n") for name, cell in self._cells()),
            _table("Results", self.results),
            Text(foot),
        ]
        return as_text(*parts)

    def _cells(self) -> list[tuple[str, Cell]]:
        cells = []
        if self.worst_cell is not None and self["outside domination"].verdict == FAILS:
            cells.append(("Largest W outside", self.worst_cell))
        if self.winner is not None:
            cells.append(("Most mass outside at the end", self.winner))
        return cells


def as_text(*parts: Any) -> str:
    """What rich would print, without colors and trailing blanks, in `WIDTH` columns."""
    written = io.StringIO()
    console = Console(file=written, width=WIDTH, color_system=None, force_terminal=False, highlight=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def _table(title: str, statements: tuple[Statement, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column(title, width=24)
    table.add_column("verdict", width=18)
    table.add_column("what and how much")
    for s in statements:
        name = f"{s.source} {s.name}" if s.source.startswith("(") else s.name
        table.add_row(Text(name), Text(s.verdict), Text(f"{s.text}.\n{s.note}".strip()))
    return table


def number(value: Any) -> str:
    """A number of any library with four digits."""
    return f"{value:.4g}"


def numbers(values: Any) -> str:
    """A list of numbers, shortened."""
    shown = [number(v) for v in values]
    return "[" + ", ".join(shown if len(shown) <= 6 else [*shown[:4], "...", shown[-1]]) + "]"


def power(log: float) -> str:
    """e^log, also where it does not fit a float."""
    return number(math.exp(log)) if abs(log) < 600 else f"e^{log:.4g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
