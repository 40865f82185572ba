"""The audit: its numbers against NumPy, its verdicts against what then happens, and input that breaks things."""

import json

import jax
import numpy as np
import pytest

import plural_jax as pj
from plural_jax.theory import evidence
from tests import oracles

NAMES = (
    "bounded rewards",
    "disjoint basins",
    "initial mass",
    "outside domination",
    "separation",
    "Lemma 3",
    "decay",
    "Lemma 4",
    "Lemma 5",
    "Cor. 2",
    "Thm. 3",
    "Prop. 4",
    "Thm. 5",
    "Thm. 6",
    "Thm. 7",
    "Cor. 8",
    "B.4",
    "fair share",
)
#: One shape for nearly all tests, so that one compilation serves them.
ATOMS, STEPS = 8, 100
#: Two plateaus, and atoms that nobody likes.
PLATEAUS = np.array([[4.0, 4.0, 4.0, 0.0, 0.0, 0.5, 0.2, 0.0], [0.0, 0.0, 0.0, 4.0, 4.0, 0.0, 0.2, 0.5]])
#: Two bumps: no plateaus.
BUMPS = np.array([[5.0, 4.9, 3.0, 1.0, 0.3, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.3, 1.0, 3.0, 4.95, 5.0]])


def audit(rewards, phi=(0.4, 0.6), **options):
    found = pj.theory.audit(pj.Landscape(rewards=rewards), phi, **{"num_steps": STEPS, **options})
    check_form(found, options.get("num_steps", STEPS))
    return found


def check_form(found, num_steps):
    """What holds for every audit: allowed verdicts, plain Python, and a table that fits."""
    verdicts = {"holds", "fails", "not checked", f"holds for t <= {num_steps}"}
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    for name in NAMES:
        assert found[name].verdict in verdicts
        kind = "assumptions" if name in plain["assumptions"] else "results"
        assert plain[kind][name]["verdict"] == found[name].verdict
    text = str(found)
    assert max(map(len, text.splitlines())) <= 110
    assert all(name.split()[0] in text for name in NAMES)
    assert f"{num_steps} rounds" in " ".join(text.split())


def trajectories(rewards, phi, log_p, num_steps):
    """Log-masses of rounds 0 to T and log W of each, in NumPy, for many landscapes: [B, T + 1, n] each."""
    log_p = log_p - oracles.log_sum_exp(log_p, axis=1)[:, None]
    masses, multipliers = [], []
    for _ in range(num_steps + 1):
        log_z = oracles.log_sum_exp(log_p[:, None] + rewards, axis=2)
        log_w = oracles.log_sum_exp(np.log(phi)[:, :, None] + rewards - log_z[:, :, None], axis=1)
        masses.append(log_p)
        multipliers.append(log_w)
        log_p = log_p + log_w
        log_p = log_p - oracles.log_sum_exp(log_p, axis=1)[:, None]
    return np.stack(masses, axis=1), np.stack(multipliers, axis=1)


def verdicts(found, *names):
    return [found[name].verdict for name in names]


def test_where_everything_holds():
    found = audit(PLATEAUS)
    assert set(verdicts(found, *NAMES)) == {"holds"}
    lemma4 = found["Lemma 4"].numbers
    np.testing.assert_allclose(found["separation"].numbers["kappa"][0][1], np.exp(-3.9), rtol=1e-12)
    assert lemma4["lower"] < lemma4["seen"] < lemma4["upper"] and lemma4["within"]
    exact = found["Cor. 8"].numbers["exact_weight"]
    np.testing.assert_allclose(exact, 0.4 + np.exp(-4) * -0.2 / (1 - np.exp(-4)), rtol=1e-9)
    np.testing.assert_allclose(lemma4["seen"], exact, rtol=1e-6)
    np.testing.assert_allclose(found["Thm. 7"].numbers["maximizer"], 0.4, atol=1e-6)
    assert max(found["Prop. 4"].numbers["drift"]) < 1e-12
    assert found.winner is None and found.worst_cell.kind == "loses"
    assert "Largest W outside" not in str(found)
    with pytest.raises(KeyError, match="there are: bounded rewards"):
        found["Lemma 9"]


def test_numbers_against_numpy(rng):
    for _ in range(5):
        rewards, tau, eps = rng.normal(size=(2, ATOMS)) * 2, rng.uniform(0.5, 2), rng.uniform(0.05, 0.5)
        phi, log_p = rng.dirichlet([2, 2]), np.log(rng.dirichlet(np.ones(ATOMS)))
        found = audit(rewards, phi, eps=eps, temperature=tau, initial=log_p)
        masses, log_w = (x[0] for x in trajectories(rewards[None] / tau, phi[None], log_p[None], STEPS))
        basins = rewards >= rewards.max(1, keepdims=True) - eps
        outside = ~basins.any(0)
        clause = found["outside domination"].numbers
        sup = log_w[:, outside].max(1)
        np.testing.assert_allclose(clause["rho_over_run"], np.exp(sup.max()), rtol=1e-9)
        np.testing.assert_array_equal(clause["failing_rounds"], np.flatnonzero(sup >= -1e-13))
        t = found.worst_cell.round
        assert t == sup.argmax() and found.worst_cell.index == np.where(outside, log_w[t], -np.inf).argmax()
        np.testing.assert_allclose(found.worst_cell.log_multiplier, sup.max(), rtol=1e-9)
        np.testing.assert_allclose(sum(found.worst_cell.contributions), np.exp(sup.max()), rtol=1e-9)
        np.testing.assert_allclose(found.worst_cell.final_mass, np.exp(masses[-1][found.worst_cell.index]), rtol=1e-9)
        outside_mass = np.exp(masses[:, outside]).sum(1)
        lemma3 = found["Lemma 3"].numbers
        np.testing.assert_allclose(lemma3["seen"], outside_mass[-1], rtol=1e-9)
        np.testing.assert_allclose(
            lemma3["slowest_contraction"], (outside_mass[1:] / outside_mass[:-1]).max(), rtol=1e-9
        )
        assert lemma3["seen"] <= lemma3["bound"] * (1 + 1e-9)
        np.testing.assert_allclose(found["initial mass"].numbers["initial_mass"], basins @ np.exp(masses[0]), rtol=1e-9)
        shared = basins.all(0)
        overlap = found["disjoint basins"].numbers
        assert overlap["overlapping_atoms"] == shared.sum()
        np.testing.assert_allclose(overlap["overlap_final_mass"], np.exp(masses[-1][shared]).sum(), atol=1e-12)
        mean = rewards @ np.exp(masses[-1])
        np.testing.assert_allclose(found["Thm. 5"].numbers["seen"], mean, rtol=1e-9)
        variance = (rewards - mean[:, None]) ** 2 @ np.exp(masses[-1])
        np.testing.assert_allclose(found["Thm. 6"].numbers["seen"], variance, rtol=1e-7, atol=1e-12)


def test_verdicts_against_what_happens(rng):
    """Random landscapes, many with a compromise, and short runs; then the rounds that the audit has not seen."""
    seen, domination, batch, rest = set(), set(), 120, 1500
    rewards = np.where(rng.integers(2, size=(batch, 1, 1)), PLATEAUS, BUMPS) * rng.uniform(0.1, 1.2, (batch, 1, 1))
    rewards = rewards + rng.normal(size=(batch, 2, ATOMS)) * 0.3
    nearly = rewards.max(2) - rng.uniform(0.2, 1.0, (batch, 2))
    rewards[:, :, 6] = np.where(rng.integers(2, size=(batch, 1)), nearly, rewards[:, :, 6])
    phi, start = rng.dirichlet([3, 3], batch), np.log(rng.dirichlet(np.full(ATOMS, 3.0), batch))
    masses, log_w = trajectories(rewards, phi, start, STEPS + rest)
    for r, f, log_p, p, w in zip(rewards, phi, start, np.exp(masses), log_w, strict=True):
        found = pj.theory.audit(pj.Landscape(rewards=r), f, eps=0.15, initial=log_p, num_steps=STEPS)
        basins = r >= r.max(1, keepdims=True) - 0.15
        outside = ~basins.any(0)
        sup, m = w[:, outside].max(1), p[:, outside].sum(1)
        clause, decay = found["outside domination"], found["decay"]
        domination.add(clause.verdict)
        seen.add(decay.verdict)
        if clause.verdict == "holds":
            assert np.exp(sup.max()) <= clause.numbers["rho"] * (1 + 1e-12) < 1
            assert (m <= clause.numbers["rho"] ** np.arange(STEPS + rest + 1) * m[0] * (1 + 1e-9)).all()
        if clause.verdict == f"holds for t <= {STEPS}":
            assert sup[: STEPS + 1].max() < 0
        if clause.verdict == "fails":
            assert sup[: STEPS + 1].max() >= 0
        after = clause.numbers["settled_after"]
        if after is not None:
            assert np.exp(sup[after:].max()) <= clause.numbers["rho_once_settled"] * (1 + 1e-12) < 1
        if decay.verdict == "holds":
            pace = clause.numbers["ceiling_after_run"] ** np.arange(rest + 1)
            assert (m[STEPS:] <= m[STEPS] * pace * (1 + 1e-9)).all()
        if decay.verdict == "fails":
            assert m[STEPS:].min() >= decay.numbers["later_lower"] - 1e-9 > -1e-9
        assert (m[STEPS:] <= decay.numbers["later_upper"] + 1e-9).all()
        if found["Lemma 4"].verdict == "holds":
            lemma4, weights = found["Lemma 4"].numbers, basins @ p[-1]
            assert lemma4["lower"] - 2e-3 <= weights[0] / weights.sum() <= lemma4["upper"] + 2e-3
        if found["disjoint basins"].verdict == "holds":
            assert (basins @ p[STEPS] >= np.array(found["Lemma 5"].numbers["floor_now"]) - 1e-9).all()
    # The verdicts were put to the test.
    assert {"holds", "fails"} <= domination and {"holds", "fails", "not checked"} <= seen


def test_compromise_that_wins():
    rewards = PLATEAUS.copy()
    rewards[:, 6] = 3.7
    found = audit(rewards)
    assert verdicts(found, "disjoint basins", "initial mass", "separation") == ["holds"] * 3
    assert verdicts(found, "outside domination", "Lemma 3", "decay", "Lemma 4", "Thm. 3", "B.4") == ["fails"] * 6
    assert found["decay"].numbers["later_lower"] > 0.9
    assert found.winner.index == 6 and found.winner.kind == "compromise" and found.winner.preferences == (0, 1)
    assert found.winner.final_mass > 0.9 > found.winner.initial_mass
    text = " ".join(str(found).split())
    assert "a compromise that r_1, r_2 keep together" in text and "won mass in the run" in text


def test_shoulder_that_loses():
    """Early on an atom beside a basin gains, by one preference alone; clause (iii) fails although the mass decays."""
    rewards = PLATEAUS.copy()
    rewards[0, 5] = 3.5
    found = audit(rewards, initial=np.log([0.01, 0.01, 0.01, 0.3, 0.3, 0.2, 0.1, 0.07]))
    clause = found["outside domination"]
    assert clause.verdict == "fails" and found["Lemma 3"].verdict == "fails"
    assert found["decay"].verdict == found["Lemma 4"].verdict == "holds"
    assert found.worst_cell.index == 5 and found.worst_cell.kind == "shoulder" and found.worst_cell.preferences == (0,)
    assert clause.numbers["failing_rounds"][0] == 0
    assert clause.numbers["settled_after"] == clause.numbers["failing_rounds"][-1] + 1 < 20
    assert "on the shoulder of a basin" in " ".join(str(found).split())


def test_nothing_is_said_beyond_the_run():
    """Where the last density leaves open what comes, the verdict ends with the run; a better reference may close it."""
    rewards = 0.4 * np.array([[5.0, 4.9, 4.6, 1.0, 0.3, 0, 0, 0], [0, 0, 0, 0.3, 1.0, 4.6, 4.95, 5.0]])
    start = np.log([0.05, 0.37, 0.02, 0.01, 0.01, 0.02, 0.47, 0.05])
    phi, options = np.array([0.42, 0.58]), {"eps": 0.14, "initial": start}
    names = ("outside domination", "Lemma 3", "decay", "Lemma 4", "Lemma 5", "Thm. 3", "B.4")
    found = audit(rewards, phi, **options)
    assert set(verdicts(found, *names)) == {f"holds for t <= {STEPS}"}
    assert found["outside domination"].numbers["ceiling_after_run"] > 1
    assert f"holds for t <= {STEPS}" in str(found) and "only known to stay below" in " ".join(str(found).split())
    limit = trajectories(rewards[None], phi[None], start[None], 5000)[0][0, -1]
    assert set(verdicts(audit(rewards, phi, **options, reference=limit), *names)) == {"holds"}
    # The worst reference does no harm.
    worst = audit(rewards, phi, **options, reference=np.zeros(ATOMS))
    assert worst.to_dict() == found.to_dict()


def test_no_initial_mass():
    log_p = np.zeros(ATOMS)
    log_p[3:5] = -np.inf
    found = audit(PLATEAUS, initial=log_p)
    assert found["initial mass"].verdict == "fails"
    np.testing.assert_array_equal(found["initial mass"].numbers["without_mass"], [1])
    assert verdicts(found, "Lemma 4", "Lemma 5", "Cor. 2", "Thm. 7", "Cor. 8", "B.4") == ["fails"] * 6
    # A basin may be out of reach of floats and still have mass.
    log_p[3:5] = -900.0
    found = audit(PLATEAUS, initial=log_p)
    assert found["initial mass"].verdict == "holds"


@pytest.mark.parametrize("phi", [(0.0, 1.0), (1.0, 0.0)])
def test_unused_preference(phi):
    found = audit(PLATEAUS, phi)
    assert found["Lemma 5"].verdict == found["Cor. 2"].verdict == "fails"
    assert found["Lemma 4"].verdict == "holds" and found["Lemma 4"].numbers["within"]
    np.testing.assert_allclose(found["Lemma 4"].numbers["seen"], phi[0], atol=1e-6)


def test_identical_rewards():
    found = audit(np.array([PLATEAUS[0]] * 2))
    assert verdicts(found, "disjoint basins", "separation", "Lemma 4", "Thm. 3", "B.4") == ["fails"] * 5
    assert found["disjoint basins"].numbers["overlapping_atoms"] == 3
    np.testing.assert_allclose(found["disjoint basins"].numbers["overlap_final_mass"], 1, atol=1e-9)
    merged = found["B.4 merged"]
    assert merged.verdict == "holds" and merged.numbers["lower"][0] == merged.numbers["upper"][0] == 1


def test_basin_that_is_everything():
    rewards = PLATEAUS.copy()
    rewards[0] = 1.0
    found = audit(rewards)
    assert found["outside domination"].verdict == found["decay"].verdict == "holds"
    assert found["outside domination"].numbers["rho"] == 0 and found.worst_cell is None
    assert found["disjoint basins"].verdict == "fails"


@pytest.mark.parametrize(("rewards", "phi"), [([[2.0]], [1.0]), ([[1.0], [2.0]], [0.3, 0.7])])
def test_one_atom(rewards, phi):
    land = pj.Landscape(rewards=rewards)
    found = pj.theory.audit(land, phi, num_steps=5)
    check_form(found, 5)
    assert found["disjoint basins"].verdict == ("holds" if len(phi) == 1 else "fails")
    assert found["decay"].verdict == "holds"


def test_many_preferences():
    rewards = np.full((4, ATOMS), -6.0)
    for i in range(4):
        rewards[i, i] = 0.0
    phi = np.array([0.1, 0.2, 0.3, 0.4])
    found = pj.theory.audit(pj.Landscape(rewards=rewards), phi, num_steps=STEPS)
    check_form(found, STEPS)
    assert verdicts(found, "Lemma 4", "Lemma 5", "Cor. 2", "Thm. 7", "Cor. 8") == ["not checked"] * 5
    assert verdicts(found, "outside domination", "Lemma 3", "Thm. 3", "B.4") == ["holds"] * 4
    b4 = found["B.4"].numbers
    assert b4["seen_deviation"] <= b4["bound"] < 0.02
    assert (b4["lower"] <= b4["seen"]).all() and (b4["seen"] <= b4["upper"]).all()


def test_temperature_is_a_unit():
    """Rewards r at temperature tau and eps are r / tau at 1 and eps / tau; in the report, rewards keep their unit."""
    tau = 1.6
    hot, one = audit(BUMPS, eps=0.4, temperature=tau), audit(BUMPS / tau, eps=0.4 / tau)
    assert verdicts(hot, *NAMES) == verdicts(one, *NAMES)
    a, b = hot.to_dict(), one.to_dict()
    for name in ("outside domination", "initial mass"):
        for key, value in a["assumptions"][name]["numbers"].items():
            if value is not None:
                np.testing.assert_allclose(value, b["assumptions"][name]["numbers"][key], rtol=1e-8)
    for name in ("Lemma 3", "decay", "Lemma 4", "Lemma 5", "B.4", "fair share"):
        for key, value in a["results"][name]["numbers"].items():
            np.testing.assert_allclose(value, b["results"][name]["numbers"][key], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(a["assumptions"]["separation"]["numbers"]["gaps"][0][1] / tau,
                               b["assumptions"]["separation"]["numbers"]["gaps"][0][1], rtol=1e-9)  # fmt: skip
    np.testing.assert_allclose(a["results"]["Thm. 6"]["numbers"]["seen"],
                               tau**2 * np.array(b["results"]["Thm. 6"]["numbers"]["seen"]), rtol=1e-6)  # fmt: skip


def test_float32():
    """As a reader without float64 has it: the same verdicts, also with rewards of 1e4."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        found = audit(PLATEAUS.astype(np.float32), np.float32([0.4, 0.6]))
        assert found.dtype == "float32" and set(verdicts(found, *NAMES)) == {"holds"}
        audit(PLATEAUS.astype(np.float32) * 2500 - 5000)
        audit(BUMPS.astype(np.float32), temperature=1e-3)


def test_points_and_domain():
    """Coordinates are shown; atoms outside the domain count for nothing, whatever their rewards."""
    grid = pj.Grid.uniform(-5.0, 5.0, ATOMS)
    log_measure = np.zeros(ATOMS)
    log_measure[7] = -np.inf
    rewards = PLATEAUS.copy()
    rewards[:, 7] = 100.0
    land = pj.Landscape(rewards=rewards, points=grid.points, log_measure=log_measure)
    found = pj.theory.audit(land, [0.4, 0.6], initial=np.zeros(ATOMS), num_steps=STEPS)
    check_form(found, STEPS)
    assert found["bounded rewards"].numbers["upper"].tolist() == [4.0, 4.0]
    assert set(verdicts(found, *NAMES)) == {"holds"}
    assert found.worst_cell.coordinates == (float(grid.points[found.worst_cell.index, 0]),)


def test_new_numbers_compile_nothing(rng):
    audit(PLATEAUS)
    before = evidence._measure._cache_size()
    audit(PLATEAUS * 0.9, (0.3, 0.7), eps=0.2, temperature=1.5, initial=np.log(rng.dirichlet(np.ones(ATOMS))))
    assert evidence._measure._cache_size() == before


def test_input_that_is_refused():
    land = pj.Landscape(rewards=PLATEAUS)
    with pytest.raises(ValueError, match="audit reads its arguments on the host"):
        jax.jit(lambda phi: pj.theory.audit(land, phi) and phi)(np.array([0.4, 0.6]))
    with pytest.raises(ValueError, match="audit reads its arguments on the host"):
        jax.jit(lambda r: pj.theory.audit(pj.Landscape(rewards=r), [0.4, 0.6]) and r)(PLATEAUS)
    for message, options in (
        ("phi must sum to 1", {"phi": [0.4, 0.7]}),
        ("eps must not be negative", {"eps": -0.1}),
        ("temperature must be positive", {"temperature": 0.0}),
        ("initial must have one log-mass for each of the 8 atoms", {"initial": [0.0]}),
        ("num_steps must be a whole number", {"num_steps": 0}),
        ("reference must have one log-mass", {"reference": [0.0]}),
    ):
        with pytest.raises(ValueError, match=message):
            pj.theory.audit(land, **{"phi": [0.4, 0.6], **options})
    away = pj.Landscape(rewards=[[1.0, 0.0]], log_measure=[0.0, -np.inf])
    with pytest.raises(ValueError, match="initial gives no mass to the domain"):
        pj.theory.audit(away, [1.0], initial=[-np.inf, 0.0])
