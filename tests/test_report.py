"""`plural-jax report`: one page that holds everything, loads nothing, and is the same for the same folders."""

import base64
import dataclasses
import html
import json
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tyro

from plural_jax import cli, commands, report
from plural_jax.experiments import EXPERIMENTS, SWEEP, execute, sweep
from plural_jax.report import audits, folders, options, pieces

pytestmark = pytest.mark.end_to_end

VOID = {"meta", "link", "img", "br"}
#: Text that would be markup, where a table may hold it.
HOSTILE = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Reads a page and complains about what is not well-formed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        assert len(known) == len(attrs), (tag, attrs)
        self.tags.append((tag, known))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def edit(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny finished sweep."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = sweep.Config(phi=(0.3, 0.5), distance=(2.0, 4.0), pool_size=(2.0, float("inf")), num=20, num_steps=3)
    execute(SWEEP, config, folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """The same, to be spoiled."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What `audit` and `limit` write."""
    folder = tmp_path_factory.mktemp("answers")
    for command, more in (("audit", ["--num-steps", "20"]), ("limit", [])):
        words = [command, "--num", "30", "--phi", "0.4", "0.6", *more, "--out", str(folder / f"{command}.json")]
        assert cli.main(words) == 0
    return folder


@pytest.fixture(scope="module")
def text(run, answers):
    """The page about all three."""
    return report.build([run, answers / "audit.json", answers / "limit.json"])


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_well_formed_and_accessible(text, page):
    assert text.startswith("<!DOCTYPE html>\n") and page.all("html") == [{"lang": "en"}]
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(identifiers)) == len(identifiers)
    for _, attrs in page.tags:
        for name in ("aria-labelledby", "href"):
            if attrs.get(name, "").startswith("#") or name == "aria-labelledby":
                assert name not in attrs or attrs[name].removeprefix("#") in identifiers
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1 and max(np.diff([1, *levels[levels.index(1) :]])) <= 1
    assert all(attrs["scope"] in ("col", "row", "rowgroup") for attrs in page.all("th"))
    images = page.all("img")
    assert images and all(len(image["alt"]) > 20 and int(image["width"]) > 0 for image in images)
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_nothing_is_loaded(text, page):
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert not page.all("script")


def test_everything_of_the_run_is_there(run, page):
    assert "plural-jax sweep --phi 0.3 0.5 --distance 2 4 --pool-size 2 inf --num 20 --num-steps 3 --x64" in page.text
    assert "Weight of basin 1, a/(a+b), after 3 rounds; columns are phi." in page.text
    rows = (run / "weight.csv").read_text().splitlines()
    for value in rows[1].split(",")[2:]:
        assert f"{float(value):.4g}" in page.text
    shown = [base64.b64decode(image["src"].partition("base64,")[2]) for image in page.all("img")]
    assert shown == [(run / "sweep.png").read_bytes()]
    for name, value in json.loads((run / "versions.json").read_text()).items():
        assert name in page.text and value in page.text
    assert "outside_mass" in page.text and "phi × distance × pool_size × step" in page.text
    assert "5 options differ from their defaults" in page.text
    assert "Candidates per draw, K >= 2; inf is the large-K limit." in page.text


def test_what_the_sweep_animates_is_what_it_ran(run):
    dataset = folders.read_folder(run).dataset.sel(phi=0.3, distance=4.0, pool_size=2.0)
    movie = SWEEP.movie(folders.read_folder(run).dataset)
    assert movie.log_p.shape == (4, 20) and movie.steps.tolist() == [0, 1, 2, 3] and movie.optima == [-2.0, 2.0]
    np.testing.assert_allclose(np.exp(movie.log_p[0]), 1 / 20, rtol=1e-5)
    p = np.exp(movie.log_p[1:])
    np.testing.assert_allclose(-(p * np.log(p)).sum(axis=1), dataset.entropy.values, rtol=1e-4)
    assert "φ = 0.3, distance 4, K = 2; bump rewards, height 5" in movie.caption


def test_what_the_audit_says(answers, page, text):
    found = json.loads((answers / "audit.json").read_text())
    assert found["results"]["Lemma 4"]["note"] in page.text
    assert "plural-jax audit --phi 0.4 0.6 --num 30 --num-steps 20" in page.text
    assert "plural-jax limit --phi 0.4 0.6 --num 30" in page.text
    assert "in 2 of its configurations at φ = 0.5, followed for 1,000 rounds" in page.text
    assert "About finite pools it says nothing." in page.text
    # The sweep's audits: four columns of verdicts, as `theory.audit` gives them for these landscapes.
    config = {
        **options.plain_defaults(sweep.Config),
        "num": 20,
        "num_steps": 3,
        "phi": [0.3, 0.5],
        "distance": [2.0, 4.0],
    }
    for label, audit in audits.audits("sweep", config, {}):
        assert label["φ"] == 0.5 and html.escape(audit["separation"].note, quote=False) in html.escape(page.text, False)
    for mass in (atom["mass"] for atom in json.loads((answers / "limit.json").read_text())["atoms"]):
        assert f"{mass:.4g}" in page.text


def test_equal_folders_give_equal_bytes(run, copy, tmp_path):
    same = tmp_path / "other" / "tiny"
    shutil.copytree(copy, same)
    words = ["report", str(run), "--no-audit", "--out"]
    assert cli.main([*words, str(tmp_path / "new" / "one.html")]) == 0
    first = (tmp_path / "new" / "one.html").read_bytes()
    assert first == report.build([same], audit=False).encode()
    assert cli.main([*words, str(tmp_path / "new" / "one.html")]) == 0  # replaces its own page
    assert b"What the audit says" not in first and str(tmp_path).encode() not in first


def test_what_comes_from_outside_is_escaped(copy):
    folder = copy.rename(copy.with_name("<b>&'\""))
    (folder / "table.txt").write_text(f"{HOSTILE}\n\nx  text\n1  {HOSTILE}\n")
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    (folder / "weight.csv").write_text(f"x,{quoted}\n1,{quoted}\n")
    edit(folder / "versions.json", lambda v: v.update({HOSTILE: HOSTILE}))
    edit(folder / "config.json", lambda v: v.update({HOSTILE: HOSTILE, "start": HOSTILE}))
    (folder / "sweep.png").rename(folder / "<i>.png")
    found = report.build([folder, folder], audit=False)
    page = Page(found)
    assert not page.all("script") and not page.all("b") and not page.all("i")
    assert page.text.count(HOSTILE) >= 6 and "<b>&'\"" in page.text
    assert "No option says" in page.text
    (command, *_) = [line for line in page.text.splitlines() if line.startswith("plural-jax sweep")]
    assert shlex.split(command)[shlex.split(command).index("--start") + 1] == HOSTILE


def test_a_run_of_another_experiment(copy):
    edit(copy / "config.json", lambda v: v.update(experiment="mine"))
    page = Page(report.build([copy]))
    assert "This version has no experiment mine" in page.text and "Weight of basin 1" in page.text


def test_captions_go_to_their_tables(copy):
    # All three tables have the same columns: only their numbers tell which is which.
    page = Page(report.build([copy], audit=False))
    lines = [line for line in page.text.splitlines() if line.endswith(".csv")]
    assert [line.rpartition(" ")[2] for line in lines] == ["weight.csv", "outside.csv", "entropy.csv"]
    assert [line.partition(" ")[0] for line in lines] == ["Weight", "Mass", "Entropy"]
    (copy / "long.csv").write_text("a,b\n" + "".join(f"{i},{i / 7}\n" for i in range(300)))
    page = Page(report.build([copy], audit=False))
    assert "long long.csv; the first 200 of 300 rows" in page.text


def test_a_run_that_is_none_or_unfinished(copy, run, tmp_path, capsys):
    def refused(path, *messages, out=tmp_path / "x.html"):
        assert cli.main(["report", str(path), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("plural-jax: error: ") and error.count("\n") == 1
        assert all(message in error for message in messages), error
        assert not (tmp_path / "x.html").exists()

    refused(tmp_path / "nowhere", "run '", "nowhere' does not exist.")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is not the folder of a run, which has a config.json")
    refused(run.parent, f"it holds runs: plural-jax report {run}")
    (tmp_path / "words.json").write_text("[1, 2]")
    refused(tmp_path / "words.json", "is a file that neither `plural-jax limit --out` nor")
    refused(run / "sweep.png", "is a file that neither")
    refused(run, "exists and is no page; choose another file", out=tmp_path / "words.json")
    refused(run, "is a folder; name a file, such as", out=tmp_path)
    assert cli.main(["report"]) == 2 and "at least one run" in capsys.readouterr().err

    whole = (copy / "sweep.png").read_bytes()
    (copy / "sweep.png").write_bytes(whole[:-50])
    refused(copy, "is unfinished (sweep.png is cut off)", f"--x64 --out {copy} --resume` completes it")
    (copy / "sweep.png").unlink()
    refused(copy, "is unfinished (there is no figure)")
    (copy / "table.txt").unlink()
    refused(copy, "is unfinished (there is no table.txt)")
    (copy / "config.json").write_text("{}")
    refused(copy, "its config.json names no experiment")
    (copy / "config.json").write_text("{")
    refused(copy, "is not JSON")


def test_a_part_of_a_sweep_is_unfinished(tmp_path, capsys):
    config = sweep.Config(phi=(0.3, 0.5), distance=(2.0,), pool_size=(float("inf"),), num=20, num_steps=3, batch_size=1)
    execute(SWEEP, config, tmp_path / "part", part=(0, 2))
    with pytest.raises(ValueError, match=r"1 of 2 batches are missing.*--batch-size 1 --x64 --out .*part --resume`"):
        report.build([tmp_path / "part"])


@pytest.mark.parametrize("name", ["sweep", *EXPERIMENTS])
def test_the_command_says_the_configuration(name, rng):
    """The options of every experiment, changed at random, are read back by the command line as they were."""
    experiment = {**EXPERIMENTS, "sweep": SWEEP}[name]
    default = experiment.config()
    changed = {}
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if isinstance(value, bool):
            changed[field.name] = not value
        elif isinstance(value, float):
            changed[field.name] = float(rng.choice([rng.normal(), rng.normal() * 1e-6, 3.0, np.inf]))
        elif isinstance(value, int):
            changed[field.name] = int(rng.integers(1, 1000))
        elif isinstance(value, tuple) and not any(isinstance(v, str) for v in value):
            spaced = tuple(round(float(v), 12) for v in np.linspace(0.1, rng.integers(1, 9), 7))
            changed[field.name] = (tuple(rng.normal(size=5).tolist()), spaced, (0.5, np.inf))[rng.integers(3)]
        elif isinstance(value, tuple):
            changed[field.name] = value[::-1]
        elif value is None and "Path" in str(field.type):
            changed[field.name] = Path("a folder") / f"it's {rng.integers(9)}"
        elif value is None and "tuple" in str(field.type):
            changed[field.name] = ("one", "two words")
        elif value is None:
            changed[field.name] = int(rng.integers(1, 9))
    config = dataclasses.replace(default, **changed)
    plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    command, unsaid = options.command_line(experiment, plain)
    words = shlex.split(command)[2 if name == "sweep" else 3 :]
    assert not unsaid and tyro.cli(experiment.config, args=words) == config
    nothing, _ = options.command_line(experiment, options.plain_defaults(experiment.config))
    assert nothing == ("plural-jax sweep" if name == "sweep" else f"plural-jax run {name}")
    # Every option has its explanation.
    assert all(option.meaning for option in options.options(experiment.config, plain, {}))


def test_the_question_of_an_answer_is_kept(tmp_path):
    np.save(tmp_path / "rewards.npy", np.array([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]]))
    out = tmp_path / "limit.json"
    commands.answer(commands.Limit(rewards=tmp_path / "rewards.npy", phi=(0.5, 0.5), temperature=0.3, out=out))
    page = Page(report.build([out]))
    assert f"--phi 0.5 0.5 --rewards {tmp_path / 'rewards.npy'} --temperature 0.3" in page.text
    edit(out, lambda v: [v.pop(name) for name in ("command", "options")])  # as before the question was kept
    assert "How to reproduce it" not in Page(report.build([out])).text


@pytest.mark.parametrize("name", [*audits._LINE, *audits._PLANE])
def test_landscapes_are_those_of_the_experiments(name):
    experiment = {**EXPERIMENTS, "sweep": SWEEP}[name]
    config = options.plain_defaults(experiment.config)
    axes = {"phi": [0.2, 0.5], "distance": [1.0, 2.0, 3.0, 4.0, 6.0, 8.0]} if name == "c9" else {}
    found = audits.cases(name, config, axes)
    assert 1 <= len(found) <= 4
    for case in found:
        land = case.landscape()
        assert land.num_atoms <= 25_000 and case.label["φ"] <= 1
        d = case.label["distance"]
        # Each preference likes its own center best, as far as the grid has it, and they are as far apart as they should be.
        best = np.asarray(land.points)[np.asarray(land.rewards).argmax(axis=1)]
        spacing = np.ptp(np.asarray(land.points)[:, 0]) / (len(np.unique(np.asarray(land.points)[:, 0])) - 1)
        assert best[1, 0] - best[0, 0] == pytest.approx(d, abs=2 * spacing)
        assert np.isfinite(np.asarray(case.start(land))).any()


def test_cells():
    assert pieces.is_numeric(["1", "", "inf", "1e-3"]) and not pieces.is_numeric(["", "nan"])
    assert not pieces.is_numeric(["1", "x"])
    assert [pieces.cell(c) for c in ("-inf", "123456.0", "12345678.9", "False", "007")] == [
        "−∞", "123456", "1.235e+07", "no", "007",
    ]  # fmt: skip
    assert "✗" in pieces.verdict("fails") and "≤ 50" in pieces.verdict("holds for t <= 50")
