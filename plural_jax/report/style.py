"""How a report looks: on a bright and a dark screen, on a narrow one, and in print."""

#: Colors are those of the figures (Okabe and Ito's), darkened or lightened until text in them is easy to read.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2430; --soft: #5a6675; --line: #dde2e8; --accent: #0064a0;
  --head: #eef2f6; --changed: #fff4d6; --code: #f0f3f7;
  --holds: #00694c; --holds-back: #dcf3ea; --run: #0064a0; --run-back: #e0effa;
  --fails: #a84200; --fails-back: #fde8da; --open: #55606e; --open-back: #eceff3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --text: #e6eaf0; --soft: #a3aebc; --line: #2f3945; --accent: #6cbcf0;
    --head: #222b36; --changed: #3b3313; --code: #11161d;
    --holds: #5fd3ae; --holds-back: #12352b; --run: #8cc8f2; --run-back: #15304a;
    --fails: #f5a26b; --fails-back: #43240f; --open: #b0bac6; --open-back: #2a323d;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
a { color: var(--accent); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible, pre:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px;
}
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .5rem 1rem; z-index: 2; }
.layout {
  display: grid; grid-template-columns: 13.5rem minmax(0, 1fr); max-width: 86rem; margin: 0 auto; gap: 2.5rem;
  padding: 0 1.5rem;
}
nav.contents {
  position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; padding: 2.6rem 0 2rem;
  font-size: .92rem;
}
nav.contents h2 {
  font-size: .78rem; letter-spacing: .07em; text-transform: uppercase; color: var(--soft); margin: 0 0 .6rem;
}
nav.contents ol { list-style: none; margin: 0; padding: 0; }
nav.contents > ol > li { margin-bottom: .9rem; }
nav.contents ol ol { border-left: 2px solid var(--line); margin: .2rem 0 0; }
nav.contents a { color: inherit; text-decoration: none; display: block; padding: .13rem 0; overflow-wrap: anywhere; }
nav.contents ol ol a { padding-left: .8rem; color: var(--soft); }
nav.contents a:hover { color: var(--accent); text-decoration: underline; }
nav.contents > ol > li > a { font-weight: 600; }
main { padding: 2.2rem 0 3rem; min-width: 0; }
header.top { margin-bottom: 2rem; }
h1, h2, h3, h4 { line-height: 1.25; text-wrap: balance; }
h1 { font-size: 2rem; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.55rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
h3 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
h4 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .5rem 0; max-width: 48rem; }
.lead { font-size: 1.1rem; color: var(--soft); }
.soft { color: var(--soft); font-size: .92rem; }
section.run {
  background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.8rem 2rem 2rem;
  margin-bottom: 2.2rem;
}
.kind {
  font-size: .78rem; letter-spacing: .07em; text-transform: uppercase; color: var(--accent); font-weight: 600;
  margin: 0 0 .3rem;
}
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1rem 0; padding: 0; }
.facts div { display: flex; flex-direction: column; }
.facts dt { font-size: .78rem; color: var(--soft); }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
code, pre {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88em;
}
.layout p code, .layout td code { overflow-wrap: anywhere; }
:not(pre) > code { background: var(--code); border-radius: 4px; padding: .08em .3em; }
pre.command {
  background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem; margin: .6rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: all;
}
pre.command::before { content: "$ "; color: var(--soft); user-select: none; }
figure { margin: 0 0 1.4rem; }
figure .paper {
  background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1rem; text-align: center;
}
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .45rem; }
figcaption strong { color: var(--text); }
.scroll { overflow: auto; border: 1px solid var(--line); border-radius: 8px; margin: 0 0 1.4rem; }
table {
  border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums;
}
.scroll.long { max-height: 40rem; }
.title { color: var(--text); font-weight: 600; margin: 1.2rem 0 .5rem; max-width: 60rem; }
.title .file { font-weight: 400; color: var(--soft); font-size: .85rem; }
th, td {
  padding: .32rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  background: var(--card);
}
tbody:last-child tr:last-child > * { border-bottom: 0; }
thead th {
  position: sticky; top: 0; z-index: 1; background: var(--head); white-space: nowrap; vertical-align: bottom;
}
tbody th { font-weight: 600; overflow-wrap: normal; position: sticky; left: 0; }
tbody th.group { background: var(--head); font-size: .82rem; color: var(--soft); }
.n { text-align: right; white-space: nowrap; }
td.t { white-space: pre-wrap; }
tbody tr:hover > * { background: var(--head); }
tr.changed > *, tbody tr.changed:hover > * { background: var(--changed); }
.mark {
  font-size: .75rem; font-weight: 600; border: 1px solid currentColor; border-radius: 99px; padding: 0 .45em;
  margin-left: .4em; white-space: nowrap;
}
.verdict {
  display: inline-block; border-radius: 99px; padding: .06rem .6rem; font-weight: 600; font-size: .84rem;
  white-space: nowrap;
}
.verdict.holds { color: var(--holds); background: var(--holds-back); }
.verdict.run { color: var(--run); background: var(--run-back); }
.verdict.fails { color: var(--fails); background: var(--fails-back); }
.verdict.open { color: var(--open); background: var(--open-back); }
.says { min-width: 13rem; }
.key { display: block; color: var(--soft); font-size: .82rem; white-space: nowrap; }
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem 1rem; margin: .7rem 0; }
details .scroll { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
.pair { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 0 2rem; }
footer { color: var(--soft); font-size: .88rem; }
@media (max-width: 62rem) {
  .layout { display: block; padding: 0 1rem; }
  nav.contents { position: static; max-height: none; padding: 1.4rem 0 0; }
  nav.contents ol ol { columns: 2; }
  section.run { padding: 1.2rem 1.1rem; }
  .pair { display: block; }
}
@media print {
  :root {
    color-scheme: light;
    --page: #fff; --card: #fff; --text: #000; --soft: #444; --line: #bbb; --accent: #000; --head: #f2f2f2; --changed: #fdf3d0;
    --code: #f6f6f6; --holds: #00553d; --holds-back: #fff; --run: #004d7a; --run-back: #fff; --fails: #8a3600; --fails-back: #fff;
    --open: #444; --open-back: #fff;
  }
  body { font-size: 10pt; }
  .layout { display: block; max-width: none; padding: 0; }
  nav.contents { position: static; max-height: none; padding: 0 0 1rem; }
  nav.contents ol ol { columns: 2; }
  main { padding: 0; }
  section.run { border: 0; padding: 0; }
  section.run + section.run { break-before: page; }
  .scroll, .scroll.long { overflow: visible; max-height: none; border: 0; }
  table { font-size: 8pt; }
  th, td { padding: .15rem .4rem; }
  thead th, tbody th { position: static; white-space: normal; }
  .verdict { padding: 0; }
  .key { white-space: normal; }
  th.group { break-after: avoid; }
  tr, figure, pre { break-inside: avoid; }
  figure .paper { border: 0; padding: 0; }
  figure img { max-height: 22cm; width: auto; }
  h2, h3, h4, .title { break-after: avoid; }
  details { border: 0; padding: 0; }
  details::details-content { display: block; content-visibility: visible; height: auto; }
}
"""
