"""Pieces of HTML that a report is made of. Whatever comes from outside is escaped here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from plural_jax.theory.report import FAILS, HOLDS, NOT_CHECKED

#: Rows from which on a table scrolls by itself.
_LONG = 40


def table(anchor: str, title: str, columns: Sequence[str], rows: Iterable[str], kinds: Sequence[str] = ()) -> str:
    """A table under its title, which names it; wide and very long ones scroll by themselves.

    Args:
        anchor: identifier of the title.
        title: HTML.
        columns: names, as text.
        rows: HTML of all rows, or of several `tbody`.
        kinds: for each column "n" for numbers or "t" for text; none: all text.
    """
    body = "".join(rows)
    long = " long" if body.count("<tr") > _LONG else ""
    if not body.startswith("<tbody"):
        body = f"<tbody>\n{body}</tbody>\n"
    heads = "".join(
        f'<th scope="col"{_class(kinds[j]) if kinds else ""}>{escape(name)}</th>' for j, name in enumerate(columns)
    )
    return (
        f'<p class="title" id="{anchor}">{title}</p>\n'
        f'<div class="scroll{long}" role="region" tabindex="0" aria-labelledby="{anchor}">\n'
        f'<table aria-labelledby="{anchor}">\n<thead>\n<tr>{heads}</tr>\n</thead>\n{body}</table>\n</div>\n'
    )


def row(cells: Sequence[str], kinds: Sequence[str] = (), changed: bool = False) -> str:
    """A row of a table; its first cell is its header.

    Args:
        cells: HTML.
        kinds: as of `table`.
        changed: whether it is to be noticed.
    """
    found = []
    for j, cell in enumerate(cells):
        kind = _class(kinds[j]) if kinds else ""
        found.append(f'<th scope="row"{kind}>{cell}</th>' if j == 0 else f"<td{kind}>{cell}</td>")
    return f"<tr{_class('changed') if changed else ''}>{''.join(found)}</tr>\n"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def is_numeric(cells: Iterable[str]) -> bool:
    """Whether a column holds numbers, apart from empty cells."""
    known = [cell for cell in cells if cell.strip() and cell not in ("True", "False")]
    return bool(known) and all(_number(cell) is not None for cell in known)


def cell(text: str) -> str:
    """A cell of a CSV file for a person to read: numbers with four significant digits.

    Example:
        >>> [cell(text) for text in ("0.123456", "12", "40.0", "inf", "", "True", "one 1.23456")]
        ['0.1235', '12', '40', '∞', '–', 'yes', 'one 1.23456']
    """
    if text in ("True", "False"):
        return "yes" if text == "True" else "no"
    if not text.strip():
        return "–"
    value = _number(text)
    if value is None or re.fullmatch(r"[+-]?\d+", text.strip()):
        return text
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


def number(value: Any) -> str:
    """A number of an answer in JSON, where None stands for one that is not finite."""
    return "–" if value is None else f"{value:.4g}"


def prose(text: str) -> str:
    """Text in which `backquotes` mark code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def paragraphs(text: str) -> str:
    """Paragraphs of a docstring."""
    return "".join(f"<p>{prose(' '.join(part.split()))}</p>\n" for part in text.strip().split("\n\n") if part.strip())


def sentence(text: str) -> str:
    """A title as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def slug(text: str) -> str:
    """A name that an identifier can hold."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def command(text: str) -> str:
    """A command line; a click selects all of it."""
    return f'<pre class="command" tabindex="0"><code>{escape(text)}</code></pre>\n'


def folded(summary: str, body: str) -> str:
    """What can be unfolded."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n{body}</details>\n"


def facts(known: dict[str, str]) -> str:
    """Short facts, side by side; empty ones are left out."""
    shown = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>\n" for k, v in known.items() if v)
    return f'<dl class="facts">\n{shown}</dl>\n' if shown else ""


def verdict(text: str) -> str:
    """An audit's verdict: a color, a sign and the words, so that no one of them is needed."""
    kind, sign = {HOLDS: ("holds", "✓"), FAILS: ("fails", "✗"), NOT_CHECKED: ("open", "?")}.get(text, ("run", "◐"))
    return (
        f'<span class="verdict {kind}"><span aria-hidden="true">{sign}</span> {escape(text.replace("<=", "≤"))}</span>'
    )
