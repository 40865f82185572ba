"""Bounds and laws: on thousands of random landscapes that satisfy their assumptions, and on one that breaks each of them."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import plural_jax as pj
from plural_jax import theory
from tests import oracles
from tests.conftest import SEED_VARIABLE

BATCH, ATOMS, EARLY, ROUNDS = 2000, 40, 50, 2000


class Family(NamedTuple):
    """Many landscapes, each with a start; leading axis over them."""

    rewards: np.ndarray
    phi: np.ndarray
    log_p: np.ndarray
    eps: np.ndarray
    tau: np.ndarray


def separated(rng, m):
    """M disjoint basins, each disliked by the others, and a background that nobody likes."""
    tau, eps = rng.uniform(0.5, 2.0, BATCH), rng.uniform(0.02, 0.3, BATCH)
    owner = rng.integers(-3, m, (BATCH, ATOMS))  # negative: outside every basin
    owner[:, : 2 * m] = np.arange(2 * m) % m
    gap = rng.uniform(0.3, 4.0, (BATCH, m, m))
    rewards = np.empty((BATCH, m, ATOMS))
    for i in range(m):
        own = -0.99 * eps[:, None] * rng.uniform(0, 1, (BATCH, ATOMS))
        cross = -eps[:, None] - np.take_along_axis(gap[:, i], np.maximum(owner, 0), 1) * rng.uniform(
            1, 1.2, (BATCH, ATOMS)
        )
        rewards[:, i] = np.where(owner == i, own, np.where(owner >= 0, cross, -rng.uniform(1.5, 8.0, (BATCH, ATOMS))))
        rewards[:, i, i] = 0.0  # the optimum itself
    rewards = rewards * tau[:, None, None] + rng.normal(size=(BATCH, m, 1))
    start = rng.dirichlet(np.ones(ATOMS), BATCH) * np.where(owner >= 0, 5.0, 1.0)
    return Family(rewards, rng.dirichlet(np.ones(m), BATCH), np.log(start), eps * tau, tau)


def anything(rng, m):
    """Rewards without any structure: wide basins overlap, compromises win."""
    tau, eps = rng.uniform(0.5, 2.0, BATCH), rng.uniform(0.02, 1.0, BATCH)
    rewards = rng.normal(size=(BATCH, m, ATOMS)) * rng.uniform(0.5, 3.0, (BATCH, 1, 1))
    return Family(rewards, rng.dirichlet(np.ones(m), BATCH), np.log(rng.dirichlet(np.ones(ATOMS), BATCH)), eps, tau)


@jax.jit
@jax.vmap
def end_of(family, log_p):
    """Log-masses after many more rounds, [n]."""
    land = pj.Landscape(rewards=family.rewards)
    process = pj.density.large_pool(land, family.phi, temperature=family.tau, eps=family.eps)
    return pj.run(process, process.init(log_p), ROUNDS, save="final")[0].log_p


@jax.jit
@jax.vmap
def later_of(family, log_p, reference):
    land = pj.Landscape(rewards=family.rewards)
    return theory.later_rounds(land, family.phi, log_p, reference=reference, temperature=family.tau, eps=family.eps)


@jax.jit
@jax.vmap
def theory_of(family, log_p):
    """What the library says, after the rounds."""
    land = pj.Landscape(rewards=family.rewards)
    eps, tau = family.eps, family.tau
    split = theory.decompose(land, log_p, eps=eps)
    kappa = theory.partition_leakage(land, eps=eps, temperature=tau)
    lower, upper = theory.partition_weight_bounds(family.phi, kappa)
    share = split.weights / jnp.sum(split.weights)
    means = theory.basin_means(land, split.log_conditionals)
    return {
        "split": split,
        "kappa": kappa,
        "gaps": theory.separation_gaps(land, eps=eps),
        "lower": lower,
        "upper": upper,
        "constant": theory.partition_constant(family.phi, kappa),
        "merged": theory.merged_weight_bounds(land, family.phi, eps=eps, temperature=tau),
        "means": means,
        "mixture": theory.mixture_means(share, means),
        "between": theory.between_basin_variance(share, means),
        "floor": theory.fair_share_floor(land, family.phi, temperature=tau),
    }


class Seen(NamedTuple):
    """A family with its rounds, the library's numbers, and masses computed apart from the library."""

    family: Family
    early: np.ndarray
    final: np.ndarray
    theory: dict
    basins: np.ndarray
    parts: np.ndarray
    gone: np.ndarray


def seen(kind, m):
    rng = np.random.default_rng([int(os.environ[SEED_VARIABLE]), m, len(kind)])
    family = {"separated": separated, "anything": anything}[kind](rng, m)
    early = [family.log_p - oracles.log_sum_exp(family.log_p, axis=1)[:, None]]
    for _ in range(EARLY):
        early.append(early[-1] + log_w(family, early[-1]))
    final = np.asarray(end_of(family, early[-1]))
    said = jax.tree.map(np.asarray, theory_of(family, final))
    short = family.rewards - family.rewards.max(2, keepdims=True)
    basins = short >= -family.eps[:, None, None]
    owner = np.where(basins, short, -np.inf).argmax(1)
    parts = basins & (np.arange(m)[:, None] == owner[:, None, :])
    ceiling = np.where(basins.any(1), -np.inf, later_of(family, final, final).log_w_ceiling).max(1)
    return Seen(family, np.stack(early, axis=1), final, said, basins, parts, ceiling < 0)


@pytest.fixture(scope="module")
def two():
    return seen("separated", 2)


@pytest.fixture(scope="module")
def four():
    return seen("separated", 4)


@pytest.fixture(scope="module")
def wild():
    return seen("anything", 4)


def masses(s, log_p):
    """Masses of the parts and of the outside; log_p [B, ..., n] -> [B, ..., m], [B, ...]."""
    p = np.exp(log_p)
    outside = ~s.basins.any(1)
    if p.ndim == 3:
        return np.einsum("bmn,btn->btm", s.parts, p), np.einsum("bn,btn->bt", outside, p)
    return np.einsum("bmn,bn->bm", s.parts, p), np.einsum("bn,bn->b", outside, p)


def log_w(family, log_p):
    """Log W of Eq. 5 for the whole family, [B, n]."""
    r = family.rewards / family.tau[:, None, None]
    log_z = oracles.log_sum_exp(log_p[:, None] + r, axis=2)
    return oracles.log_sum_exp(np.log(family.phi)[:, :, None] + r - log_z[:, :, None], axis=1)


# --- on random landscapes that satisfy the assumptions ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["two", "four", "wild"])
def test_lemma_3(name, request):
    """In every round, and as rho^t m_0 where outside domination holds."""
    s = request.getfixturevalue(name)
    _, m = masses(s, s.early)
    outside = ~s.basins.any(1)
    sup = np.stack([np.where(outside, log_w(s.family, s.early[:, t]), -np.inf).max(1) for t in range(EARLY)], axis=1)
    assert (m[:, 1:] <= m[:, :-1] * np.exp(sup) * (1 + 1e-9)).all()
    rho = np.exp(sup.max(1))
    dominated = rho < 1
    if name == "two":
        assert dominated.sum() > 1000
    steps = np.arange(EARLY + 1)
    bound = jax.jit(jax.vmap(theory.outside_mass_bound, (0, 0, None)))(m[:, 0], rho, steps)
    assert (m[dominated] <= np.asarray(bound)[dominated] * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["two", "four", "wild"])
def test_lemma_5_in_every_round(name, request):
    """The comparison that Lemmas 4 and 5 rest on needs no assumption at all, and is no empty one."""
    s = request.getfixturevalue(name)
    w, m = masses(s, s.early)
    kappa = np.where(np.eye(w.shape[2], dtype=bool), 0, s.theory["kappa"]).max(2)
    # All preferences of all landscapes in one vmap; with parts of overlapping basins in the place of the basins.
    floor = jax.jit(jax.vmap(jax.vmap(theory.basin_mass_floor, (0, 0, 0, None))))(
        s.family.phi, kappa, w[:, 0].clip(0, 1), m[:, :-1].clip(0, 1)
    )
    floor = np.moveaxis(np.asarray(floor), 1, 2)
    assert (w >= floor * (1 - 1e-9)).all()
    if name == "two":
        assert np.median((floor / w)[:, -1]) > 0.5


def test_lemma_4(two):
    s = two
    kappa = np.stack([s.theory["kappa"][:, 0, 1], s.theory["kappa"][:, 1, 0]], axis=1)
    lower, upper = (np.asarray(v) for v in jax.jit(jax.vmap(theory.basin_weight_bounds))(s.family.phi[:, 0], kappa))
    fits = s.gone & (kappa < 1).all(1)
    assert fits.sum() > 1000
    w, m = masses(s, s.final)
    share = w[:, 0] / w.sum(1)
    assert (m[fits] < 1e-6).all()
    # 2,000 rounds end within about 1e-3 of the limit.
    assert (share[fits] >= lower[fits] - 2e-3).all() and (share[fits] <= upper[fits] + 2e-3).all()
    # The intervals say something, and phi alone does not say it.
    assert np.median((upper - lower)[fits]) < 0.7
    assert np.abs(share - s.family.phi[:, 0])[fits].max() > 0.05
    # Both ways to the same interval.
    np.testing.assert_allclose(s.theory["lower"][:, 0], lower, atol=1e-12)
    np.testing.assert_allclose(s.theory["upper"][:, 0], upper, atol=1e-12)
    # Lemma 5 and Corollary 2: bounded away from 0 and 1.
    inner = fits & (kappa[:, 0] < s.family.phi[:, 0]) & (s.family.phi[:, 0] < 1 - kappa[:, 1])
    assert inner.sum() > 500 and (lower[inner] > 0).all() and (upper[inner] < 1).all()


@pytest.mark.parametrize("name", ["two", "four"])
def test_many_preferences(name, request):
    """B.4 with the explicit constant."""
    s = request.getfixturevalue(name)
    kappa = np.where(np.eye(s.family.phi.shape[1], dtype=bool), 0, s.theory["kappa"]).max((1, 2))
    fits = s.gone & (kappa < 1)
    assert fits.sum() > 500
    w, _ = masses(s, s.final)
    share = w / w.sum(1, keepdims=True)
    slack = 3e-3
    assert (share >= s.theory["lower"] - slack)[fits].all() and (share <= s.theory["upper"] + slack)[fits].all()
    bound = s.theory["constant"] * kappa
    assert (np.abs(share - s.family.phi).max(1) <= bound + slack)[fits].all()
    widest = np.maximum(s.family.phi - s.theory["lower"], s.theory["upper"] - s.family.phi).max(1)
    assert (widest <= bound * (1 + 1e-12))[fits].all()


@pytest.mark.parametrize("name", ["two", "four", "wild"])
def test_merged_basins(name, request):
    s = request.getfixturevalue(name)
    group, lower, upper = s.theory["merged"]
    m = group.shape[1]
    union = np.stack([(s.basins & (group == group[:, [i]])[:, :, None]).any(1) for i in range(m)], axis=1)
    w = np.einsum("bmn,bn->bm", union, np.exp(s.final))
    assert s.gone.sum() > 100
    assert (w >= lower - 5e-3)[s.gone].all() and (w <= upper + 5e-3)[s.gone].all()
    if name == "wild":
        # Groups are the components of the overlaps, and some of them say something about several groups.
        for b in range(0, BATCH, 50):
            shared = np.einsum("in,jn->ij", s.basins[b].astype(int), s.basins[b].astype(int)) > 0
            reach = np.linalg.matrix_power(shared.astype(int), m) > 0
            np.testing.assert_array_equal(group[b], reach.argmax(1))
        several = s.gone & (group.max(1) > 0) & (lower.max(1) > 0)
        assert several.any()
    else:
        assert (lower >= s.theory["lower"] - 1e-12).all() and (upper <= s.theory["upper"] + 1e-12).all()


@pytest.mark.parametrize("name", ["two", "four", "wild"])
def test_theorems_3_5_and_6(name, request):
    s = request.getfixturevalue(name)
    split, means = s.theory["split"], s.theory["means"]
    p, r = np.exp(s.final), s.family.rewards
    w, m = masses(s, s.final)
    np.testing.assert_allclose(split.weights, w, atol=1e-12)
    np.testing.assert_allclose(split.outside_mass, m, atol=1e-12)
    np.testing.assert_allclose(w.sum(1) + m, 1, atol=1e-12)
    within = np.einsum("bj,bjn->bn", w, np.exp(split.log_conditionals))
    np.testing.assert_allclose(within, np.where(s.basins.any(1), p, 0), atol=1e-12)
    filled = (w > 0).all(1)
    assert filled.sum() > 500
    for j in range(w.shape[1]):
        expected = np.einsum("bin,bn->bi", r, np.where(s.parts[:, j], p, 0)) / np.maximum(w[:, [j]], 1e-300)
        sound = w[:, j] > 1e-290  # below, the oracle itself loses digits
        np.testing.assert_allclose(means[sound, :, j], expected[sound], rtol=1e-9, atol=1e-9)
    mean = np.einsum("bin,bn->bi", r, p)
    reach = np.ptp(r, axis=2)
    assert (np.abs(s.theory["mixture"] - mean) <= m[:, None] * reach + 1e-9)[filled].all()
    variance = np.einsum("bin,bn->bi", (r - mean[:, :, None]) ** 2, p)
    assert ((1 - m[:, None]) * s.theory["between"] <= variance + 1e-9)[filled].all()
    # Own basins, and those of the others.
    own = np.diagonal(means, axis1=1, axis2=2)
    assert (own >= r.max(2) - s.family.eps[:, None] - 1e-9)[filled].all()
    cross = r.max(2)[:, :, None] - s.theory["gaps"] + s.family.eps[:, None, None]
    assert (means <= cross + 1e-9)[filled].all()
    if name == "two":
        a = w[:, 0] / w.sum(1)
        np.testing.assert_allclose(
            s.theory["between"], (a * (1 - a))[:, None] * (means[:, :, 0] - means[:, :, 1]) ** 2, atol=1e-9
        )
        gaps = np.stack([s.theory["gaps"][:, 0, 1], s.theory["gaps"][:, 1, 0]], axis=1)
        coarse = jax.jit(jax.vmap(lambda a, g, e: theory.variance_gap_floor(a, g, eps=e)))(
            a.clip(0, 1), gaps, s.family.eps
        )
        assert (coarse <= s.theory["between"] + 1e-9).all() and (np.asarray(coarse) > 0.1).mean() > 0.3


@pytest.mark.parametrize("name", ["two", "four", "wild"])
def test_fair_share(name, request):
    s = request.getfixturevalue(name)
    r = s.family.rewards / s.family.tau[:, None, None]
    log_z = oracles.log_sum_exp(s.final[:, None] + r, axis=2)
    certificate = log_w(s.family, s.final).max(1)
    np.testing.assert_allclose(s.theory["floor"], np.log(s.family.phi) + r.max(2), atol=1e-12)
    assert (log_z >= s.theory["floor"] - certificate[:, None] - 1e-9).all()
    # Sharp for somebody, and useless without the phi.
    assert (log_z - s.theory["floor"]).min() < 0.05 and (log_z < r.max(2) - 0.1).any()


def test_leakage_and_gaps(rng):
    """Against their definitions, and that disjoint basins and separation are one condition on finitely many atoms."""
    for _ in range(50):
        rewards, eps, tau = rng.normal(size=(3, 12)), rng.uniform(0, 1), rng.uniform(0.5, 2)
        land = pj.Landscape(rewards=rewards)
        basins = rewards >= rewards.max(1, keepdims=True) - eps
        gaps = np.array([[rewards[i].max() - rewards[i][basins[j]].max() + eps for j in range(3)] for i in range(3)])
        np.testing.assert_allclose(theory.separation_gaps(land, eps=eps), gaps, atol=1e-12)
        kappa = np.asarray(theory.leakage(land, eps=eps, temperature=tau))
        np.testing.assert_allclose(kappa, np.exp(-(gaps - 2 * eps) / tau), rtol=1e-12)
        disjoint = ~(basins @ basins.T)
        np.testing.assert_array_equal(
            ((kappa < 1) & (kappa.T < 1))[~np.eye(3, dtype=bool)], disjoint[~np.eye(3, dtype=bool)]
        )


# --- each assumption is needed ----------------------------------------------------------------------------------------


def after(rewards, phi, log_p=None, num_steps=3000):
    """The landscape, and its density after many rounds, in NumPy."""
    rewards = np.asarray(rewards, float)
    log_p = np.zeros(rewards.shape[1]) if log_p is None else log_p
    log_p = log_p - oracles.log_sum_exp(log_p)
    for _ in range(num_steps):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, phi)
        log_p = log_p - oracles.log_sum_exp(log_p)
    return pj.Landscape(rewards=rewards), np.exp(log_p)


def interval(kappa, phi=0.5):
    return [float(v) for v in theory.basin_weight_bounds(phi, kappa)]


def test_without_bounded_rewards():
    """(i): no one constant serves rewards without a bound, in Lemma B.3 (the best atom is ever rarer)."""
    constants = []
    for reach in (2.0, 4.0, 8.0):
        land = pj.Landscape(rewards=[[0.0, reach]])
        log_p = np.log([1 - np.exp(-reach), np.exp(-reach)])
        constants.append(float(theory.pool_deviation(land, log_p, pool_size=10.0).constant[0]))
    assert constants[1] > 2 * constants[0] and constants[2] > 10 * constants[1]
    with pytest.raises(ValueError, match="finite"):
        pj.Landscape(rewards=[[0.0, np.inf]])


def test_without_disjoint_basins():
    """(ii): an atom in both basins takes everything; a and b are both 1, and no variance is left."""
    rewards = [[5.0, 0.0, 4.95], [0.0, 5.0, 4.95]]
    _, p = after(rewards, [0.5, 0.5])
    a, b = p[[0, 2]].sum(), p[[1, 2]].sum()
    assert a > 0.999 and b > 0.999  # Thm. 3: not a mixture a P_1 + (1 - a) P_2
    lower, upper = interval([np.exp(-4.9)] * 2)  # the leakage between the atoms that are only in one basin
    assert not lower <= a <= upper
    variance = np.var(np.repeat(rewards, np.round(p * 1e6).astype(int), axis=1), axis=1)
    assert (variance < 1e-2).all()  # Thm. 6 with a = 1/2 would promise (5 / 2)^2


def test_without_initial_mass():
    """(ii): what has no mass can never get any."""
    rewards = np.array([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    log_p = np.log([0.5, 1e-300, 0.5])
    log_p[1] = -np.inf
    land = pj.Landscape(rewards=rewards)
    with pytest.raises(ValueError, match="no initial mass"):
        pj.density.large_pool(land, [0.5, 0.5]).init(log_p)
    for _ in range(500):
        log_p = log_p + oracles.large_pool_log_w(log_p, rewards, [0.5, 0.5])
    a, b = np.exp(log_p[:2])
    kappa = np.asarray(theory.leakage(land))
    lower, upper = interval([kappa[0, 1], kappa[1, 0]])
    assert b == 0 and not lower <= a / (a + b) <= upper


def test_without_outside_domination():
    """(iii): a compromise outside both basins takes everything, and Lemmas 3, 4 and 5 all fail."""
    land, p = after([[5.0, 0.0, 4.6], [0.0, 5.0, 4.6]], [0.5, 0.5])
    kappa = np.asarray(theory.leakage(land))
    assert not land.basins(0.1)[:, 2].any() and kappa[0, 1] < 0.01  # (ii) and (iv) hold
    lower, upper = interval([kappa[0, 1], kappa[1, 0]])
    assert p[2] > 0.999  # m_t -> 1
    assert lower > 0.49 and p[0] < lower  # a_t -> 0 where Lemma 5 promises at least 0.49
    # Only slightly better than an atom that loses: 4.3 is dominated.
    _, p = after([[5.0, 0.0, 4.3], [0.0, 5.0, 4.3]], [0.5, 0.5])
    assert p[2] < 1e-3 and lower <= p[0] <= upper


def test_without_separation():
    """(iv): with the gaps that do not hold the interval is missed; with too much leakage one basin takes all (Lemma 5)."""
    wanted = np.log(10.0)
    k = np.exp(-wanted)
    _, p = after([[wanted, 0.0], [0.0, wanted]], [0.3, 0.7])
    lower, upper = interval([k, k], 0.3)
    assert lower <= p[0] <= upper
    # Now one atom of S_2 that preference 1 likes more than the gap allows.
    broken, p = after([[wanted, 0.0, wanted - 0.3], [0.0, wanted, wanted]], [0.3, 0.7])
    assert not lower <= p[0] <= upper
    true = np.asarray(theory.leakage(broken, eps=0.0))
    lower, upper = interval([true[0, 1], true[1, 0]], 0.3)
    assert true[0, 1] > 0.3 and lower <= p[0] <= upper  # with the true leakage the (wide) interval is right
    assert p[0] < 1e-6  # kappa_1 > phi: collapse, which Lemma 5 excludes below


def test_many_preferences_without_separation():
    """B.4: overlapping basins always break separation, whatever the partition, and weights need not be near phi."""
    m = 4
    rewards = np.full((m, m), -5.0)
    np.fill_diagonal(rewards, 0.0)
    rewards[:2, 0] = rewards[:2, 1] = 0.0  # the first two preferences want the same
    land, p = after(rewards, np.full(m, 1 / m))
    kappa = np.asarray(theory.partition_leakage(land))
    off = kappa[~np.eye(m, dtype=bool)]
    assert off.max() >= 1
    w = np.asarray(theory.decompose(land, np.log(p)).weights)
    assert w[0] > 1.5 / m and w[1] == 0
    group, lower, upper = theory.merged_weight_bounds(land, np.full(m, 1 / m))
    assert group[0] == group[1] == 0 and lower[0] - 1e-3 <= w[0] <= upper[0] + 1e-3 and upper[0] - lower[0] < 0.1


def test_plateaus_are_needed(rng):
    """Prop. 4: on plateaus nothing moves within a basin; elsewhere it does, at most as fast as the spread allows."""
    plateau = np.array([[5.0, 5.0, 0.5, 0.5, 0.0], [0.3, 0.3, 5.0, 5.0, 0.0]])
    log_p = np.log(rng.dirichlet(np.ones(5)))
    bent = plateau + np.array([0.05, 0, 0, 0, 0])
    for rewards, constant in ((plateau, True), (bent, False)):
        land, p = after(rewards, [0.4, 0.6], log_p, num_steps=100)
        before, now = theory.decompose(land, log_p), theory.decompose(land, np.log(p))
        spread, drift = np.asarray(theory.plateau_spread(land)), np.asarray(theory.conditional_drift(before, now))
        assert (spread.max() == 0) == constant
        assert (drift.max() < 1e-12) == constant
        change = np.asarray(now.log_conditionals)[0, :2] - np.asarray(before.log_conditionals)[0, :2]
        assert np.abs(change[0] - change[1]) <= 100 * spread[:, 0].max() + 1e-9
    np.testing.assert_allclose(spread, [[0.05, 0.0], [0.05, 0.0]], atol=1e-12)


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_plateau_weight(rng):
    """Against the maximum of F on two atoms, found by a general-purpose search, and against the dynamics."""
    weight = jax.jit(jax.vmap(theory.plateau_weight))
    phi, k = rng.uniform(0, 1, 300), rng.uniform(0, 0.95, (300, 2))
    got = np.asarray(weight(phi, k))
    for f, (k1, k2), a in zip(phi, k, got, strict=True):
        found = minimize_scalar(
            lambda a, f=f, k1=k1, k2=k2: -f * np.log(a + k1 * (1 - a)) - (1 - f) * np.log(k2 * a + 1 - a),
            bounds=(0, 1), method="bounded", options={"xatol": 1e-10},
        ).x  # fmt: skip
        assert abs(found - a) < 1e-5
    same = np.stack([k[:, 0], k[:, 0]], axis=1)
    symmetric = np.clip(phi + k[:, 0] * (2 * phi - 1) / (1 - k[:, 0]), 0, 1)
    np.testing.assert_allclose(weight(phi, same), symmetric, atol=1e-12)
    assert (symmetric == 0).any() and (symmetric == 1).any()  # the clipped ends are among them
    # Within Lemma 4, which is attained where the other preference does not leak.
    lower, upper = jax.jit(jax.vmap(theory.basin_weight_bounds))(phi, k)
    assert (got >= np.asarray(lower) - 1e-12).all() and (got <= np.asarray(upper) + 1e-12).all()
    one_sided = np.stack([k[:, 0], np.zeros(300)], axis=1)
    np.testing.assert_allclose(weight(phi, one_sided), lower, atol=1e-12)
    _, p = after([[2.0, 0.5], [0.0, 1.0]], [0.4, 0.6])
    np.testing.assert_allclose(p[0], theory.plateau_weight(0.4, np.exp([-1.5, -1.0])), atol=1e-6)
    assert np.isnan(theory.plateau_weight(0.4, [1.0, 0.5]))


def test_nash_point(rng):
    search = jax.jit(jax.vmap(theory.nash_weight_search))
    phi, means = rng.uniform(0.01, 0.99, 200), rng.normal(size=(200, 2, 2)) * 3
    gains = np.stack([means[:, 0, 0] - means[:, 0, 1], means[:, 1, 1] - means[:, 1, 0]], axis=1)
    favors = (gains > 0).all(1)
    found, closed = np.asarray(search(phi, means)), np.asarray(jax.jit(jax.vmap(theory.nash_weight))(phi, means))
    assert 20 < favors.sum() < 180
    np.testing.assert_array_equal(np.isnan(found), ~favors)
    np.testing.assert_array_equal(np.isnan(closed), ~favors)
    np.testing.assert_allclose(found[favors], phi[favors], atol=1e-9)
    np.testing.assert_array_equal(closed[favors], phi[favors])
    np.testing.assert_allclose(search(np.array([0.0, 1.0]), np.array([np.eye(2)] * 2)), [0, 1], atol=1e-12)


def test_nash_product_is_that_of_mixtures(rng):
    """Utilities of the mixed densities themselves, and a third way to the maximum."""
    rewards = rng.normal(size=(2, 6))
    rewards[0, :3] += 5
    rewards[1, 3:] += 5
    land, phi = pj.Landscape(rewards=rewards), rng.uniform(0.1, 0.9)
    first, second = np.zeros(6), np.zeros(6)
    first[:3], second[3:] = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3))
    with np.errstate(divide="ignore"):
        means = theory.basin_means(land, np.log([first, second]))

    def log_product(a):
        u = rewards @ (a * first + (1 - a) * second)
        return phi * np.log(u[0] - rewards[0] @ second) + (1 - phi) * np.log(u[1] - rewards[1] @ first)

    for a in rng.uniform(0.05, 0.95, 5):
        np.testing.assert_allclose(theory.log_nash_product(a, phi, means), log_product(a), atol=1e-10)
    best = minimize_scalar(
        lambda a: -log_product(a), bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-10}
    ).x
    np.testing.assert_allclose(theory.nash_weight_search(phi, means), best, atol=1e-5)
    assert theory.log_nash_product(0.0, phi, means) == -np.inf == theory.log_nash_product(1.0, phi, means)


def test_lemma_b3(rng):
    """The measured constant, against pairs and triples; it falls with K, because the deviation falls like 1 / K."""
    land = pj.Landscape(rewards=rng.normal(size=(2, 5)) * 1.5)
    p = rng.dirichlet(np.ones(5))
    infinite = np.exp(land.rewards) / (np.exp(land.rewards) @ p)[:, None]
    for k, h in ((2, oracles.pairwise_h(p, land.rewards)), (3, oracles.brute_h(p, land.rewards, 3))):
        got = theory.pool_deviation(land, np.log(p), pool_size=float(k))
        np.testing.assert_allclose(got.deviation, np.abs(h - infinite).max(1), rtol=1e-10)
        np.testing.assert_allclose(got.constant, got.deviation / np.sqrt(np.log(k) / k), rtol=1e-12)
    # What is left beside 1 / K falls like 1 / K^2: a few hundredths at K = 1,000 where a rare reward is much the highest.
    measured = [theory.pool_deviation(land, np.log(p), pool_size=k) for k in (1e2, 1e4, 1e5)]
    deviation = np.array([d.deviation for d in measured])
    np.testing.assert_allclose(deviation[1] / deviation[2], 10, rtol=0.02)
    assert (np.diff([d.constant for d in measured], axis=0) < 0).all()


def test_transition_distance(rng):
    """Where W around the one point stops being at most 1: by second differences, and for phi = 1/2 as a whole."""
    for pool_size in (np.inf, 3.0, 10.0):
        gamma, phi, tau = rng.uniform(0.2, 3), rng.uniform(0.1, 0.9), rng.uniform(0.5, 2)
        d = float(theory.transition_distance(gamma, phi=phi, temperature=tau, pool_size=pool_size))
        h = 1e-3 * d
        for factor, stable in ((0.99, True), (1.01, False)):
            centers = factor * d * np.array([-0.5, 0.5])
            mean = phi * centers[0] + (1 - phi) * centers[1]

            def multiplier(x, centers=centers, mean=mean, gamma=gamma, phi=phi, tau=tau, pool_size=pool_size):
                e = np.exp(gamma / tau * ((mean - centers) ** 2 - (x - centers) ** 2))
                h = e if np.isinf(pool_size) else pool_size * e / (e + pool_size - 1)
                return phi * h[0] + (1 - phi) * h[1]

            curvature = multiplier(mean + h) - 2 * multiplier(mean) + multiplier(mean - h)
            assert (curvature < 0) == stable
    assert float(theory.transition_distance(2.0, temperature=0.5)) == np.sqrt(2 * 0.5 / 2.0)
    assert theory.transition_distance(1.0, pool_size=2.0) == theory.transition_distance(1.0, phi=1.0) == np.inf
    assert theory.transition_distance(0.0) == np.inf
    # For phi = 1/2 one point is the limit exactly up to there: W <= 1 everywhere.
    x = np.linspace(-3, 3, 2001)
    for d, single in ((1.98, True), (2.02, False)):
        w = np.cosh(0.5 * d * x) * np.exp(-0.5 * x**2)
        assert (w.max() <= 1 + 1e-12) == single


def test_finite_masses_bound():
    assert float(theory.outside_mass_bound(0.4, 2.0, 3)) == 1.0
    floor = theory.basin_mass_floor(0.3, 0.5, 0.9, np.zeros(2000))
    assert floor[-1] < 1e-3  # kappa > phi: nothing is promised
    assert not np.isnan(theory.basin_mass_floor(0.3, 0.5, 0.0, np.zeros(5))).any()


# --- what one density says about later rounds -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two", "four", "wild"])
def test_later_rounds(name, request):
    """From the density after EARLY rounds on: every multiplier, normalizer and outside mass that then comes."""
    s = request.getfixturevalue(name)
    here = s.early[:, -1]
    plain, sharp = (jax.tree.map(np.asarray, later_of(s.family, here, q)) for q in (here, s.final))
    log_p = here
    r = s.family.rewards / s.family.tau[:, None, None]
    checked = [here]
    for _ in range(60):
        log_p = log_p + log_w(s.family, log_p)
        checked.append(log_p)
    for log_p in (*checked[:5], *checked[5::10], s.final):
        _, m = masses(s, log_p)
        log_z = oracles.log_sum_exp(log_p[:, None] + r, axis=2)
        for b in (plain, sharp):
            assert (log_w(s.family, log_p) <= b.log_w_ceiling + 1e-12).all()
            assert (b.log_z_lower - 1e-12 <= log_z).all() and (log_z <= b.log_z_upper + 1e-12).all()
            assert (b.outside_lower - 1e-9 <= m).all() and (m <= b.outside_upper + 1e-9).all()
    assert np.median(sharp.slack) < 0.9 * np.median(plain.slack)
    # They say something: the outside is proved to vanish in many cases, and not to vanish in others.
    assert (plain.outside_upper < 0.5).mean() > (0.05 if name == "wild" else 0.5)
    if name == "wild":
        assert (plain.outside_lower > 0.1).mean() > 0.002


def test_later_rounds_at_the_edges():
    land = pj.Landscape(rewards=np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1.0]], np.float32))
    for phi in ([1.0, 0.0], [0.5, 0.5], [1e-6, 1 - 1e-6]):
        later = theory.later_rounds(land, phi, land.uniform())
        assert all(v.dtype == np.float32 and not np.isnan(v).any() for v in later)


# --- as JAX functions -------------------------------------------------------------------------------------------------


def everything(rewards, log_p, phi, eps, tau):
    land = pj.Landscape(rewards=rewards)
    split = theory.decompose(land, log_p, eps=eps)
    kappa = theory.leakage(land, eps=eps, temperature=tau)
    means = theory.basin_means(land, split.log_conditionals)
    pair = jnp.stack([kappa[0, 1], kappa[1, 0]])
    return {
        "kappa": kappa,
        "bounds": theory.basin_weight_bounds(phi[0], pair),
        "many": theory.partition_weight_bounds(phi, kappa),
        "constant": theory.partition_constant(phi, kappa),
        "merged": theory.merged_weight_bounds(land, phi, eps=eps, temperature=tau)[1:],
        "split": split,
        "drift": theory.conditional_drift(split, split),
        "means": means,
        "mixture": theory.mixture_means(split.weights, means),
        "variance": theory.between_basin_variance(split.weights, means),
        "coarse": theory.variance_gap_floor(split.weights[0], kappa[0], eps=eps),
        "spread": theory.plateau_spread(land, eps=eps),
        "plateau": theory.plateau_weight(phi[0], pair),
        "nash": theory.nash_weight_search(phi[0], means),
        "product": theory.log_nash_product(0.5, phi[0], means),
        "fair": theory.fair_share_floor(land, phi, temperature=tau),
        "transition": theory.transition_distance(tau, phi=phi[0]),
        "floor": theory.basin_mass_floor(phi[0], kappa[0, 1], 0.2, log_p * 0),
        "mass": theory.outside_mass_bound(0.2, tau, log_p * 0),
        "pool": theory.pool_deviation(land, log_p, pool_size=4.0, temperature=tau),
    }


compiled = jax.jit(everything)


def some_arguments(rng):
    rewards = rng.normal(size=(2, 8))
    rewards[[0, 1], [0, 1]] = 4.0
    return [np.asarray(v) for v in (rewards, np.log(rng.dirichlet(np.ones(8))), rng.dirichlet([2, 2]), 0.1, 1.2)]


def test_jit_and_types(rng):
    """Under jit, once for all numbers, in float64 and as a reader's float32; the families above run under vmap."""
    arguments = some_arguments(rng)
    long = compiled(*arguments)
    before = compiled._cache_size()
    compiled(*some_arguments(rng))
    assert compiled._cache_size() == before
    short = compiled(*(v.astype(np.float32) for v in arguments))
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(long))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(short))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), short, long)


def test_temperature_is_a_unit(rng):
    """Rewards r and eps at temperature tau are r / tau and eps / tau at temperature 1."""
    rewards, log_p, phi, eps, tau = some_arguments(rng)
    hot, one = compiled(rewards, log_p, phi, eps, tau), compiled(rewards / tau, log_p, phi, eps / tau, np.asarray(1.0))
    for name in ("kappa", "bounds", "many", "constant", "merged", "split", "plateau", "fair", "pool"):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), hot[name], one[name])
    for name, power in (("means", 1), ("spread", 1), ("mixture", 1), ("variance", 2)):
        np.testing.assert_allclose(hot[name], one[name] * tau**power, rtol=1e-9, atol=1e-12)


def test_gradients(rng):
    """Of the bounds by phi, of the transition by gamma."""
    slope = jax.grad(lambda phi: theory.basin_weight_bounds(phi, [0.1, 0.2])[0])(0.4)
    np.testing.assert_allclose(slope, 1 / 0.9)
    slope = jax.grad(theory.transition_distance)(0.5)
    np.testing.assert_allclose(slope, -2.0)
    land = pj.Landscape(rewards=[[4.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
    mean = jax.grad(lambda p: theory.decompose(land, p).weights[0])(jnp.log(jnp.array([0.2, 0.3, 0.5])))
    np.testing.assert_allclose(mean, [0.16, -0.06, -0.1], atol=1e-12)


LAND = pj.Landscape(rewards=[[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.leakage(LAND, eps=-0.1), "eps must not be negative, got -0.1"),
        (lambda: theory.leakage(LAND, temperature=0.0), "temperature must be positive"),
        (lambda: theory.separation_gaps(LAND, eps=np.inf), "eps must be finite"),
        (lambda: theory.basin_weight_bounds(1.5, [0.1, 0.1]), "phi must lie between 0 and 1, got 1.5"),
        (lambda: theory.basin_weight_bounds(0.5, [0.1]), "kappa must hold the two leakages"),
        (lambda: theory.outside_mass_bound(1.5, 0.5, 1), "outside_mass must lie between 0 and 1"),
        (lambda: theory.outside_mass_bound(0.5, -0.5, 1), "rho must not be negative"),
        (lambda: theory.basin_mass_floor(0.5, -1.0, 0.5, [0.0]), "kappa must not be negative"),
        (lambda: theory.basin_mass_floor(0.5, 0.1, 0.5, 0.0), "one mass for each round"),
        (lambda: theory.partition_weight_bounds([0.5, 0.5], [[0.1]]), "phi must hold one weight for each of the 1"),
        (lambda: theory.partition_weight_bounds([0.5, 0.5], [0.1, 0.1]), "kappa must be a table"),
        (lambda: theory.partition_constant([0.5, 0.5], [[0.0, -1.0], [0.0, 0.0]]), "kappa must not be negative"),
        (lambda: theory.merged_weight_bounds(LAND, [0.5, 0.6]), "phi must sum to 1"),
        (lambda: theory.decompose(LAND, [0.0]), "log_p must have one log-mass for each of the 2 atoms"),
        (lambda: theory.basin_means(LAND, [[0.0]]), "log_conditionals must hold one log-mass"),
        (lambda: theory.mixture_means([0.5, 0.5], [[1.0]]), "one number for each column of means"),
        (lambda: theory.between_basin_variance([1.5], [[1.0]]), "weights must lie between 0 and 1"),
        (lambda: theory.variance_gap_floor(0.5, [1.0]), "gaps must hold"),
        (lambda: theory.plateau_weight(0.5, 0.1), "kappa must hold the two leakages"),
        (lambda: theory.fair_share_floor(LAND, [1.0]), "phi must hold one weight for each of the 2"),
        (lambda: theory.log_nash_product(2.0, 0.5, np.eye(2)), "weight must lie between 0 and 1"),
        (lambda: theory.nash_weight(0.5, np.eye(3)), "means must hold mu_ij of two preferences"),
        (lambda: theory.nash_weight_search([0.5], np.eye(2)), "phi must be a single number"),
        (lambda: theory.pool_deviation(LAND, [0.0, 0.0], pool_size=1.0), "pool_size must be at least 2"),
        (lambda: theory.pool_deviation(LAND, [0.0, 0.0], pool_size=np.inf), "pool_size must be finite"),
        (lambda: theory.transition_distance(-1.0), "gamma must not be negative, got -1.0"),
        (lambda: theory.transition_distance(1.0, pool_size=1.5), "pool_size must be at least 2"),
        (lambda: theory.later_rounds(LAND, [0.5, 0.5], [0.0, 0.0], reference=[0.0]), "reference must have one log-mass"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        call()
