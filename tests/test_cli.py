"""The command line: what a person types, and what comes back when it is wrong."""

import subprocess
import sys

import pytest

from plural_jax import cli, experiments
from plural_jax.experiments.axis import parse_axis


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["0.1:0.9:9"], (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        (["1", "2", "3", "5"], (1.0, 2.0, 3.0, 5.0)),
        (["2", "10", "inf"], (2.0, 10.0, float("inf"))),
        (["0:1:3", "4"], (0.0, 0.5, 1.0, 4.0)),
    ],
)
def test_axis_words(words, values):
    assert parse_axis(words) == values


@pytest.mark.parametrize("words", [["a"], ["1:2"], ["1:2:0"], ["1:2:3:4"], []])
def test_axis_words_refused(words):
    with pytest.raises(ValueError, match=r"neither a number nor START:STOP:NUM|at least one number"):
        parse_axis(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "e99"], "unknown experiment 'e99'; choose one of"),
        (["walk"], "unknown command 'walk'"),
        (["sweep", "--phi", "1.5"], "phi must not be negative, got"),
        (["sweep", "--pool-size", "1"], "pool_size must be at least 2"),
        (["sweep", "--temperature", "0"], "temperature must be positive"),
        (["sweep", "--num", "0"], "num (an empty grid has no cells) must be a whole number of at least 1, got 0"),
        (["sweep", "--batch-size", "0"], "batch_size must be a whole number of at least 1, got 0"),
        (["sweep", "--part", "0/16"], "--part must be K/N with 1 <= K <= N, such as 3/16, got '0/16'"),
        (["sweep", "--part", "17/16"], "--part must be K/N with 1 <= K <= N, such as 3/16, got '17/16'"),
        (["sweep", "--part", "half"], "--part must be K/N with 1 <= K <= N, such as 3/16, got 'half'"),
        (["sweep", "--part", "1/2", "--distributed"], "--part is for processes that know nothing of each other"),
        (["sweep", "--process-id", "1"], "--process-id needs --distributed, got --process-id 1 alone"),
        (["run", "c9", "--part", "1/2"], "experiment 'c9' is computed by one process; only 'sweep' is cut into parts"),
        (["run", "c9", "--num-steps", "0"], "num_steps must be a whole number of at least 1, got 0"),
        (["run", "phase", "--num-preferences", "1"], "num_preferences must be whole numbers of at least 2, got 1"),
        (["limit", "--phi", "0.3", "0.3"], "phi must sum to 1"),
        (["limit", "--rewards", "nowhere.csv"], "rewards='nowhere.csv' is not a file"),
        (["audit", "--eps", "-1"], "eps must not be negative"),
    ],
)
def test_one_sentence_and_no_traceback(words, message, tmp_path, capsys):
    if words[0] in ("sweep", "run"):
        words = [*words, *(["--out", str(tmp_path / "x"), "--devices", "1"] if words[1] != "e99" else [])]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("plural-jax: error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_unknown_option_exits_without_traceback(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", "--fi", "0.5"])
    assert stop.value.code == 2
    assert "--fi" in capsys.readouterr().err


def test_help_and_list(capsys):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    assert cli.main(["list"]) == 0
    assert "c9" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", "--help"])
    assert stop.value.code == 0
    assert "--pool-size" in capsys.readouterr().out


@pytest.mark.end_to_end
def test_sweep_from_the_command_line(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = ["sweep", "--phi", "0.3:0.7:2", "--distance", "2", "--pool-size", "inf", "--num", "20", "--num-steps", "3"]
    words += ["--out", str(out), "--devices", "1", "--no-progress", "--height", "4", "5"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "Weight of basin 1" in printed and str(out) in printed
    names = {path.name for path in out.iterdir()}
    assert {"dataset.zarr", "config.json", "versions.json", "table.txt", "sweep.png", "sweep.pdf"} <= names
    assert cli.main(words) == 2
    assert "is not empty; choose another folder, or --resume" in capsys.readouterr().err
    # Figures would only be drawn once more.
    monkeypatch.setattr(experiments, "SWEEP", experiments.SWEEP._replace(plot=lambda dataset: {}))
    assert cli.main([*words, "--resume"]) == 0


@pytest.mark.end_to_end
def test_a_sweep_in_parts_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["sweep", "--phi", "0.3:0.7:3", "--distance", "2", "--pool-size", "inf", "--num", "20", "--num-steps", "3"]
    words += ["--out", str(out), "--devices", "1", "--no-progress", "--batch-size", "1"]
    assert cli.main([*words, "--part", "2/2"]) == 0
    printed = capsys.readouterr().out
    assert "Part 2/2 is in" in printed and "2 of 3 batches are missing" in printed
    assert "with --resume and without --part" in printed
    assert {path.name for path in out.iterdir()} == {"dataset.zarr"}
    assert cli.main([*words, "--part", "1/2"]) == 0
    assert "0 of 3 batches are missing" in capsys.readouterr().out
    assert cli.main([*words, "--part", "1/2", "--phi", "0.1", "0.9"]) == 2
    assert "holds another sweep" in capsys.readouterr().err
    assert cli.main(words) == 2
    assert "--resume to continue" in capsys.readouterr().err
    assert cli.main([*words, "--resume"]) == 0
    assert "Weight of basin 1" in capsys.readouterr().out and (out / "sweep.png").is_file()
    (out / "dataset.zarr").rename(tmp_path / "away")
    assert cli.main([*words, "--part", "1/2"]) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err


def test_what_few_need_is_imported_when_it_is_used():
    """Half of the time of `import plural_jax` was flax, pandas and xarray; all names are there all the same."""
    script = """
import sys
import plural_jax as pj
late = ("flax", "matplotlib", "xarray", "pandas", "diffrax")
assert not set(late) & set(sys.modules), set(late) & set(sys.modules)
assert set(pj.__all__) <= set(dir(pj))
for name in pj.__all__:
    getattr(pj, name)
assert {"flax", "matplotlib"} <= set(sys.modules)
try:
    pj.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
