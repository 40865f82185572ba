"""An audit as HTML: the verdicts of several configurations side by side, and each statement with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from plural_jax.report import pieces
from plural_jax.theory.report import FAILS, Cell

_MEANING = (
    "<em>holds</em>: proved for every round. <em>holds for t ≤ T</em>: checked in every round of the run, not beyond. For a "
    "result, the verdict is on what it assumes: where that <em>fails</em>, the paper promises nothing; the conclusion may "
    "still be true."
)

#: The number that says most about a statement: how it is called, and where its value is.
_KEY = {
    "initial mass": ("least p₀(Sᵢ)", lambda n: min(n["initial_mass"])),
    "outside domination": ("sup W", lambda n: n["rho_over_run"]),
    "separation": ("largest κ", lambda n: n["largest_kappa"]),
    "decay": ("m_T", lambda n: n["outside_mass"]),
}

Labelled = tuple[str, dict[str, Any]]


def overview(anchor: str, found: Sequence[Labelled]) -> str:
    """Verdicts: a row for each statement, a column for each audit.

    Args:
        anchor: what identifiers begin with.
        found: for each audit what to call it, and what `Audit.to_dict` gives.
    """
    groups = []
    for group, title in (("assumptions", "Assumption 1"), ("results", "Results")):
        names = list(dict.fromkeys(name for _, plain in found for name in plain[group]))
        rows = "".join(_row(group, name, found) for name in names)
        head = f'<tr><th class="group" scope="rowgroup" colspan="{len(found) + 2}">{title}</th></tr>\n'
        groups.append(f"<tbody>\n{head}{rows}</tbody>\n")
    columns = ["statement", "what it says", *(label for label, _ in found)]
    return pieces.table(f"{anchor}-verdicts", "Verdicts", columns, groups) + f'<p class="soft">{_MEANING}</p>\n'


def _row(group: str, name: str, found: Sequence[Labelled]) -> str:
    known = [plain[group].get(name) for _, plain in found]
    first = next(statement for statement in known if statement is not None)
    cells = [escape(_called(name, first)), escape(first["text"])]
    for statement in known:
        cells.append("" if statement is None else pieces.verdict(statement["verdict"]) + _key(name, statement))
    return pieces.row(cells, ["", "says", *([""] * len(found))])


def _called(name: str, statement: dict[str, Any]) -> str:
    return f"{statement['source']} {name}" if statement["source"].startswith("(") else name


def _key(name: str, statement: dict[str, Any]) -> str:
    if name not in _KEY:
        return ""
    title, take = _KEY[name]
    try:
        value = take(statement["numbers"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f' <span class="key">{title} = {pieces.number(value)}</span>'


def full(anchor: str, label: str, plain: dict[str, Any]) -> str:
    """One audit with everything that it measured."""
    groups = []
    for group, title in (("assumptions", "Assumption 1"), ("results", "Results")):
        rows = "".join(
            pieces.row(
                [
                    escape(_called(name, statement)),
                    pieces.verdict(statement["verdict"]),
                    f"{escape(statement['text'])}.<br>{escape(statement['note'])}",
                ]
            )
            for name, statement in plain[group].items()
        )
        head = f'<tr><th class="group" scope="rowgroup" colspan="3">{title}</th></tr>\n'
        groups.append(f"<tbody>\n{head}{rows}</tbody>\n")
    title = (
        f"{plain['num_preferences']} preferences on {plain['num_atoms']:,} atoms ({plain['dtype']}), eps = {plain['eps']:g}, "
        f"temperature {plain['temperature']:g}, {plain['num_steps']:,} rounds of an infinite pool"
    )
    columns = ["statement", "verdict", "what and how much"]
    heading = f"{label}: {title}" if label else title
    return pieces.table(f"{anchor}-statements", escape(heading), columns, groups) + _cells(plain)


def _cells(plain: dict[str, Any]) -> str:
    """Where the multiplier is largest outside the basins, and where most mass stays outside."""
    shown = []
    broken = plain["assumptions"].get("outside domination", {}).get("verdict") == FAILS
    for name, title in (("worst_cell", "Largest W outside"), ("winner", "Most mass outside at the end")):
        if plain.get(name) is None or (name == "worst_cell" and not broken):
            continue
        try:
            text = str(Cell(**plain[name]))
        except TypeError:  # numbers that are not finite are None here
            continue
        shown.append(f"<p><strong>{title}:</strong> {escape(text)}.</p>\n")
    return "".join(shown)
