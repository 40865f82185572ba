"""The benchmarks' own code: that contenders compute the same thing, and that tables, JSON and figure come out of made-up times.

Nothing is measured here. Optional peers take part where they are installed, except compiled PyTorch, which takes too long.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import plural_jax as pj
from benchmarks import __main__ as suite
from benchmarks import (
    ceilings,
    finite_pool,
    gaussian,
    limit,
    mixture,
    report,
    retraining,
    roofline,
    scaling,
    sweep,
    tilt,
)
from benchmarks.timing import Comparison, Timing, exponent, turns

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def float32() -> Iterator[None]:
    """As the benchmarks run that ask for no float64."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def float64() -> Iterator[None]:
    """As the benchmarks run that ask for it."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


# --- contenders agree -------------------------------------------------------------------------------------------------


def test_tilt_contenders_agree(float32: None) -> None:
    work = tilt.Workload.of(3, 2 * jax.device_count(), 64, 6)
    found = tilt.by_hand(work)
    assert {"NumPy, arrays", "NumPy, matrix products", tilt.SCAN} <= set(found)
    tilt.check(work, found, tilt.library(work, work.num_steps))


@pytest.mark.parametrize("num_preferences", [2, 5])
def test_finite_pool_contenders_agree(float32: None, num_preferences: int) -> None:
    found = finite_pool.contenders(finite_pool.Workload(3, 64, 4, num_preferences))
    assert {finite_pool.ONE_DEVICE, finite_pool.BY_HAND, finite_pool.REFERENCE} <= set(found)
    finite_pool.check(found)


def test_limit_contenders_agree(float64: None) -> None:
    gaps = limit.check(limit.Workload.of("quadratic", 3, 200))
    assert gaps[limit.LIBRARY] is not None


@pytest.mark.parametrize("dimension", [1, 3])
def test_gaussian_contenders_agree(float64: None, dimension: int) -> None:
    found = gaussian.contenders(gaussian.Workload.of(dimension, 2, 5))
    assert len(found) == 3
    gaussian.check(found)


def test_em_contenders_agree(float32: None) -> None:
    mixture.check(mixture.contenders(mixture.Workload.of(2, 60, 2, 2, 4), fits=1))


def test_sweep_contenders_agree(float32: None) -> None:
    work = sweep.Workload.of(3, 2, 64, 4, every=2)
    found, factor = sweep.contenders(work, stride=2)
    assert factor == 3 * 2 / (2 * 1)
    sweep.check({name: function() for name, function in found.items()}, stride=2)


def test_the_loops_finite_pools_agree(float64: None) -> None:
    land = pj.Landscape.on(pj.Grid.uniform(-5.0, 5.0, 50), pj.rewards.bump([-1.0, 1.0], 5.0, 1.0))
    process = pj.density.finite_pool(land, [0.3, 0.7], pool_size=4.0)
    w = sweep.finite(np.asarray(land.rewards), 4.0)(np.full(50, 1 / 50), np.array([0.3, 0.7]))
    np.testing.assert_allclose(w, np.exp(process.init().log_w), rtol=1e-6)


def test_a_contender_that_disagrees_is_found(float32: None) -> None:
    work = tilt.Workload.of(2, jax.device_count(), 64, 3)
    with pytest.raises(AssertionError, match="NumPy, arrays and the library disagree"):
        tilt.check(work, {"NumPy, arrays": lambda: 2 * tilt.numpy_loop(work)()}, tilt.library(work, 3))


def test_retraining_peer_keeps_both_preferences() -> None:
    pytest.importorskip("sklearn", reason="compares with scikit-learn, which is not installed")
    variances = retraining.peers(1)
    assert variances.shape == (1, 2) and (variances > 5).all()


# --- times ------------------------------------------------------------------------------------------------------------


def test_turns_call_everyone_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    calls: list[str] = []
    found = turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert {name: len(s) for name, s in found.items()} == {"a": 3, "b": 3}
    assert calls == ["a", "b"] + 3 * ["a", "a", "b", "b"]  # once to compile, and in every turn once to warm up
    calls.clear()
    turns({"a": lambda: calls.append("a")}, 2, warm=False)
    assert calls == ["a", "a"]


def test_ratios_are_taken_within_a_turn() -> None:
    # The second turn found the machine ten times slower.
    made = comparison(seconds={"ours": [1.0, 10.0, 1.0], "peer": [2.0, 20.0, 2.0], "once": [3.0]})
    assert made.ratios["peer"] == Timing(2.0, 2.0, 2.0)
    assert made.ratios["once"] == Timing(3.0, 3.0, 3.0)
    assert made.rows["ours"].median == 1.0


def test_exponent_of_a_power_law() -> None:
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_comparisons_survive_json() -> None:
    made = comparison()
    content = json.loads(json.dumps(made.to_json()))
    assert Comparison.from_json(content) == made
    assert content["ratios"]["peer"]["median"] == 2.0


def test_table_shows_ratios_fractions_and_what_was_scaled() -> None:
    text = printed(report.table([comparison()]))
    assert "peer (a part, times 4)" in text
    assert "2" in text and "0.25" in text and "1 k cells/s" in text


def test_short_and_amount() -> None:
    assert [report.short(v) for v in (0.01234, 12.345, 1234.5)] == ["0.0123", "12.3", "1,234"]
    assert [report.amount(v) for v in (12.3, 9.1e9)] == ["12.3", "9.1 G"]


def test_roofline_takes_the_lower_bound() -> None:
    results = made_up_results()
    (row,) = roofline.roofline(results)
    cost = roofline.tilt(m=2, configurations=32)
    assert row["bound by operations"] == pytest.approx(100e9 / cost.operations)
    assert row["bound by bytes"] == pytest.approx(50e9 / cost.bytes)
    assert row["gap"] == pytest.approx(min(100e9 / 10, 50e9 / 12.5) / 1000.0)
    assert roofline.roofline({}) == []
    # Two rounds at once: 5 sums, 3 terms and a product are 9 instructions of two operations; 8 tables instead of twice 2.
    assert roofline.tilt(2, 32, together=2)[:2] == (9.0, 6.0 + 8 * 4 / 32 / 2)
    assert roofline.tilt(1, 1, together=2)[:2] == (4.0, 6.0 + 3 * 4 / 2)


def test_suite_writes_one_json_and_a_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = made_up_results()
    monkeypatch.setattr(suite, "run_alone", lambda name, quick, repeats: results.get(name))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", *results, "gaussian", "--out", str(tmp_path)])
    assert suite.main() == 1  # there is no result of "gaussian", as if it had failed
    shown, kept = capsys.readouterr().out, (tmp_path / "suite.txt").read_text()
    for text in ("peer (a part, times 4)", "copy, L2", "roofline", "configurations"):
        assert text in shown and text in kept
    assert "failed after" in shown
    content = json.loads((tmp_path / "suite.json").read_text())
    assert set(content["results"]) == set(results) and len(content["roofline"]) == 1
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_a_benchmark_that_fails_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.run_alone("no_such_benchmark", quick=True, repeats=None) is None
    assert "No module named benchmarks.no_such_benchmark" in capsys.readouterr().err


def test_every_benchmark_of_the_suite_is_there() -> None:
    folder = Path(suite.__file__).parent
    for name in suite.NAMES:
        text = (folder / f"{name}.py").read_text()
        assert f'report.main("{name}", __doc__, measure' in text, name


def test_absent_peers_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    line = report.absent()
    assert line.startswith("Not installed, so left out: torch (pip install torch") and "\n" not in line


def comparison(seconds: dict[str, list[float]] | None = None) -> Comparison:
    """Made-up times."""
    return Comparison(
        name="tilt",
        workload="some cells",
        reference="ours",
        seconds=seconds or {"ours": [1.0, 1.0, 1.0], "peer": [2.0, 2.0, 2.0]},
        unit="cells",
        work=1000.0,
        scaled={"peer": 4.0},
        ceiling="matrix product",
        fractions={"ours": 0.25},
        notes=["a note"],
        extra={"roofline": {"rule": "tilt", "arguments": {"m": 2, "configurations": 32}, "contender": "ours"}},
    )


def made_up_results() -> dict[str, dict]:
    """What three benchmarks might have written."""
    rates = {"copy, L2": 40.0, "in place, L2": 50.0, "multiply-adds, numba": 100.0, "matrix product, XLA": 90.0}
    sizes = [100, 200, 400, 800]
    size = scaling.Size(1, 1, 1, 1)
    lines = {
        axis: scaling.along(axis, [size._replace(**{axis: n}) for n in sizes], [1e-3 * n for n in sizes])
        for axis in scaling.AXES
    }
    return {
        "ceilings": {"cores": 2, "one core": None, "all cores": rates},
        "tilt": {"comparisons": [comparison().to_json()]},
        "scaling": {"scaling": {"tilt": lines, "finite pool": lines}},
    }


def test_ceilings_table_and_the_best_of_a_kind() -> None:
    rates = {"matrix product, XLA": 90.0, "matrix product, NumPy": 80.0, "copy, L2": 40.0}
    assert ceilings.best(rates, "matrix product") == 90.0
    text = printed(ceilings.table({"cores": 2, "one core": rates, "all cores": rates}))
    assert "GFLOP/s" in text and "GB/s" in text


def printed(table: object) -> str:
    """A table as text."""
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
