"""Questions about one landscape from the command line, and phase diagrams of the exact limit."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax import cli, commands
from plural_jax.experiments import EXPERIMENTS, execute, phase
from tests import oracles

pytestmark = pytest.mark.end_to_end


def test_the_limit_of_a_table_of_rewards(rng, tmp_path, capsys):
    table = rng.normal(size=(300, 3)) * 2
    phi = np.array([0.2, 0.3, 0.5])
    with (tmp_path / "rewards.csv").open("w") as file:
        np.savetxt(file, table, delimiter=",", header="a,b,c", comments="")
    out = tmp_path / "limit.json"
    words = ["limit", "--rewards", str(tmp_path / "rewards.csv"), "--phi", "0.2", "0.3", "0.5", "--out", str(out)]
    assert cli.main(words) == 0
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    assert found["converged"] and found["dtype"] == "float64"
    # W of the atoms that it names is at most one everywhere, and one on them.
    log_p = np.full(300, -np.inf)
    for atom in found["atoms"]:
        assert str(atom["atom"]) in printed
        log_p[atom["atom"]] = math.log(atom["mass"])
        np.testing.assert_allclose(atom["rewards"], table[atom["atom"]], rtol=1e-12)
        assert sum(atom["shares"]) == pytest.approx(1, abs=1e-8)
    log_w = oracles.large_pool_log_w(log_p, table.T, phi)
    assert log_w.max() < 1e-9
    np.testing.assert_allclose(log_w[[a["atom"] for a in found["atoms"]]], 0, atol=1e-8)
    np.testing.assert_allclose(found["reward_mean"], table.T @ np.exp(log_p), rtol=1e-9)


def test_the_limit_of_functions_is_off_the_grid(capsys):
    # Atoms at +-x with x = tanh(2 gamma d/2 x) d/2, none of which a grid of 41 points has.
    assert (
        cli.main(["limit", "--reward", "quadratic", "--centers", "-1.5", "1.5", "--phi", "0.5", "0.5", "--num", "41"])
        == 0
    )
    text = capsys.readouterr().out
    x = 1.5
    for _ in range(200):
        x = 1.5 * math.tanh(1.5 * x)
    assert f"[-{x:.4g}]" in text and f"[{x:.4g}]" in text


@pytest.mark.parametrize("text", ["a,b\n1,x\n", "1,2\n3\n"])
def test_a_file_that_is_no_table(tmp_path, text):
    path = tmp_path / "rewards.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a table of numbers"):
        commands.landscape(commands.Limit(rewards=path))


def test_an_audit_is_sharpened_by_the_limit(tmp_path, capsys):
    out = tmp_path / "audit.json"
    words = ["audit", "--phi", "0.4", "0.6", "--num", "60", "--num-steps", "100", "--out", str(out)]
    assert cli.main(words) == 0
    text, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "outside domination" in text and found["num_steps"] == 100
    assert found["assumptions"]["outside domination"]["verdict"] == "fails"
    assert found["results"]["Lemma 4"]["verdict"] == "holds"


def test_phase_diagram(tmp_path):
    """Modes, masses and shares of the sweep against one limit at a time on a fine grid, and the exact transition."""
    config = phase.Config(
        phi=(0.3, 0.5), distance=(1.5, 2.5, 4.0), num_preferences=(2.0, 3.0), num=11, num_scattered=4,
        scattered_gamma=(0.5,),
    )  # fmt: skip
    run = execute(EXPERIMENTS["phase"], config, tmp_path / "phase")
    assert {path.name for path in run.figures} == {f"{n}.{s}" for n in ("phase", "plane") for s in ("png", "pdf")}
    last = run.dataset.isel(step=-1, gamma=0)
    assert last.converged.all()
    two = last.sel(num_preferences=2, phi=0.5)
    assert two.num_modes.values.tolist() == [1, 2, 2]  # one up to sqrt(2 tau / gamma) = 2
    assert two.compromise_mass.values[0] == pytest.approx(1) and not two.own_mode.values[0].any()
    # phi = 0.3, distance 4, against the two-atom likelihood equations on a fine line.
    far = last.sel(num_preferences=2, phi=0.3, distance=4.0)
    line = np.linspace(-3, 3, 6001)
    rewards = -0.5 * (line - np.array([[-2.0], [2.0]])) ** 2
    with jax.enable_x64(True):
        limit = pj.density.solve_limit(pj.Landscape(rewards=jnp.asarray(rewards)), [0.3, 0.7])
    left = np.exp(np.asarray(limit.log_p))[line < 0].sum()
    assert far.own_mass.values[0] == pytest.approx(left, abs=1e-4)
    assert float(far.nash_distance) == pytest.approx(abs(left - 0.3), abs=1e-4)
    # Three equal preferences far apart: a third each. (Preferences beyond m are never asked.)
    three = last.sel(num_preferences=3, distance=4.0)
    assert (three.num_modes == 3).all()
    np.testing.assert_allclose(three.own_mass.sum("preference"), 1, atol=1e-4)
    table = run.tables["own_mode"]
    assert (table["own mode from"][table["m"] == 2] == 2.5).all()
