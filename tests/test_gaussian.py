"""The Gaussian closed form against the grid, against an enumeration of histories, and against quadrature."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import plural_jax as pj
from plural_jax.density.closed_form import GaussianInfo, component_counts, gaussian, mixture_log_density, sample


class Numbers(NamedTuple):
    """The arguments of a process, as NumPy arrays."""

    centers: Any
    gamma: Any
    phi: Any
    mean: Any
    std: Any
    temperature: Any

    def process(self, num_steps: int) -> pj.Process:
        return gaussian(
            self.centers,
            self.gamma,
            self.phi,
            mean=self.mean,
            std=self.std,
            temperature=self.temperature,
            num_steps=num_steps,
        )

    def cast(self, dtype: Any) -> Numbers:
        return Numbers(*(jnp.asarray(x, dtype) for x in self))


def draw(rng: np.random.Generator, m: int, d: int) -> Numbers:
    """Numbers for which a grid over [-12, 12]^d misses less than 1e-16 of the mass."""
    return Numbers(
        centers=rng.uniform(-2.5, 2.5, (m, d)),
        gamma=rng.uniform(0.2, 0.8, m),
        phi=0.9 * rng.dirichlet(np.ones(m)) + 0.1 / m,
        mean=rng.uniform(-0.5, 0.5, d),
        std=rng.uniform(0.6, 1.2),
        temperature=rng.choice([0.6, 1.6]) + rng.uniform(-0.1, 0.1),
    )


def everything(state: Any, info: Any) -> Any:
    return state, info


def check_against_grid(numbers: Numbers, grid: pj.Grid, rounds: tuple[int, ...]) -> None:
    """Densities to 1e-12, and every number that grid and closed form both report."""
    last = max(rounds)
    land = pj.Landscape.on(grid, pj.rewards.quadratic(numbers.centers, numbers.gamma))
    on_grid = pj.density.large_pool(land, numbers.phi, temperature=numbers.temperature)
    start = on_grid.init(land.gaussian(numbers.mean, numbers.std))
    grid_states, grid_infos = pj.run(on_grid, start, last, save=everything)[1]
    closed = numbers.process(last)
    states, infos = pj.run(closed, closed.init(), last, save=everything)[1]
    points = np.asarray(grid.points)
    for t in rounds:
        state, info, grid_info = (jax.tree.map(lambda x, t=t: x[t - 1], tree) for tree in (states, infos, grid_infos))
        assert int(state.step) == t
        expected = np.asarray(grid_states.log_p[t - 1])
        log_p = np.asarray(mixture_log_density(state, grid.points) + grid.log_measure)
        assert 0.5 * np.abs(np.exp(log_p) - np.exp(expected)).sum() < 1e-12
        seen = expected > np.log(1e-200)
        assert seen.sum() > 100
        np.testing.assert_allclose(log_p[seen], expected[seen], rtol=1e-12, atol=1e-12)
        for name in ("reward_mean", "reward_variance", "log_z", "objective"):
            np.testing.assert_allclose(getattr(info, name), getattr(grid_info, name), rtol=1e-11, atol=1e-12)
        p = np.exp(expected)
        mean = p @ points
        np.testing.assert_allclose(info.mean, mean, atol=1e-12)
        np.testing.assert_allclose(info.covariance, ((points - mean).T * p) @ (points - mean), atol=1e-12)


def test_one_dimension_agrees_with_the_grid(rng):
    check_against_grid(draw(rng, m=2, d=1), pj.Grid.uniform(-12.0, 12.0, 2001), rounds=(1, 5, 20))


def test_three_preferences_in_the_plane_agree_with_the_grid(rng):
    numbers = draw(rng, m=3, d=2)._replace(std=rng.uniform(0.6, 0.85))
    check_against_grid(numbers, pj.Grid.uniform([-8.0, -8.0], [8.0, 8.0], 161), rounds=(1, 3, 8))


def enumerate_histories(numbers: Numbers, num_steps: int) -> tuple[dict, np.ndarray]:
    """Weight, mean and variance of every word of preferences, one Gaussian product after the other; and log Z.

    Words with the same counts are added up here only at the end, keyed by their counts.
    """
    m, d = numbers.centers.shape
    rate = numbers.gamma / numbers.temperature
    words = {(): (1.0, np.broadcast_to(numbers.mean, d), numbers.std**2)}

    def expectation(mean: np.ndarray, variance: float, i: int) -> float:
        # exp(-rate ||x - mu||^2) is (pi / rate)^(d/2) times a normal density; a product of two normals integrates so:
        normal = scipy.stats.multivariate_normal(mean, (variance + 0.5 / rate[i]) * np.eye(d))
        return (np.pi / rate[i]) ** (d / 2) * normal.pdf(numbers.centers[i])

    for _ in range(num_steps + 1):
        e = {word: [expectation(mean, v, i) for i in range(m)] for word, (_, mean, v) in words.items()}
        z = sum(words[word][0] * np.array(e[word]) for word in words)
        previous, words = words, {}
        for (word, (weight, mean, v)), i in itertools.product(previous.items(), range(m)):
            narrower = 1 / (1 / v + 2 * rate[i])
            shifted = narrower * (mean / v + 2 * rate[i] * numbers.centers[i])
            words[(*word, i)] = (weight * numbers.phi[i] * e[word][i] / z[i], shifted, narrower)
    merged: dict = {}
    for word, (weight, mean, v) in previous.items():
        counts = tuple(word.count(i) for i in range(m))
        merged[counts] = (merged.get(counts, (0.0,))[0] + weight, mean, v)
    return merged, np.log(z)


@pytest.mark.parametrize(("m", "d", "rounds"), [(1, 1, 5), (1, 3, 4), (2, 2, 6), (3, 1, 5), (4, 3, 4)])
def test_mixture_agrees_with_an_enumeration_of_all_histories(rng, m, d, rounds):
    numbers = draw(rng, m, d)
    process = numbers.process(rounds + 2)  # room to spare, so that components without a history exist
    state, info = pj.run(process, process.init(), rounds, save="final")
    merged, log_z = enumerate_histories(numbers, rounds)
    np.testing.assert_allclose(info.log_z[-1], log_z, rtol=1e-12, atol=1e-12)
    alive = 0
    for k, lead in enumerate(component_counts(m, rounds + 2)):
        counts = (*lead.tolist(), rounds - int(lead.sum()))
        if counts[-1] < 0:
            assert state.weights[k] == 0 and state.log_weights[k] == -np.inf
            continue
        alive += 1
        weight, mean, variance = merged[counts]
        np.testing.assert_allclose(state.log_weights[k], np.log(weight), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(state.means[k], mean, atol=1e-13)
        np.testing.assert_allclose(state.variances[k], variance, rtol=1e-13)
    assert alive == len(merged)
    np.testing.assert_allclose(state.weights.sum(), 1.0, rtol=1e-13)


@pytest.mark.parametrize(("m", "num_steps"), [(1, 3), (2, 7), (3, 5), (5, 4)])
def test_components_are_the_simplex_in_lexicographic_order(m, num_steps):
    expected = [k for k in itertools.product(range(num_steps + 1), repeat=m - 1) if sum(k) <= num_steps]
    assert [tuple(k) for k in component_counts(m, num_steps).tolist()] == expected


def test_moments_agree_with_quadrature(rng):
    numbers = draw(rng, m=3, d=1)
    process = numbers.process(7)
    state, trace = pj.run(process, process.init(), 7)
    info = jax.tree.map(lambda x: np.asarray(x[-1]), trace)
    log_density = jax.jit(lambda x: mixture_log_density(state, x[None]))

    def expect(function: Any) -> float:
        return scipy.integrate.quad(
            lambda x: function(x) * np.exp(log_density(x)), -12, 12, epsabs=1e-12, epsrel=1e-12, limit=500
        )[0]

    assert expect(lambda x: 1.0) == pytest.approx(1.0, abs=1e-11)
    mean = expect(lambda x: x)
    assert info.mean[0] == pytest.approx(mean, abs=1e-10)
    assert info.covariance[0, 0] == pytest.approx(expect(lambda x: (x - mean) ** 2), rel=1e-10)
    i = int(rng.integers(3))

    def reward(x: float) -> float:
        return -numbers.gamma[i] * (x - numbers.centers[i, 0]) ** 2

    reward_mean = expect(reward)
    assert info.reward_mean[i] == pytest.approx(reward_mean, rel=1e-10)
    assert info.reward_variance[i] == pytest.approx(expect(lambda x: (reward(x) - reward_mean) ** 2), rel=1e-10)
    assert info.log_z[i] == pytest.approx(np.log(expect(lambda x: np.exp(reward(x) / numbers.temperature))), rel=1e-10)


def test_samples_follow_the_mixture(rng):
    numbers = draw(rng, m=2, d=2)
    process = numbers.process(6)
    state, trace = pj.run(process, process.init(), 5)
    n = 200_000
    x = np.asarray(sample(jax.random.key(int(rng.integers(2**31))), state, n))
    assert x.shape == (n, 2)
    mean, covariance = np.asarray(trace.mean[-1]), np.asarray(trace.covariance[-1])
    # Six standard errors: once in 1e8 runs by chance.
    assert (np.abs(x.mean(0) - mean) < 6 * np.sqrt(np.diag(covariance) / n)).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert (np.abs(products.mean(0) - covariance) < 6 * products.std(0) / np.sqrt(n)).all()
    weights, means, widths = (np.asarray(a) for a in (state.weights, state.means[:, 0], np.sqrt(state.variances)))

    def cdf(v: np.ndarray) -> np.ndarray:
        return sum(w * scipy.stats.norm.cdf(v, mu, s) for w, mu, s in zip(weights, means, widths, strict=True))

    assert scipy.stats.kstest(x[:, 0], cdf).pvalue > 1e-8


def test_objective_never_decreases_and_order_of_preferences_does_not_matter(rng):
    numbers = draw(rng, m=3, d=2)
    process = numbers.process(15)
    state, trace = pj.run(process, process.init(), 15)
    assert (np.diff(trace.objective) > -1e-13).all()
    order = rng.permutation(3)
    other = numbers._replace(centers=numbers.centers[order], gamma=numbers.gamma[order], phi=numbers.phi[order])
    process = other.process(15)
    permuted, other_trace = pj.run(process, process.init(), 15)
    np.testing.assert_allclose(other_trace.log_z, trace.log_z[:, order], rtol=1e-12)
    x = rng.normal(0.0, 2.0, (4, 5, 2))
    assert mixture_log_density(state, x).shape == (4, 5)
    np.testing.assert_allclose(mixture_log_density(permuted, x), mixture_log_density(state, x), rtol=1e-12)


def test_every_step_and_run_tell_the_same(rng):
    process = draw(rng, m=2, d=1).process(12)
    state = process.init()
    infos = []
    step = jax.jit(process.step)
    for _ in range(12):
        state, info = step(None, state)
        infos.append(info)
    final, trace = pj.run(process, process.init(), 12)
    thinned = pj.run(process, process.init(), 12, every=4)[1]
    for stepped, ran, thin in zip(zip(*infos, strict=True), trace, thinned, strict=True):
        np.testing.assert_allclose(np.stack(stepped), ran, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(thin, ran[3::4], rtol=1e-12, atol=1e-13)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(final), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_one_preference_is_one_gaussian_and_a_flat_reward_changes_nothing(rng):
    numbers = draw(rng, m=1, d=2)
    process = numbers.process(10)
    final, _ = pj.run(process, process.init(), 10)
    precision = 1 / numbers.std**2 + 20 * numbers.gamma[0] / numbers.temperature
    assert final.means.shape == (1, 2)
    assert float(final.variances[0]) == pytest.approx(1 / precision, rel=1e-13)
    process = numbers._replace(gamma=0.0).process(10)
    final, trace = pj.run(process, process.init(), 10)
    np.testing.assert_allclose(final.variances, [numbers.std**2], rtol=1e-14)
    assert (np.asarray(trace.log_z) == 0).all() and (np.asarray(trace.reward_variance) == 0).all()


def test_float32_stays_float32_and_agrees(rng):
    numbers = draw(rng, m=3, d=2)
    process32, process64 = numbers.cast(jnp.float32).process(10), numbers.process(10)
    state32, trace32 = pj.run(process32, process32.init(), 10)
    state64, trace64 = pj.run(process64, process64.init(), 10)
    leaves = [leaf for leaf in jax.tree.leaves((state32, trace32)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    assert mixture_log_density(state32, np.zeros(2)).dtype == np.float32
    assert sample(jax.random.key(0), state32, 3).dtype == np.float32
    for a, b in zip(trace32, trace64, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    x = rng.normal(size=(50, 2))
    np.testing.assert_allclose(mixture_log_density(state32, x), mixture_log_density(state64, x), rtol=1e-4, atol=1e-4)


def test_rewards_of_ten_thousand_are_finite_in_float32():
    centers, phi, std = (jnp.asarray(v, jnp.float32) for v in ([[-150.0], [15.0]], [0.3, 0.7], 1.0))
    process = gaussian(centers, 0.5, phi, std=std, num_steps=100)
    state, trace = pj.run(process, process.init(), 100)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, trace)))
    # Far apart, each preference ends up with its share: the mean is the weighted mean of the centres.
    assert float(trace.mean[-1, 0]) == pytest.approx(0.3 * -150 + 0.7 * 15, rel=0.02)


def summary(numbers: Numbers) -> jax.Array:
    """One number that depends on everything; for m = 3 and d = 2, so that two tests share the compiled functions."""
    process = numbers.process(4)
    state, trace = pj.run(process, process.init(), 4)
    density = mixture_log_density(state, jnp.array([[-1.0, 0.5], [0.3, 1.2]]))
    parts = [*jax.tree.map(lambda x: x[-1], trace), density]
    return sum(jnp.dot(part.reshape(-1), jnp.cos(jnp.arange(part.size, dtype=part.dtype))) for part in parts)


value_of = jax.jit(summary)
gradient_of = jax.jit(jax.grad(summary))
slope_of = jax.jit(lambda numbers, tangent: jax.jvp(summary, (numbers,), (tangent,))[1])


def test_derivatives_agree_with_finite_differences(rng):
    numbers = draw(rng, m=3, d=2).cast(jnp.float64)
    direction = draw(rng, m=3, d=2).cast(jnp.float64)
    gradient = gradient_of(numbers)
    # One argument at a time: what is wrong in one is not hidden by the others.
    h = 1e-5
    for k, name in enumerate(Numbers._fields):
        tangent = Numbers(*(v if j == k else jnp.zeros_like(v) for j, v in enumerate(direction)))
        plus, minus = (jax.tree.map(lambda a, b, s=s: a + s * b, numbers, tangent) for s in (h, -h))
        difference = float((value_of(plus) - value_of(minus)) / (2 * h))
        derivative = float(jnp.sum(gradient[k] * tangent[k]))
        assert derivative == pytest.approx(difference, rel=1e-6, abs=1e-7), name
        assert float(slope_of(numbers, tangent)) == pytest.approx(derivative, rel=1e-10, abs=1e-12), name


def test_an_unused_preference_has_no_effect_but_a_derivative(rng):
    numbers = draw(rng, m=3, d=2)
    # Away from the others, so that its terms lie above those in use.
    centers = np.concatenate([numbers.centers[:2], [[4.0, 0.0]]])
    numbers = numbers._replace(centers=centers, phi=np.array([0.4, 0.6, 0.0])).cast(jnp.float64)
    two = numbers._replace(centers=centers[:2], gamma=numbers.gamma[:2], phi=numbers.phi[:2])
    process, without = numbers.process(4), two.process(4)
    state, trace = pj.run(process, process.init(), 4)
    reference, reference_trace = pj.run(without, without.init(), 4)
    x = rng.normal(size=(20, 2))
    np.testing.assert_allclose(mixture_log_density(state, x), mixture_log_density(reference, x), rtol=1e-12)
    np.testing.assert_allclose(trace.log_z[:, :2], reference_trace.log_z, rtol=1e-12)
    np.testing.assert_allclose(state.weights.sum(), 1.0, rtol=1e-13)

    gradient = gradient_of(numbers)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    tangent = jax.tree.map(jnp.zeros_like, numbers)._replace(phi=jnp.array([-1.0, 0.0, 1.0]))
    derivative = float(gradient.phi @ tangent.phi)
    assert float(slope_of(numbers, tangent)) == pytest.approx(derivative, rel=1e-10)

    def at(h: float) -> float:
        return float(value_of(numbers._replace(phi=numbers.phi + h * tangent.phi)))

    # One-sided, of second order: phi cannot go below zero. The step is tiny because the curvature can be very large.
    h = 2e-8 / (1 + abs(derivative))
    difference = (-3 * at(0.0) + 4 * at(h) - at(2 * h)) / (2 * h)
    assert derivative == pytest.approx(difference, rel=1e-3, abs=1e-5)
    # The derivative is continuous: in use, but hardly, is the same.
    nearly = gradient_of(numbers._replace(phi=jnp.array([0.4, 0.6, 1e-30])))
    for a, b in zip(gradient, nearly, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_vmap_over_numbers_equals_a_loop(rng):
    numbers = draw(rng, m=2, d=2)
    phis = jnp.asarray(rng.dirichlet([2.0, 2.0], 4))
    # Traced numbers pass unread. Weights sum to one even where phi does not, as in a derivative off the simplex.
    phis = jnp.concatenate([phis, 1.5 * phis[:1]])

    def build(phi: jax.Array) -> pj.Process:
        return numbers._replace(phi=phi).process(6)

    def play(process: pj.Process) -> Any:
        return pj.run(process, process.init(), 6)

    # A process is a pytree: a batch of them is one process with batched numbers.
    batched = jax.vmap(play)(jax.vmap(build)(phis))
    for k in range(4):
        for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(play(build(phis[k]))), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=1e-11, atol=1e-12)
    weights = batched[0].weights
    np.testing.assert_allclose(weights[4], weights[0], rtol=1e-11, atol=1e-15)


def test_new_numbers_do_not_retrace(rng):
    traces = 0

    @jax.jit
    def play(process: pj.Process) -> Any:
        nonlocal traces
        traces += 1
        return pj.run(process, process.init(), 3)[1].objective[-1]

    values = {float(play(draw(rng, m=2, d=2).process(4))) for _ in range(4)}
    assert traces == 1
    assert len(values) == 4
    play(draw(rng, m=2, d=2).process(5))
    assert traces == 2  # the capacity is structure


def test_rounds_past_the_capacity_are_refused_or_nan(rng):
    process = draw(rng, m=2, d=1).process(4)
    with pytest.raises(ValueError, match=r"room for num_steps=4 rounds, not for 5"):
        pj.run(process, process.init(), 5)
    full, _ = pj.run(process, process.init(), 4)
    assert np.isfinite(full.means).all()
    with pytest.raises(ValueError, match=r"room for num_steps=4 rounds; the state has done 4"):
        process.step(None, full)
    for state, info in (
        jax.jit(process.step)(None, full),
        pj.run(process, full, 2),
        pj.run(process, process.init(), 6, save=everything),
    ):
        info = info if isinstance(info, GaussianInfo) else jax.tree.map(lambda x: x[-1], info[1])
        floats = [leaf for leaf in jax.tree.leaves((state, info)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert all(np.isnan(leaf).all() for leaf in floats)
        assert np.isnan(mixture_log_density(state, np.zeros((2, 1)))).all()
        assert np.isnan(sample(jax.random.key(0), state, 3)).all()
        assert np.isnan(state.weights).all() and np.isnan(state.log_weights).all()


GOOD: dict[str, Any] = {"centers": [[-1.0, 0.0], [1.0, 0.0]], "gamma": 0.5, "phi": [0.5, 0.5], "num_steps": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centers": [[[0.0]]]}, r"^centers must have shape \[m\] .* or \[m, d\], got shape \(1, 1, 1\)"),
        ({"centers": [[np.nan, 0.0], [1.0, 0.0]]}, r"^centers must be finite, got nan at index \(0, 0\)"),
        ({"gamma": -0.5}, r"^gamma must not be negative, got -0\.5"),
        ({"gamma": [0.1, 0.2, 0.3]}, r"^gamma must be a number or one for each of the 2 centers, got shape \(3,\)"),
        ({"phi": [0.5, 0.6]}, r"^phi must sum to 1, got \[0\.5, 0\.6\], which sums to 1\.1"),
        ({"phi": [1.5, -0.5]}, r"^phi must not be negative, got \[ 1\.5, -0\.5\]"),
        ({"phi": [1.0]}, r"^phi must hold one weight for each of the 2 preferences"),
        ({"mean": [0.0, 0.0, 0.0]}, r"^mean must be a number or one for each of the 2 dimensions, got shape \(3,\)"),
        ({"mean": np.inf}, r"^mean must be finite, got inf"),
        ({"std": 0.0}, r"^std must be positive, got 0\."),
        ({"std": [1.0, 1.0]}, r"^std must be a single number, got shape \(2,\)"),
        ({"temperature": -1.0}, r"^temperature must be positive, got -1\."),
        ({"temperature": [1.0, 1.0]}, r"^temperature must be a single number, got shape \(2,\)"),
        ({"num_steps": 0}, r"^num_steps must be a whole number of at least 1, got 0"),
        ({"num_steps": 2.5}, r"^num_steps must be a whole number of at least 1, got 2\.5"),
        ({"num_steps": 20_000_000}, r"^num_steps=20000000 rounds of 2 preferences need 20000001 Gaussians"),
    ],
)
def test_messages_name_the_argument_and_its_value(change, message):
    with pytest.raises(ValueError, match=message):
        gaussian(**{**GOOD, **change})


def test_messages_of_the_functions_on_a_state():
    state = gaussian(**GOOD).init()
    with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., 2\].* got shape \(4, 3\)"):
        mixture_log_density(state, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        mixture_log_density(state, 0.0)
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1, got 0"):
        sample(jax.random.key(0), state, 0)
    assert mixture_log_density(state, np.zeros((0, 2))).shape == (0,)
