"""The documentation keeps pace with the code: every public name, every experiment, every entry of its tables, every example."""

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import plural_jax as pj
from plural_jax import cli, experiments

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAPER = (DOCS / "paper.md").read_text()
#: Numbers of the paper that must have a row. Figures 8 and 9 with E10 and E11 have one that says they are not here.
NUMBERED = [
    "Definition 1",
    *(f"Assumption 1 ({clause})" for clause in ("i", "ii", "iii", "iv")),
    *(f"Assumption B.{i}" for i in (1, 4, 5, 6)),
    *(f"Equation {i}" for i in (*range(1, 6), "C.1", "C.2", "C.3")),
    "Remark 1",
    *(f"Lemma {i}" for i in (*range(1, 6), *(f"B.{j}" for j in range(1, 7)))),
    *(f"Corollary {i}" for i in (2, 8, "B.1", "B.5", "B.8")),
    *(f"Proposition {i}" for i in (4, "B.3")),
    *(f"Theorem {i}" for i in (3, 5, 6, 7, "B.2", "B.4", "B.6", "B.7")),
    *(f"Appendix {i}" for i in ("B.1", "B.4", *(f"C.{j}" for j in range(2, 9)), "C.9.1", "C.9.2", "C.9.3")),
    *(f"E{i}" for i in range(1, 12)),
    *(f"Table {i}" for i in (1, 3, 4, 5)),
    *(f"Figure {i}" for i in range(1, 16)),
]


def resolve(name):
    """The object that a dotted name of the package stands for."""
    found = pj
    for part in name.removeprefix("plural_jax.").split("."):
        found = getattr(found, part)
    return found


def public(module):
    """Public names of a module and of its public modules, as the reference writes them."""
    names = getattr(module, "__all__", None)
    if names is None:  # a module without the list shows what it defines
        defined = inspect.getmembers(module, lambda o: inspect.isfunction(o) or inspect.isclass(o))
        names = [n for n, o in defined if not n.startswith("_") and o.__module__ == module.__name__]
    for name in names:
        found = getattr(module, name)
        if inspect.ismodule(found):
            yield from public(found)
        elif not name.startswith("__"):
            yield f"{module.__name__}.{name}"


def rows(text):
    """Rows of the Markdown tables with four columns, as lists of cells."""
    found = [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in found if len(cells) == 4 and cells[1] != "What it says"]


def test_every_public_name_is_in_the_reference_once():
    written = re.findall(r"^::: (\S+)$", "\n".join(p.read_text() for p in DOCS.glob("reference/*.md")), re.MULTILINE)
    # A reader of the source alone takes a function that hides its module for the module, so it is written in full.
    shown = [re.sub(r"\.(\w+)\.\1$", r".\1", name) for name in written]
    hidden = [n for n in written if (ROOT / n.replace(".", "/")).with_suffix(".py").is_file()]
    assert not hidden, f"functions that hide their modules; write `::: MODULE.NAME.NAME`: {hidden}"
    names = [*public(pj), *public(experiments)]
    assert len(names) == len(set(names)) > 150
    missing, twice = set(names) - set(shown), {n for n in shown if shown.count(n) > 1}
    assert not missing, f"add a line `::: NAME` to a page of docs/reference for: {sorted(missing)}"
    assert not twice, f"these stand in docs/reference more than once: {sorted(twice)}"
    for name in shown:
        resolve(name)


def test_every_number_of_the_paper_has_a_row():
    numbers = [part for cells in rows(PAPER) for part in re.split(r", (?=[A-Z])", cells[0])]
    plain = {re.sub(r"^(Assumption)s ", r"\1 ", n) for n in numbers}
    assert not [n for n in NUMBERED if n not in plain]


def test_the_table_names_what_exists_and_where():
    modules = [importlib.import_module(f"plural_jax.experiments.{name}") for name in experiments._MODULES]
    homes = {f"run {module.EXPERIMENT.name}": module.__file__ for module in modules}
    homes |= {"sweep": inspect.getmodule(experiments.SWEEP.config).__file__}
    homes |= dict.fromkeys(("limit", "audit"), importlib.import_module("plural_jax.commands").__file__)
    for cells in rows(PAPER):
        wanted = {inspect.getmodule(resolve(name)).__file__ for name in re.findall(r"\]\[([\w.]+)\]", cells[2])}
        wanted |= {homes[command] for command in re.findall(r"`plural-jax ([\w -]+)`", cells[2])}
        assert wanted or "not here yet" in cells[2] or cells[2] == "see there", cells
        assert {str(ROOT / path) for path in re.findall(r"`([\w/]+\.py)`", cells[3])} == wanted, cells


def test_commands_and_experiments_are_listed():
    page = (DOCS / "commands.md").read_text()
    usage = re.findall(r"^  ([a-z-]+(?: NAME)?)\b", cli._USAGE, re.MULTILINE)
    assert len(usage) >= 6
    for command in usage:
        assert f"| `plural-jax {command}" in page, f"add `plural-jax {command}` to docs/commands.md"
    listed = dict(re.findall(r"^\| `(\w[\w-]*)` \| (.*) \|$", page, re.MULTILINE))
    assert listed == {name: found.title for name, found in experiments.EXPERIMENTS.items()}


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_commands_on_the_pages_exist(page):
    text = (DOCS / page).read_text()
    for command, rest in re.findall(r"plural-jax ([a-z-]+)((?: [\w./:-]+)*)", text):
        assert re.search(rf"^  {command}\b", cli._USAGE, re.MULTILINE), (page, command)
        name = rest.split()[0] if rest else ""
        if command == "run" and name != "NAME":
            experiments.get(name)


def test_links_between_pages_lead_somewhere():
    for path in DOCS.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for name in re.findall(r"\]\[(plural_jax[\w.]*)\]", text):
            resolve(name)
        for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", text):
            assert (path.parent / target).is_file(), (path, target)


def test_each_difference_shows_its_command():
    text = (DOCS / "differences.md").read_text()
    sections = re.split(r"^##+ ", text, flags=re.MULTILINE)[1:]
    told = [s for s in sections if len(s.splitlines()) > 1 and s.split("\n", 1)[1].strip()]
    without = {s.splitlines()[0] for s in told if "```" not in s}
    assert len(told) > 15
    assert without == {"Conditions that say nothing", "Not here yet", "Constants that the paper's text lost"}


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md") if "```python" in p.read_text()))
def test_python_on_the_pages_runs_as_written(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL):
            exec(compile(block, page, "exec"), names)
    if page == "index.md":
        assert np.abs(np.asarray(names["trace"].basin_mass[-1]) - [0.3, 0.7]).max() < 0.01
        assert np.abs(np.asarray(names["limit"].weights) - [0.3, 0.7]).max() < 0.01 and names["limit"].gap < 1e-5
    if page == "differences.md":  # the numbers that the page tells
        ends = [round(entropy, 2) for entropy in names["entropies"].values()]
        assert ends[:5] == [0.0, 0.0, 0.35, 0.62, 0.69] and ends[6] == 0.48
    if page == "own.md":
        assert (tmp_path / "long_run" / "run.json").is_file() and "host\n" in capsys.readouterr().out
        assert np.isfinite(names["ds"].basin_mass).all()
    if page == "concepts.md":
        assert names["found"]["Lemma 4"].verdict


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")),
    reason="builds the documentation, whose tools (the extra `docs`) are not installed",
)
def test_it_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "theory.html").read_text()
    assert 'id="plural_jax.theory.basin_weight_bounds"' in page
