"""The page around the parts: contents, headings, and a head that lets a browser load nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from plural_jax.report import options, parts, pieces
from plural_jax.report.folders import Answer, RunFolder
from plural_jax.report.style import STYLE

# The policy forbids scripts and everything from elsewhere; the icon is what a browser would ask a server for.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title} · plural_jax</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<div class="layout">
<nav class="contents" aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ol>
{contents}</ol>
</nav>
<main id="content">
<header class="top">
<h1>{title}</h1>
<p class="lead">What becomes of a generative model that is retrained on its own samples, curated by several preferences at once:
what was run, what came out, and what the paper’s theory says about it.</p>
</header>
"""

_FOOT = """<footer>
<p>Made by <code>plural-jax report</code> from the folders of the runs. Numbers of tables have four significant digits here, and
all of them in the CSV files.</p>
</footer>
</main>
</div>
</body>
</html>
"""


def page(runs: Sequence[RunFolder | Answer], *, audit: bool) -> str:
    """The whole page."""
    contents, sections = [], []
    if len(runs) > 1:
        contents.append('<li><a href="#glance">At a glance</a></li>\n')
        sections.append(_at_a_glance(runs))
    for i, run in enumerate(runs, 1):
        anchor = f"run-{i}"
        found = parts.of_answer(anchor, run) if isinstance(run, Answer) else parts.of_run(anchor, run, audit)
        inner = "".join(f'<li><a href="#{anchor}-{pieces.slug(t)}">{escape(t)}</a></li>\n' for t, _ in found)
        contents.append(f'<li><a href="#{anchor}">{escape(run.name)}</a>\n<ol>\n{inner}</ol>\n</li>\n')
        sections.append(_section(anchor, run, found))
    title = f"Report on {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs"
    head = _HEAD.format(title=escape(title), style=STYLE, contents="".join(contents))
    return head + "".join(sections) + _FOOT


def _about(run: RunFolder | Answer) -> str:
    """What a run is, in a line."""
    if isinstance(run, Answer):
        return {
            "limit": "where retraining on these preferences ends, exactly, with a certificate",
            "audit": "which of the paper’s assumptions and results hold for these preferences",
        }[run.command]
    return "an experiment that this version does not have" if run.experiment is None else run.experiment.title


def _section(anchor: str, run: RunFolder | Answer, found: parts.Parts) -> str:
    kind = f"plural-jax {run.command}" if isinstance(run, Answer) else f"experiment {run.title}"
    body = []
    for title, text in found:
        own = f"{anchor}-{pieces.slug(title)}"
        body.append(f'<section aria-labelledby="{own}">\n<h3 id="{own}">{escape(title)}</h3>\n{text}</section>\n')
    return (
        f'<section class="run" aria-labelledby="{anchor}">\n<p class="kind">{escape(kind)}</p>\n'
        f'<h2 id="{anchor}">{escape(run.name)}</h2>\n<p class="lead">{escape(pieces.sentence(_about(run)))}</p>\n'
        f"{''.join(body)}</section>\n"
    )


def _at_a_glance(runs: Sequence[RunFolder | Answer]) -> str:
    rows = []
    for i, run in enumerate(runs, 1):
        changed, device = "", ""
        if isinstance(run, RunFolder):
            device = f"{run.versions.get('device', '')}, jax {run.versions.get('jax', '')}"
            found = options.options(run.experiment and run.experiment.config, run.config, {})
            changed = "; ".join(f"{o.name}: {o.value}" for o in found if o.changed) or "none"
        cells = [escape(text) for text in (_about(run), changed, device)]
        rows.append(pieces.row([f'<a href="#run-{i}">{escape(run.name)}</a>', *cells]))
    return (
        '<section class="run" aria-labelledby="glance">\n<h2 id="glance">At a glance</h2>\n'
        + pieces.table(
            "glance-runs", "The runs of this page", ["run", "what it is", "options changed", "computed on"], rows
        )
        + "</section>\n"
    )
