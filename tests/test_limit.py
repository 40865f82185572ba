"""The exact limit: against long runs of the dynamics, a general-purpose solver, closed forms, and where limits are many."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import plural_jax as pj
from tests import oracles

# Compiling is most of the time that these tests take; without LLVM's optimizations it is half as long.
QUICK = {"xla_backend_optimization_level": 0}
BATCH, ATOMS, MOST = 8, 60, 5
TRACES: list[tuple[int, ...]] = []


class Case(NamedTuple):
    rewards: np.ndarray
    phi: np.ndarray
    initial: np.ndarray | None = None
    temperature: float = 1.0

    @property
    def start(self):
        if self.initial is None:
            return np.full(self.rewards.shape[1], -np.log(self.rewards.shape[1]))
        return self.initial - oracles.log_sum_exp(self.initial)


def _one(rewards, phi, initial, temperature):
    TRACES.append(rewards.shape)
    return pj.density.solve_limit(pj.Landscape(rewards=rewards), phi, initial=initial, temperature=temperature)


_many = jax.jit(jax.vmap(_one), compiler_options=QUICK)


def solve(cases, m=MOST, dtype=np.float64):
    """Limits of cases of any size, in one compiled shape: rewards that are never asked for and atoms without mass fill up.

    What fills up is cut off again, in `log_p` and `log_z`.
    """
    found = []
    for some in (cases[i : i + BATCH] for i in range(0, len(cases), BATCH)):
        rewards, phi = np.zeros((BATCH, m, ATOMS), dtype), np.zeros((BATCH, m), dtype)
        initial, temperature = np.full((BATCH, ATOMS), -np.inf, dtype), np.ones(BATCH, dtype)
        for b in range(BATCH):
            case = some[min(b, len(some) - 1)]
            own_m, own_n = case.rewards.shape
            rewards[b, :own_m, :own_n], phi[b, :own_m], initial[b, :own_n] = case.rewards, case.phi, case.start
            temperature[b] = case.temperature
        limits = jax.tree.map(np.asarray, _many(rewards, phi, initial, temperature))
        for b, case in enumerate(some):
            limit = jax.tree.map(lambda x, b=b: x[b], limits)
            own_m, own_n = case.rewards.shape
            found.append(limit._replace(log_p=limit.log_p[:own_n], log_z=limit.log_z[:own_m]))
    return found


def certificate(case, log_p):
    """Log max W over the atoms that may have mass, a second time."""
    log_p = np.asarray(log_p, np.float64)
    log_w = oracles.large_pool_log_w(
        log_p - oracles.log_sum_exp(log_p), np.asarray(case.rewards, np.float64), case.phi, case.temperature
    )
    return log_w[case.start > -np.inf].max()


def check(case, limit, digits=1e-10, slack=1e-13):
    """Everything that a limit says about itself, in NumPy."""
    rewards = np.asarray(case.rewards, np.float64) / case.temperature
    asked = case.phi > 0
    assert limit.converged and limit.gap <= digits
    assert certificate(case, limit.log_p) <= digits + slack
    np.testing.assert_allclose(np.exp(limit.log_p).sum(), 1, rtol=10 * digits)
    assert (limit.log_p[case.start == -np.inf] == -np.inf).all()
    # The few atoms and the density have the same normalizers.
    used = limit.weights > 0
    assert ((limit.support >= 0) == used).all() and (np.diff(used.astype(int)) <= 0).all()
    assert len(set(limit.support[used])) == used.sum() <= asked.sum()
    few = np.log(np.maximum(limit.weights[used], 1e-300)) + rewards[:, limit.support[used]]
    tolerance = 1e3 * digits + 1e-7 * np.abs(rewards).max() * (digits > 1e-6)
    log_z = oracles.log_sum_exp(limit.log_p + rewards, axis=1)
    np.testing.assert_allclose(limit.log_z, log_z, rtol=1e-6 if digits > 1e-6 else 1e-12, atol=tolerance)
    np.testing.assert_allclose(oracles.log_sum_exp(few, axis=1)[asked], log_z[asked], atol=tolerance)
    np.testing.assert_allclose(limit.objective, case.phi[asked] @ log_z[asked], rtol=1e-6, atol=tolerance)
    # Fair-share floor, for any rewards: Z_i >= phi_i max e^{r_i}.
    best = rewards[:, case.start > -np.inf].max(axis=1)
    assert (log_z[asked] >= np.log(case.phi[asked]) + best[asked] - tolerance).all()


def tilts(case, rounds, log_p=None):
    """The dynamics of Eq. 5 in plain NumPy, in linear space: log-masses after that many rounds."""
    tilt = np.exp((case.rewards - case.rewards.max(axis=1, keepdims=True)) / case.temperature)
    tilt, phi = tilt[case.phi > 0], case.phi[case.phi > 0]
    p = np.exp(case.start if log_p is None else log_p)
    for _ in range(rounds):
        p = p * ((phi / (tilt @ p)) @ tilt)
        p /= p.sum()
    with np.errstate(divide="ignore"):
        return np.log(p)


KINDS = ("quadratic", "plane", "bump", "table", "wild", "sharp", "equal atoms", "tiny phi", "critical", "whole numbers")


def random_case(rng, kind, m, n=ATOMS):
    """A random landscape of one of many kinds."""
    x, centers = np.linspace(-5, 5, n), rng.uniform(-4, 4, (m, 1))
    phi = rng.dirichlet(np.full(m, 0.05 if kind == "tiny phi" else 1.0))
    rewards = {
        "quadratic": lambda: -0.5 * (x - centers) ** 2,
        "tiny phi": lambda: -0.5 * (x - centers) ** 2,
        "sharp": lambda: -50 * (x - centers) ** 2,
        "bump": lambda: 5 * np.exp(-0.5 * (x - centers) ** 2),
        "plane": lambda: -0.2 * ((rng.uniform(-5, 5, (1, n, 2)) - rng.uniform(-4, 4, (m, 1, 2))) ** 2).sum(axis=-1),
        "table": lambda: rng.normal(size=(m, n)) * 2,
        "wild": lambda: rng.normal(size=(m, n)) * 5000,
        "equal atoms": lambda: np.round(rng.normal(size=(m, n // 2)))[:, np.arange(n) % (n // 2)],
        "critical": lambda: (
            -((x - np.linspace(-1, 1, m)[:, None] * np.sqrt(0.5) * (1 + rng.choice([0, 1e-9, -1e-6, 1e-4]))) ** 2)
        ),
        "whole numbers": lambda: rng.integers(0, 3, size=(m, n)) * 1.0,
    }[kind]()
    return Case(rewards, np.full(m, 1 / m) if kind == "critical" else phi)


# --- any landscape ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 5])
def test_random_landscapes(rng, m):
    cases = []
    for kind in KINDS:
        case = random_case(rng, kind, m, int(rng.integers(m, ATOMS + 1)) // 2 * 2 + 2 if kind != "wild" else ATOMS)
        case = case._replace(rewards=case.rewards[:, :ATOMS])
        n = case.rewards.shape[1]
        cases.append(case._replace(initial=np.log(rng.dirichlet(np.ones(n))), temperature=float(rng.uniform(0.3, 3))))
    for case, limit in zip(cases, solve(cases), strict=True):
        check(case, limit)


def test_float32(rng):
    cases = [
        Case(case.rewards.astype(np.float32), case.phi.astype(np.float32).astype(np.float64))
        for case in (random_case(rng, kind, m) for kind in KINDS for m in (2, 5))
    ]
    # Rewards of ten thousand, and an offset of as much, exact in float32.
    wild = rng.uniform(-1e4, 1e4, (5, ATOMS)).astype(np.float32)
    offset = (rng.integers(-40, 40, (3, ATOMS)) / 8 + 1e4).astype(np.float32)
    cases += [Case(wild, cases[1].phi), Case(offset, np.array([0.25, 0.5, 0.25]))]
    for case, limit in zip(cases, solve(cases, dtype=np.float32), strict=True):
        assert {leaf.dtype for leaf in limit[:1] + limit[2:6] if leaf is not None} == {np.dtype(np.float32)}
        check(case, limit, digits=1e-5, slack=5e-6)


@pytest.mark.parametrize("m", [2, 5, 20])
def test_agrees_with_the_dynamics(rng, m):
    """F* - F(p_T) is between zero and the certificate of p_T, and normalizers agree as far as that implies."""
    cases = [random_case(rng, kind, m) for kind in ("table", "quadratic", "bump", "plane")]
    for case, limit in zip(cases, solve(cases, m=max(m, MOST)), strict=True):
        check(case, limit)
        close_to(case, limit, tilts(case, 5_000 if m == 20 else 20_000), gained=True)


def close_to(case, limit, log_p, gained=False):
    """What optimality implies for any density p with certificate g = log max W.

    `sum_i phi_i (a_i - 1 - log a_i) <= e^g - 1` for the ratios `a_i = Z_i* / Z_i`: the mean of W under p* is `sum phi_i a_i`.
    """
    g = certificate(case, log_p)
    asked = case.phi > 0
    log_a = (limit.log_z - oracles.log_sum_exp(log_p + case.rewards / case.temperature, axis=1))[asked]
    behind = case.phi[asked] @ log_a
    assert -1e-10 <= behind <= g + 1e-10
    assert case.phi[asked] @ (np.expm1(log_a) - log_a) <= np.expm1(g) - behind + 1e-10
    if gained:  # the tilts came near, or all this says nothing
        assert g < 0.01
    return g


@pytest.mark.slow
@pytest.mark.parametrize("m", [2, 5, 20])
def test_agrees_with_a_hundred_thousand_tilts(rng, m):
    for kind, n in itertools.product(("table", "quadratic", "bump", "plane"), (40, 100)):
        case = random_case(rng, kind, m, n)
        land = pj.Landscape(rewards=case.rewards)
        limit = jax.tree.map(np.asarray, pj.density.solve_limit(land, case.phi))
        check(case, limit)
        process = pj.density.large_pool(land, case.phi)
        final, info = pj.run(process, process.init(), 100_000, save="final")
        assert -1e-10 <= limit.objective - info.objective[0] <= info.log_max_w[0] + 1e-10
        assert close_to(case, limit, np.asarray(final.log_p), gained=True) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "n", "batch"), [(2, 50, 200), (2, 2001, 40), (3, 500, 100), (5, 200, 100), (20, 200, 20)]
)
def test_thousands_of_landscapes(rng, m, n, batch):
    solver = jax.jit(jax.vmap(lambda r, phi: pj.density.solve_limit(pj.Landscape(rewards=r), phi)))
    for kind in KINDS:
        cases = [random_case(rng, kind, m, n) for _ in range(batch)]
        limits = solver(np.stack([c.rewards[:, :n] for c in cases]), np.stack([c.phi for c in cases]))
        assert limits.converged.all(), (kind, int(limits.converged.sum()), float(limits.gap.max()))
        for case, log_p in zip(cases, np.asarray(limits.log_p), strict=True):
            assert certificate(case, log_p) <= 1.1e-10, kind


def test_agrees_with_a_convex_solver(rng):
    cp = pytest.importorskip("cvxpy", reason="compares with CVXPY, which is not installed")
    cases = [random_case(rng, kind, m) for kind in ("quadratic", "bump", "table", "plane") for m in (2, 5)]
    succeeded = 0
    for case, limit in zip(cases, solve(cases), strict=True):
        tilt = np.exp(case.rewards - case.rewards.max(axis=1, keepdims=True))
        p = cp.Variable(ATOMS, nonneg=True)
        problem = cp.Problem(cp.Maximize(case.phi @ cp.log(tilt @ p)), [cp.sum(p) == 1])
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.error.SolverError:
            continue
        if problem.status != cp.OPTIMAL:
            continue
        found = np.maximum(p.value, 1e-300)
        close_to(case, limit, np.log(found / found.sum()), gained=True)
        succeeded += 1
    assert succeeded >= 4


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_symmetric_plateaus(rng):
    """A = clip(phi + k (2 phi - 1) / (1 - k)) with leakage k, and each plateau keeps its shares (Prop. 4)."""
    cases = []
    for phi, height in itertools.product([0.02, 0.2, 0.5, 0.85], [0.5, 3.0]):
        side = rng.permutation(np.arange(7) < 3)
        rewards = height * np.stack([side, ~side]).astype(float)
        cases.append(Case(rewards, np.array([phi, 1 - phi]), np.log(rng.dirichlet(np.ones(7))), temperature=1.5))
    for case, limit in zip(cases, solve(cases), strict=True):
        check(case, limit)
        side, phi, k = case.rewards[0] > 0, case.phi[0], np.exp(-case.rewards.max() / 1.5)
        a = np.clip(phi + k * (2 * phi - 1) / (1 - k), 0, 1)
        p, start = np.exp(limit.log_p), np.exp(case.start)
        expected = np.where(side, a * start / start[side].sum(), (1 - a) * start / start[~side].sum())
        np.testing.assert_allclose(p, expected, atol=1e-9)
        assert not limit.unique


def test_identical_rewards(rng):
    """Everyone agrees: all mass goes to the best atoms, in their initial shares; rewards without any preference move nothing."""
    n = 9
    rewards = np.tile(np.where(np.arange(n) % 3 == 0, 2.0, rng.uniform(-1, 1, n)), (3, 1))
    phi, initial = rng.dirichlet(np.ones(3)), np.log(rng.dirichlet(np.ones(n)))
    agreed, flat = (Case(r, phi, initial) for r in (rewards, np.full((3, n), 7.0)))
    single = Case(rewards[:1] + np.arange(n) * 0.1, np.ones(1), initial)
    first, second, third = solve([agreed, flat, single])
    for case, limit in zip((agreed, flat, single), (first, second, third), strict=True):
        check(case, limit)
    start = np.where(np.arange(n) % 3 == 0, np.exp(initial), 0.0)
    np.testing.assert_allclose(np.exp(first.log_p), start / start.sum(), atol=1e-12)
    np.testing.assert_allclose(second.log_p, flat.start, atol=1e-12)
    assert not first.unique and not second.unique
    assert third.unique and third.support[0] == np.argmax(single.rewards) and third.weights[0] == 1


def test_dependent_tilts(rng):
    """Tilts on a segment: every mixture with the right means is a limit, and the start decides (W is 1 everywhere)."""
    rewards = np.array([[0.0, np.log(0.5), -1000.0], [-1000.0, np.log(0.5), 0.0]])
    starts = [np.log(rng.dirichlet(np.ones(3))) for _ in range(5)]
    cases = [
        Case(rewards, np.array([phi, 1 - phi]), start)
        for phi, start in zip([0.5, 0.4, 0.7, 0.5, 0.2], starts, strict=True)
    ]
    # The same in five dimensions: every preference has an atom, and two atoms are mixtures of others.
    tilt = np.eye(5)[:, [0, 1, 2, 3, 4, 0, 0]]
    tilt[:, 5], tilt[:, 6] = tilt[:, :2].mean(axis=1), tilt[:, 1:4].mean(axis=1)
    wide = np.log(np.maximum(tilt, 1e-300))
    cases += [Case(wide, rng.dirichlet(np.full(5, 5.0)), np.log(rng.dirichlet(np.ones(7)))) for _ in range(3)]
    for case, limit in zip(cases, solve(cases), strict=True):
        check(case, limit)
        assert not limit.unique
        np.testing.assert_allclose(np.exp(limit.log_p), np.exp(tilts(case, 20_000)), atol=1e-5)


def test_ties_and_equal_atoms_follow_the_dynamics(rng):
    """Atoms that look the same to everyone get what long runs give them from the same start."""
    cases = []
    for _ in range(4):
        few = rng.normal(size=(2, 6)) * 3
        case = Case(few[:, rng.integers(0, 6, 20)], rng.dirichlet(np.full(2, 3.0)))
        cases.append(case._replace(initial=np.log(rng.dirichlet(np.ones(20)))))
    for case, limit in zip(cases, solve(cases), strict=True):
        check(case, limit)
        np.testing.assert_allclose(np.exp(limit.log_p), np.exp(tilts(case, 20_000)), atol=1e-3)
        for k in limit.support[limit.weights > 0]:
            same = (case.rewards == case.rewards[:, [k]]).all(axis=0)
            share = limit.log_p[same] - case.start[same]
            np.testing.assert_allclose(share, share[0], atol=1e-12)
            assert not limit.unique or same.sum() == 1


def test_preferences_and_atoms_that_do_not_count(rng):
    """Phi_i = 0 and atoms without initial mass change nothing; what is left is solved as if they were not there."""
    rewards, phi = rng.normal(size=(4, 30)) * 2, np.array([0.3, 0.0, 0.5, 0.2])
    live = rng.permutation(np.arange(30) < 18)
    initial = np.where(live, np.log(rng.dirichlet(np.ones(30))), -np.inf)
    whole = Case(rewards, phi, initial)
    part = Case(rewards[phi > 0][:, live], phi[phi > 0], initial[live])
    everywhere = Case(rewards, phi)
    with_them, without, free = solve([whole, part, everywhere])
    for case, limit in ((whole, with_them), (part, without), (everywhere, free)):
        check(case, limit)
    np.testing.assert_allclose(np.exp(with_them.log_p[live]), np.exp(without.log_p), atol=1e-9)
    np.testing.assert_allclose(with_them.log_z[phi > 0], without.log_z, atol=1e-10)
    assert free.objective >= with_them.objective - 1e-10
    # The normalizer of a preference that is never asked is that of the density.
    np.testing.assert_allclose(with_them.log_z[1], oracles.log_sum_exp(with_them.log_p + rewards[1]), atol=1e-10)


def test_a_tiny_phi_keeps_its_floor(rng):
    """Z_i >= phi_i max e^{r_i} is all that a preference asked once in a million times has, where the others gain nothing."""
    phi = np.array([1e-6, 0.4, 0.6 - 1e-6])
    apart = 50.0 * np.eye(3)
    cases = [Case(apart, phi), Case(rng.normal(size=(3, 40)) * 4, phi)]
    for case, limit in zip(cases, solve(cases), strict=True):
        check(case, limit)
    np.testing.assert_allclose(solve(cases[:1])[0].log_z, np.log(phi) + 50, atol=1e-9)


# --- derivatives ------------------------------------------------------------------------------------------------------


def _differentiate(function, at, along, *cotangent):
    """The value, derivatives along some directions, and what reverse mode says about a random combination of outputs.

    One linearization serves both, so that the solver is compiled once.
    """
    value, forward = jax.linearize(function, at)
    reverse = jax.linear_transpose(forward, at)
    return value, jax.vmap(forward)(along), reverse(*cotangent)[0]


def _parts(inputs):
    rewards, phi, initial = inputs
    limit = pj.density.solve_limit(pj.Landscape(rewards=rewards), phi, initial=initial)
    return limit.weights, limit.log_z, limit.objective, limit.log_p


_derivatives = jax.jit(lambda *args: _differentiate(_parts, *args), compiler_options=QUICK)


def inner(a, b):
    return sum(np.sum(np.where(np.isfinite(x), np.asarray(x) * np.asarray(y), 0)) for x, y in zip(a, b, strict=True))


def test_derivatives_on_a_grid(rng):
    """Against finite differences in phi, distance and gamma of two quadratic rewards; reverse mode agrees with forward mode."""
    x, initial = np.linspace(-3, 3, ATOMS), np.full(ATOMS, -np.log(ATOMS))

    def inputs(theta):
        phi, distance, gamma = theta
        return -gamma * (x - distance * np.array([[-0.5], [0.5]])) ** 2, np.array([phi, 1 - phi]), initial

    def central(theta, k, step):
        up, down = theta + step * np.eye(3)[k], theta - step * np.eye(3)[k]
        return [(a - b) / (2 * step) for a, b in zip(inputs(up), inputs(down), strict=True)]

    theta = np.array([rng.uniform(0.3, 0.7), rng.uniform(3, 4), rng.uniform(0.6, 1.0)])
    along = jax.tree.map(lambda *leaves: np.stack(leaves), *(tuple(central(theta, k, 1e-6)) for k in range(3)))
    weights = rng.normal(size=2)
    cotangent = (weights, rng.normal(size=2), np.array(0.0), np.zeros(ATOMS))
    value, tangents, back = _derivatives(inputs(theta), along, cotangent)
    for k in range(3):
        step = 1e-5
        up, down = (_derivatives(inputs(theta + s * np.eye(3)[k]), along, cotangent)[0] for s in (step, -step))
        for name, a, b, tangent in zip(("weights", "log_z", "objective"), up, down, tangents, strict=False):
            got, expected = np.asarray(tangent[k]), (np.asarray(a) - np.asarray(b)) / (2 * step)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=f"{name}, {k}")
        forward = inner(cotangent[:3], [t[k] for t in tangents[:3]])
        np.testing.assert_allclose(inner(back[:2], [leaf[k] for leaf in along[:2]]), forward, rtol=1e-8, atol=1e-10)
    # By the envelope theorem dF = sum_i phi_i dr_i + log Z_i dphi_i under p*, whatever the atoms do.
    p, log_z = np.exp(np.asarray(value[3])), np.asarray(value[1])
    rewards, phi, _ = inputs(theta)
    lift = phi[:, None] * np.exp(rewards - log_z[:, None]) * p
    expected = [np.sum(lift * along[0][k]) + log_z @ along[1][k] for k in range(3)]
    np.testing.assert_allclose(tangents[2], expected, rtol=1e-8, atol=1e-9)


def test_derivatives_where_there_are_many_limits(rng):
    """Equal atoms share their mass, also to first order; on any other face `log_p` has no derivative and says so."""
    rewards = np.full((2, ATOMS), -50.0)
    rewards[0, :3], rewards[1, 3:5] = 0.0, 0.0
    start = np.log(rng.dirichlet(np.ones(ATOMS)))
    ones = np.array([[1.0, -1.0]])
    along = (np.zeros((1, 2, ATOMS)), ones, np.zeros((1, ATOMS)))
    along = jax.tree.map(lambda leaf: np.repeat(leaf, 3, axis=0), along)
    cotangent = (np.ones(2), np.ones(2), np.array(1.0), np.zeros(ATOMS))
    value, tangents, _ = _derivatives((rewards, np.array([0.3, 0.7]), start), along, cotangent)
    np.testing.assert_allclose(np.sort(tangents[0][0]), [-1, 1], atol=1e-9)
    np.testing.assert_allclose(tangents[3][0][:5], [1 / 0.3] * 3 + [-1 / 0.7] * 2, rtol=1e-9)
    tilted = np.full((2, ATOMS), -1000.0)
    tilted[0, :2], tilted[1, 1:3] = [0.0, np.log(0.5)], [np.log(0.5), 0.0]
    value, tangents, _ = _derivatives((tilted, np.array([0.3, 0.7]), start), along, cotangent)
    assert np.isfinite(value[3][:3]).all() and np.isnan(tangents[3]).all()
    assert all(np.isfinite(t).all() for t in tangents[1:3])


def test_unasked_preferences_do_not_spoil_derivatives(rng):
    """With phi_i = 0 there are fewer atoms than preferences; masses still have derivatives."""
    x = np.linspace(-3, 3, ATOMS)
    rewards = -((x - np.array([[-1.0], [1.0]])) ** 2)
    along = (rng.normal(size=(3, 2, ATOMS)) * 1e-3, np.zeros((3, 2)), np.zeros((3, ATOMS)))
    cotangent = (np.ones(2), np.ones(2), np.array(1.0), np.zeros(ATOMS))
    value, tangents, back = _derivatives((rewards, np.array([1.0, 0.0]), np.zeros(ATOMS)), along, cotangent)
    assert (np.asarray(value[0]) > 0).sum() == 1
    assert all(np.isfinite(t).all() for t in (*tangents[:3], *back[:2]))


# --- off the grid -----------------------------------------------------------------------------------------------------


def _hilly(centers, gamma, radius, x):
    """Quadratic rewards, or plateaus where radius > 0."""
    squared = jnp.sum((x[..., None, :] - centers) ** 2, axis=-1)
    return jnp.where(radius > 0, jnp.where(squared <= radius**2, 3.0, 0.0), -gamma * squared).astype(x.dtype)


def _moved(theta):
    reward = Partial(_hilly, theta["centers"], theta["gamma"], theta["radius"])
    land = pj.Landscape.on(pj.Grid.uniform(theta["low"], theta["high"], (41, 9)), reward)
    limit = pj.density.solve_limit(land, theta["phi"], temperature=theta["temperature"], refine=True)
    coarse = pj.density.solve_limit(land, theta["phi"], temperature=theta["temperature"])
    return (limit.weights, limit.log_z, limit.points, limit.objective), (limit, coarse, land.points)


def _differentiate_moved(theta, along, cotangent):
    value, forward, rest = jax.linearize(_moved, theta, has_aux=True)
    return value, rest, jax.vmap(forward)(along), jax.linear_transpose(forward, theta)(cotangent)[0]


_refined = jax.jit(_differentiate_moved, compiler_options=QUICK)
NO_COTANGENT = (np.zeros(MOST), np.zeros(MOST), np.zeros((MOST, 2)), np.zeros(()))


def place(centers, phi, gamma=0.5, low=(-3.0, -3.0), high=(3.0, 3.0), temperature=1.0, radius=0.0):
    """Up to five centers in the plane; those that are missing are never asked for."""
    missing = MOST - len(phi)
    return {
        "centers": np.concatenate([np.asarray(centers, float), np.zeros((missing, 2))]),
        "phi": np.concatenate([np.asarray(phi, float), np.zeros(missing)]),
        **{"gamma": np.array(gamma), "temperature": np.array(temperature), "radius": np.array(radius)},
        **{"low": np.array(low), "high": np.array(high)},
    }


def refine(theta, along=None, cotangent=NO_COTANGENT):
    if along is None:
        along = jax.tree.map(lambda leaf: np.zeros((3, *np.shape(leaf))), theta)
    return jax.tree.map(np.asarray, _refined(theta, along, cotangent))


def height(theta, limit, x):
    """W at any points [k, 2] of the mixture that the limit is, in NumPy: quadratic rewards."""
    sharpness = theta["gamma"] / theta["temperature"]
    log_tilt = lambda y: -sharpness * ((y[:, None] - theta["centers"]) ** 2).sum(-1)  # noqa: E731
    z = limit.weights @ np.exp(log_tilt(limit.points))
    return np.exp(log_tilt(x)) @ (theta["phi"] / z)


def check_moved(theta, limit, coarse, points):
    """The optimality conditions of the nonparametric maximum likelihood estimate of a Gaussian location mixture."""
    used = limit.weights > 0
    assert limit.converged and limit.objective >= coarse.objective - 1e-13
    # Slot by slot the same atom, empty slots last, and the nearest grid atom.
    assert ((limit.support >= 0) == used).all() and (np.diff(used.astype(int)) <= 0).all()
    distance = ((points[None] - limit.points[used][:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(distance[np.arange(used.sum()), limit.support[used]], distance.min(1), atol=1e-12)
    np.testing.assert_allclose(limit.weights.sum(), 1, rtol=1e-10)
    fine = np.stack(np.meshgrid(*(np.linspace(theta["low"][i], theta["high"][i], 201) for i in (0, 1))), -1)
    assert height(theta, limit, fine.reshape(-1, 2)).max() <= 1 + 1e-9
    np.testing.assert_allclose(height(theta, limit, limit.points[used]), 1, atol=1e-10)
    # The slope is zero inside the domain; at its edge it may point outward.
    for i in (0, 1):
        step = 1e-5 * np.eye(2)[i]
        slope = (height(theta, limit, limit.points + step) - height(theta, limit, limit.points - step))[used] / 2e-5
        at = limit.points[used, i]
        wanted = np.where(at >= theta["high"][i], np.minimum(slope, 0), slope)
        wanted = np.where(at <= theta["low"][i], np.maximum(slope, 0), wanted)
        np.testing.assert_allclose(wanted, 0, atol=1e-8)
    return int(used.sum())


def test_centers_in_the_plane(rng):
    for gamma, temperature in ((0.3, 1.0), (2.0, 0.7)):
        theta = place(rng.uniform(-2.5, 2.5, (5, 2)), rng.dirichlet(np.full(5, 3.0)), gamma, temperature=temperature)
        _, (limit, coarse, points), _, _ = refine(theta)
        check_moved(theta, limit, coarse, points)
        log_z = np.log(limit.weights @ np.exp(-gamma / temperature * squared(limit.points, theta["centers"])))
        np.testing.assert_allclose(limit.log_z, log_z, atol=1e-10)


def squared(x, y):
    return ((x[:, None] - y) ** 2).sum(-1)


@pytest.mark.parametrize("share", [0.999, 1.001])
def test_transition_distance(rng, share):
    """Two quadratic preferences of equal weight merge exactly at sqrt(2 tau / gamma)."""
    gamma, temperature = rng.uniform(0.3, 2), rng.uniform(0.5, 2)
    distance = share * np.sqrt(2 * temperature / gamma)
    half = 0.5 * distance
    low, high = (-0.3 * half, -0.1), (0.3 * half, 0.1)
    theta = place([[-half, 0.0], [half, 0.0]], [0.5, 0.5], gamma, low, high, temperature)
    _, (limit, coarse, points), _, _ = refine(theta)
    assert check_moved(theta, limit, coarse, points) == (1 if share < 1 else 2)
    if share < 1:
        np.testing.assert_allclose(limit.points[0], 0, atol=1e-6)
    else:  # x = half tanh(2 gamma x half / tau), where W has its maxima
        x = limit.points[:2, 0]
        np.testing.assert_allclose(x, half * np.tanh(2 * gamma * x * half / temperature), atol=1e-8)
        np.testing.assert_allclose(limit.weights[:2], 0.5, atol=1e-9)


def test_atoms_at_the_edge_and_on_flat_ground():
    outside = place([[5.0, 0.4], [-5.0, 0.0]], [0.4, 0.6])
    _, (limit, coarse, points), _, _ = refine(outside)
    assert check_moved(outside, limit, coarse, points) == 2
    np.testing.assert_allclose(np.sort(limit.points[:2, 0]), [-3, 3])
    np.testing.assert_allclose(limit.points[np.argmax(limit.points[:2, 0]), 1], 0.4, atol=1e-3)
    flat = place([[-1.5, 0.0], [1.5, 0.0]], [0.4, 0.6], radius=0.7)
    _, (limit, coarse, points), _, _ = refine(flat)
    assert limit.converged
    np.testing.assert_array_equal(limit.support, coarse.support)
    np.testing.assert_allclose(limit.points[:2], coarse.points[:2], atol=1e-14)  # one of them from index arithmetic
    np.testing.assert_allclose(limit.weights, coarse.weights, atol=1e-12)


def test_derivatives_off_the_grid(rng):
    """Masses, normalizers and places against finite differences in phi, distance and gamma; reverse agrees with forward."""

    def at(theta):
        phi, distance, gamma = theta
        return place([[-distance / 2, 0.3], [distance / 2, -0.4]], [phi, 1 - phi], gamma)

    theta, step = np.array([rng.uniform(0.35, 0.65), rng.uniform(3, 4), rng.uniform(0.6, 1.0)]), 1e-4
    ends = [[at(theta + s * step * e) for s in (1, -1)] for e in np.eye(3)]
    along = jax.tree.map(lambda *x: np.stack(x), *(jax.tree.map(lambda a, b: (a - b) / 2 / step, *e) for e in ends))
    cotangent = (*(rng.normal(size=np.shape(x)) for x in NO_COTANGENT[:2]), np.zeros((MOST, 2)), np.array(1.0))
    cotangent[2][:2] = rng.normal(size=(2, 2))
    _, (limit, *_), tangents, back = refine(at(theta), along, cotangent)
    assert limit.converged and (limit.weights > 0).sum() == 2
    for k in range(3):
        up, down = (refine(end)[0] for end in ends[k])
        for name, a, b, tangent in zip(("weights", "log_z", "points", "objective"), up, down, tangents, strict=True):
            got, expected = tangent[k], (a - b) / (2 * step)
            got, expected = (x[:2] if np.ndim(x) else x for x in (got, expected))  # the others are never asked for
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=f"{name}, {k}")
        forward = inner(cotangent, [t[k] for t in tangents])
        reverse = sum(np.sum(back[name] * along[name][k]) for name in along)
        np.testing.assert_allclose(reverse, forward, rtol=1e-8, atol=1e-9)


# --- as a function ----------------------------------------------------------------------------------------------------


def test_batches_equal_a_loop_and_numbers_do_not_retrace(rng):
    """Under `vmap` over everything, over phi alone, and one by one: within 1e-10, and nothing is traced twice."""
    base = random_case(rng, "table", 3, 40)
    cases = [base._replace(phi=rng.dirichlet(np.ones(3)), temperature=1.3) for _ in range(4)]
    everything = solve([c._replace(rewards=c.rewards.copy()) for c in cases])
    traced = len(TRACES)
    solve([random_case(rng, "table", 2, 30)])
    assert len(TRACES) == traced

    land, phis = pj.Landscape(rewards=base.rewards), np.stack([c.phi for c in cases])
    over_phi = jax.jit(
        jax.vmap(lambda phi, land: pj.density.solve_limit(land, phi, temperature=1.3), (0, None)),
        compiler_options=QUICK,
    )(phis, land)
    one_by_one = [pj.density.solve_limit(land, phi, temperature=1.3) for phi in phis]
    for b, (a, c) in enumerate(zip(everything, one_by_one, strict=True)):
        for name in ("log_z", "objective"):
            np.testing.assert_allclose(getattr(over_phi, name)[b], getattr(c, name), atol=1e-10)
            np.testing.assert_allclose(getattr(a, name), getattr(c, name), atol=1e-10)
        np.testing.assert_allclose(np.exp(over_phi.log_p[b]), np.exp(c.log_p), atol=1e-8)
        np.testing.assert_allclose(np.exp(a.log_p), np.exp(c.log_p), atol=1e-8)


def test_one_preference_and_one_atom():
    limit = jax.jit(_one, compiler_options=QUICK)(np.array([[3.0]]), np.ones(1), np.zeros(1), np.array(2.0))
    assert limit.converged and limit.unique
    assert [float(x[0]) for x in (limit.log_p, limit.support, limit.weights, limit.log_z)] == [0.0, 0.0, 1.0, 1.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phi": [0.5, 0.6]}, r"phi must sum to 1, got \[0.5, 0.6\], which sums to 1.1"),
        ({"phi": [-0.5, 1.5]}, r"phi must not be negative, got \[-0.5, 1.5\]"),
        ({"phi": [1.0]}, r"phi must hold one weight for each of the 2 preferences .*, got shape \(1,\)"),
        ({"temperature": 0.0}, r"temperature must be positive, got 0.0"),
        ({"temperature": [1.0, 2.0]}, r"temperature must be a single number, got shape \(2,\)"),
        ({"initial": [0.0, 0.0]}, r"initial must have one log-mass for each of the 3 atoms, got shape \(2,\)"),
        ({"initial": [np.nan, 0.0, 0.0]}, r"initial must not hold NaN or \+inf, got nan at index 0"),
        ({"initial": [-np.inf] * 3}, r"initial holds no mass: all 3 log-masses are -inf"),
        ({"refine": True}, r"refine=True needs a landscape made by Landscape.on"),
    ],
)
def test_bad_input(arguments, message):
    land = pj.Landscape(rewards=[[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match=message):
        pj.density.solve_limit(land, **{"phi": [0.5, 0.5], **arguments})
