"""The parts of a report about one run, and about one answer of `limit` or `audit`."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import json
import re
import shlex
import struct
from html import escape
from typing import Any

import numpy as np
import xarray as xr

from plural_jax import commands
from plural_jax.report import audit_parts, audits, options, pieces
from plural_jax.report.folders import Answer, RunFolder, Table

#: Rows of a table that the page shows; the CSV file has them all.
_ROWS = 200
#: Pixels of a figure for one of the page: figures are saved with 200 to an inch.
_SHRINK = 2

Parts = list[tuple[str, str]]


def of_run(anchor: str, run: RunFolder, audit: bool) -> Parts:
    """Titles and HTML of all parts about a run.

    Args:
        anchor: what identifiers begin with.
        run: what its folder says.
        audit: whether to audit the landscapes behind it.
    """
    resolved = _resolved(run)
    parts = [("How to reproduce it", _reproduce(run)), ("Figures", _figures(run))]
    if run.tables:
        parts.append(("Tables", "".join(_table(f"{anchor}-table-{i}", t) for i, t in enumerate(run.tables, 1))))
    if audit and run.experiment is not None:
        complete = {**options.plain_defaults(run.experiment.config), **resolved, **run.config}
        found = audits.audits(run.title, complete, _axes(run.dataset))
        if found:
            parts.append(("What the audit says", _audits(anchor, run, found)))
    parts.append(("Configuration", _configuration(anchor, run, resolved)))
    parts.append(("Dataset", _dataset(anchor, run.dataset)))
    parts.append(("Versions", pieces.facts({name: str(value) for name, value in run.versions.items()})))
    return parts


def _resolved(run: RunFolder) -> dict[str, Any]:
    """The configuration in the dataset, in which a preset's numbers stand where `config.json` has none."""
    try:
        found = json.loads(run.dataset.attrs["config"])
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _axes(dataset: xr.Dataset) -> dict[str, list[float]]:
    names = [name for name in ("phi", "distance") if name in dataset.dims and name in dataset.coords]
    return {name: [float(value) for value in dataset[name].values] for name in names}


def _reproduce(run: RunFolder) -> str:
    if run.experiment is None:
        return f"<p>This version has no experiment <code>{escape(run.title)}</code>, so that no command is known.</p>\n"
    command, unsaid = options.command_line(run.experiment, run.config, x64=options.is_x64(run.dataset))
    if any(name == "animation" and _moves(content) for name, content in run.figures):
        command += " --animate"
    note = ""
    if unsaid:
        names = ", ".join(f"<code>{escape(name)}</code>" for name in unsaid)
        note = (
            f"<p>No option says {names} as it was here: the run was started from Python, or by another version.</p>\n"
        )
    known = {
        "rounds": str(run.dataset["step"].values[-1]) if "step" in run.dataset.coords else "",
        "configurations": _configurations(run),
        "computed on": str(run.versions.get("device", "")),
        "plural_jax": str(run.versions.get("plural_jax", "")),
        "jax": str(run.versions.get("jax", "")),
    }
    about = importlib.import_module(run.experiment.config.__module__).__doc__ or ""
    folded = pieces.folded("About this experiment, in the library’s words for its defaults", pieces.paragraphs(about))
    return pieces.command(command) + note + pieces.facts(known) + folded


def _configurations(run: RunFolder) -> str:
    axes = [d for d in run.dataset.dims if d in run.config or f"{d}s" in run.config or d in ("arm", "seed", "baseline")]
    return ", ".join(f"{str(axis).replace('_', ' ')}: {run.dataset.sizes[axis]:,}" for axis in axes)


def _figures(run: RunFolder) -> str:
    shown = "" if run.experiment is None else (run.experiment.plot.__doc__ or "").strip().split("\n\n")[0]
    shown = " ".join(shown.split())
    lead = f"<p>{pieces.prose(shown)}</p>\n" if shown else ""
    return lead + "".join(_figure(run, name, content, shown) for name, content in run.figures)


def _figure(run: RunFolder, name: str, content: bytes, shown: str) -> str:
    label = re.sub(r"^figure(?=\d)", "figure ", name.replace("_", " "))
    label = label[:1].upper() + label[1:]
    alt = f"{label} of {run.title}{'' if run.experiment is None else ', ' + run.experiment.title}. {shown}".strip()
    size, kind, note = "", "png", f"for print: <code>{escape(name)}.pdf</code> in the run’s folder"
    if content[12:16] == b"IHDR":
        width, height = struct.unpack(">II", content[16:24])
        size = f' width="{width // _SHRINK}" height="{height // _SHRINK}"'
    if _moves(content):
        width, height = struct.unpack("<HH", content[6:10])
        size, kind = f' width="{width}" height="{height}"', "gif"
        note = f"a density round by round: <code>{escape(name)}.gif</code> in the run’s folder"
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure>\n<div class="paper"><img src="data:image/{kind};base64,{data}" alt="{escape(alt)}"{size}></div>\n'
        f"<figcaption><strong>{escape(label)}</strong> · {note}</figcaption>\n</figure>\n"
    )


def _moves(content: bytes) -> bool:
    """Whether it is a GIF."""
    return content[:6] in (b"GIF87a", b"GIF89a") and len(content) >= 10


def _table(anchor: str, table: Table) -> str:
    width = len(table.columns)
    kinds = ["n" if pieces.is_numeric(row[j] for row in table.rows) else "t" for j in range(width)]
    rows = [pieces.row([escape(pieces.cell(text)) for text in row], kinds) for row in table.rows[:_ROWS]]
    cut = f"; the first {_ROWS} of {len(table.rows):,} rows" if len(table.rows) > _ROWS else ""
    title = f'{escape(table.caption)} <span class="file">{escape(table.name)}.csv{cut}</span>'
    return pieces.table(anchor, title, table.columns, rows, kinds)


def _audits(anchor: str, run: RunFolder, found: list[tuple[dict[str, float], Any]]) -> str:
    labels = [label for label, _ in found]
    shared = {n: v for n, v in labels[0].items() if len(labels) > 1 and all(label[n] == v for label in labels)}
    labelled = [
        (_named({n: v for n, v in label.items() if n not in shared}), audit.to_dict()) for label, audit in found
    ]
    where = "in one configuration" if len(found) == 1 else f"in {len(found)} of its configurations"
    text = (
        "<p>Which clauses of Assumption 1 the rewards behind this run meet, and which of the paper’s results therefore apply; "
        f"{where}{f' at {_named(shared)}' if shared else ''}, followed for {found[0][1].num_steps:,} rounds with infinitely "
        "many candidates, and beside the exact limit."
    )
    sizes = run.dataset["pool_size"].values if "pool_size" in run.dataset.coords else np.array([np.inf])
    if np.isfinite(sizes).any():
        text += " About finite pools it says nothing."
    details = "".join(
        pieces.folded(f"{label}: every number", audit_parts.full(f"{anchor}-audit-{i}", label, plain))
        for i, (label, plain) in enumerate(labelled, 1)
    )
    return f"{text}</p>\n{audit_parts.overview(f'{anchor}-audit', labelled)}{details}"


def _named(label: dict[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in label.items())


def _configuration(anchor: str, run: RunFolder, resolved: dict[str, Any]) -> str:
    return _option_table(anchor, options.options(run.experiment and run.experiment.config, run.config, resolved))


def _option_table(anchor: str, found: list[options.Option]) -> str:
    rows = []
    for option in found:
        mark = ' <span class="mark">changed</span>' if option.changed else ""
        cells = [f"<code>{escape(option.name)}</code>{mark}", escape(option.value), escape(option.default)]
        rows.append(pieces.row([*cells, pieces.prose(option.meaning)], changed=option.changed))
    count = sum(option.changed for option in found)
    title = {0: "All options have their defaults", 1: "One option differs from its default"}.get(
        count, f"{count} options differ from their defaults"
    )
    return pieces.table(f"{anchor}-options", title, ["option", "value", "default", "what it is"], rows)


def _dataset(anchor: str, dataset: xr.Dataset) -> str:
    dims = [
        pieces.row([escape(str(name)), f"{size:,}", escape(_values(dataset, str(name)))], ["t", "n", "t"])
        for name, size in dataset.sizes.items()
    ]
    variables = [
        pieces.row([f"<code>{escape(str(name))}</code>", escape(" × ".join(map(str, v.dims))), escape(str(v.dtype))])
        for name, v in sorted(dataset.data_vars.items(), key=lambda item: str(item[0]))
    ]
    size = f"{dataset.nbytes / 1e6:,.3g} MB" if dataset.nbytes >= 1e5 else f"{dataset.nbytes / 1e3:,.3g} kB"
    return (
        f"<p><code>dataset.zarr</code>, {size} of numbers: "
        '<code>xarray.open_zarr("dataset.zarr", consolidated=False)</code> opens it.</p>\n<div class="pair">\n<div>\n'
        + pieces.table(f"{anchor}-variables", "Variables", ["variable", "dimensions", "type"], variables)
        + "</div>\n<div>\n"
        + pieces.table(f"{anchor}-dimensions", "Dimensions", ["dimension", "size", "values"], dims, ["t", "n", "t"])
        + "</div>\n</div>\n"
    )


def _values(dataset: xr.Dataset, name: str) -> str:
    if name not in dataset.coords or dataset[name].ndim != 1 or not dataset[name].size:
        return ""
    values = [pieces.cell(str(value)) for value in dataset[name].values]
    return ", ".join(values) if len(values) <= 6 else f"{values[0]}, {values[1]}, …, {values[-1]}"


def of_answer(anchor: str, answer: Answer) -> Parts:
    """Titles and HTML of all parts about the file of `limit` or `audit`."""
    plain, parts = answer.plain, []
    asked = plain.get("options")
    kind = {"limit": commands.Limit, "audit": commands.Audit}[answer.command]
    if isinstance(asked, dict):
        words, _ = options.typed_options(kind, asked)
        shown = {"preferences": str(len(plain["phi"])), "atoms": f"{plain['num_atoms']:,}", "type": plain["dtype"]}
        text = shlex.join(["plural-jax", answer.command, *words])
        parts.append(("How to reproduce it", pieces.command(text) + pieces.facts(shown)))
    if answer.command == "audit":
        label = f"φ = {', '.join(f'{value:g}' for value in plain['phi'])}"
        parts.append(("What the audit says", audit_parts.overview(f"{anchor}-audit", [(label, plain)])))
        parts.append(("Every number", audit_parts.full(f"{anchor}-audit", "", plain)))
    else:
        parts.append(("The limit", _limit(anchor, plain)))
    if isinstance(asked, dict):
        known = [o for o in options.options(kind, asked, {}) if o.name in {f.name for f in dataclasses.fields(kind)}]
        parts.append(("Configuration", _option_table(anchor, [o for o in known if o.name != "out"])))
    return parts


def _limit(anchor: str, plain: dict[str, Any]) -> str:
    count = len(plain["phi"])
    points = "point" in plain["atoms"][0]
    columns = ["x" if points else "sample", "mass"]
    columns += [f"r{i}" for i in range(1, count + 1)] + [f"share of {i}" for i in range(1, count + 1)]
    rows = []
    for atom in plain["atoms"]:
        where = ", ".join(f"{value:.4g}" for value in atom["point"]) if points else str(atom["atom"])
        numbers = [atom["mass"], *atom["rewards"], *atom["shares"]]
        rows.append(pieces.row([escape(where), *(pieces.number(value) for value in numbers)], ["n"] * len(columns)))
    mean = ", ".join(pieces.number(value) for value in plain["reward_mean"])
    proof = f"no density has an F that is larger by more than {plain['gap']:.1e}"
    notes = [
        f"E[r] = {mean}; F = Σ φᵢ log E[exp(rᵢ/τ)] = {plain['objective']:.6g}.",
        f"Certificate: {proof}." if plain["converged"] else f"Not converged: so far, {proof}.",
        "A share near 1 makes an atom one preference’s own; shares near φ make it a compromise of all.",
    ]
    if not plain.get("unique", True):
        notes.insert(2, "It is not the only limit: others have the same F, and the start decides which is reached.")
    title = "Where the mass ends, the rewards there, and who asks for it"
    body = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    return pieces.table(f"{anchor}-atoms", title, columns, rows, ["n"] * len(columns)) + body
