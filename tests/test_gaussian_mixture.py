"""Gaussian mixtures: EM against scikit-learn, densities against scipy, and what a model has to do on any data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from plural_jax import models

SEEDS, POINTS = 6, 160
FIELDS = ("weights", "means", "covariances")
traces = []


@jax.jit
def _inits(model, keys):
    return jax.vmap(model.init)(keys)


@jax.jit
def _fits(model, keys, params, samples, weights):
    """Fits to samples [s, n, d] with weights [s, n], and the mean log-likelihoods before and after, [2, s]."""
    traces.append(model)

    def one(key, params, x, w):
        new = model.fit(key, params, x, w)
        share = w / jnp.where(jnp.sum(w) > 0, jnp.sum(w), 1.0)
        return new, jnp.stack([jnp.dot(share, model.log_prob(p, x)) for p in (params, new)])

    return jax.vmap(one)(keys, params, samples, weights)


@pytest.fixture
def sklearn_mixture():
    mixture = pytest.importorskip("sklearn.mixture", reason="compares with scikit-learn, which is not installed")
    threads = pytest.importorskip("threadpoolctl", reason="scikit-learn brings it")
    # More threads than one only slow such small fits down.
    with threads.threadpool_limits(1), np.errstate(all="ignore"):
        yield mixture


def _keys(rng, count=None):
    key = jax.random.key(int(rng.integers(2**31)))
    return key if count is None else jax.random.split(key, count)


def _covariances(rng, k, d):
    root = rng.normal(size=(k, d, d))
    return 0.3 * root @ root.transpose(0, 2, 1) + 0.2 * np.eye(d)


def _points(rng, n, k=2, d=2, separation=3.0):
    """Points of a random mixture, [n, d]."""
    means = separation * rng.normal(size=(k, d))
    roots = np.linalg.cholesky(_covariances(rng, k, d))
    component = rng.choice(k, n, p=rng.dirichlet(np.full(k, 5.0)))
    return means[component] + np.einsum("nij,nj->ni", roots[component], rng.normal(size=(n, d)))


def _stacked(rng, **kwargs):
    return np.stack([_points(rng, POINTS, **kwargs) for _ in range(SEEDS)])


def _params(rng, k, d, zero=False):
    weights = rng.dirichlet(np.full(k, 3.0))
    if zero:
        weights[0], weights[-1] = 0.0, 0.0
        weights /= weights.sum()
    fits = jnp.zeros((), jnp.int32)
    mixture = (jnp.asarray(weights), jnp.asarray(2 * rng.normal(size=(k, d))), jnp.asarray(_covariances(rng, k, d)))
    return models.MixtureParams(*mixture, fits, fits, jnp.ones((), bool))


def _scipy_log_prob(params, x):
    parts = [
        np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x)
        for w, m, c in zip(*map(np.asarray, params[:3]), strict=True)
        if w > 0
    ]
    return np.logaddexp.reduce(parts, axis=0)


# Dimension 6 takes LAPACK's factors, 2 those that are written out.
@pytest.mark.filterwarnings("ignore:Best performing initialization")
@pytest.mark.parametrize(("k", "d"), [(3, 2), (2, 6)])
def test_em_is_that_of_scikit_learn_from_the_same_start(rng, sklearn_mixture, k, d):
    for _ in range(5):
        x = _points(rng, 300, k, d, separation=1.0)
        # From points, so that no component starts with so little mass that it is rounding: there we keep the old mean, while
        # scikit-learn moves it to zero.
        start = _params(rng, k, d)._replace(means=x[rng.choice(300, k, replace=False)])
        tol = 10 ** rng.uniform(-6, -2)
        # The default reg_covar lets a component shrink to a few points, and which ones is then a matter of rounding.
        theirs = sklearn_mixture.GaussianMixture(
            k,
            tol=tol,
            reg_covar=0.01,
            max_iter=30,
            weights_init=start.weights,
            means_init=start.means,
            precisions_init=np.linalg.inv(start.covariances),
        ).fit(x)
        ours = models.em(x, None, start, reg_covar=0.01, tol=tol, max_iter=30)
        assert int(ours.num_iter) == theirs.n_iter_ and bool(ours.converged) == theirs.converged_
        assert abs(ours.log_likelihood - theirs.score(x)) < 1e-6
        for field in FIELDS:
            np.testing.assert_allclose(
                getattr(ours.params, field), getattr(theirs, field + "_"), rtol=1e-6, atol=1e-6, err_msg=field
            )


@pytest.mark.parametrize("k", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_fits_are_as_good_as_those_of_scikit_learn(rng, sklearn_mixture, k):
    """Seeds are lottery tickets, as local optima differ, also between two runs of scikit-learn.

    Two components: ours is no worse, within 1e-3 (the tolerance), in 97.8 % of data sets like these, and scikit-learn with one
    seed against itself with another in 97.8 %; within 1e-6, 85 % both. Three components: 85 % and 88 %; within 1e-6, 65 % both.
    The best of three of ours: 99 % and 97.5 %. (Of 800 and 400 data sets.)
    """
    sets, longest = 200, 500
    x, w = np.zeros((sets, longest, 2)), np.zeros((sets, longest))
    theirs = np.zeros(sets)
    for s in range(sets):
        n = int(rng.integers(300, longest + 1))
        x[s, :n], w[s, :n] = _points(rng, n, 2 + s % 2, separation=rng.uniform(0, 4)), 1.0
        fitted = sklearn_mixture.GaussianMixture(k, random_state=int(rng.integers(2**31))).fit(x[s, :n])
        theirs[s] = fitted.score(x[s, :n])
    model = models.gaussian_mixture(k)
    start = _inits(model, _keys(rng, sets))
    # Points of weight 0 make all sets equally long, so that one compiled function fits them all at once.
    tries = np.stack([np.asarray(_fits(model, _keys(rng, sets), start, x, w)[1][:, 1]) for _ in range(3)])
    assert np.isfinite(tries).all()
    assert np.mean(tries.max(axis=0) >= theirs - 1e-3) >= 0.95
    worse, better = np.sum(tries[0] < theirs - 1e-3), np.sum(tries[0] > theirs + 1e-3)
    assert worse <= {2: 0.1, 3: 0.25}[k] * sets
    assert scipy.stats.binomtest(int(worse), int(max(worse + better, 1)), alternative="greater").pvalue > 1e-5


def test_whole_weights_are_repeated_points(rng):
    weights = rng.integers(0, 4, size=(SEEDS, 60))
    weights[:, 0] += 1
    x, repeated, w, ones = (
        np.zeros(shape) for shape in ((SEEDS, POINTS, 2), (SEEDS, POINTS, 2), *2 * ((SEEDS, POINTS),))
    )
    for s in range(SEEDS):
        weights[s, 1:][np.cumsum(weights[s])[1:] > POINTS] = 0
        total = weights[s].sum()
        x[s, :60], w[s, :60] = _points(rng, 60), weights[s]
        repeated[s, :total], ones[s, :total] = np.repeat(x[s, :60], weights[s], axis=0), 1.0
    model, keys = models.gaussian_mixture(), _keys(rng, SEEDS)
    start = _inits(model, keys)
    by_weight, _ = _fits(model, keys, start, x, 7.0 * w)  # in any scale
    by_points, _ = _fits(model, keys, start, repeated, ones)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(by_weight, field), getattr(by_points, field), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degenerate_data(rng, dtype):
    x, w = _stacked(rng), np.ones((SEEDS, POINTS))
    x[0] = rng.normal(size=2)  # one point
    x[1] = rng.normal(size=(2, 2))[np.arange(POINTS) % 2]  # two points
    x[2, :, 1] = 3 * x[2, :, 0]  # a line
    w[3] = 0.0
    w[4, 1:] = 0.0
    x[5, 0] = 1e6  # an outlier
    with jax.enable_x64(dtype == np.float64):
        model, keys = models.gaussian_mixture(), _keys(rng, SEEDS)
        start = _inits(model, keys)
        params, likelihood = _fits(model, keys, start, x.astype(dtype), w.astype(dtype))
        draws = jax.vmap(lambda key, p: model.sample(key, p, 50))(keys, params)
        assert all(part.dtype in (dtype, np.int32, bool) for part in (*params, likelihood, draws))
    assert all(np.isfinite(part).all() for part in (*params, likelihood, draws))
    np.testing.assert_allclose(params.weights.sum(axis=1), 1.0, rtol=1e-5)
    assert (np.linalg.eigvalsh(np.asarray(params.covariances, np.float64)) > 0).all()
    assert np.asarray(params.num_fits == 1).all()
    # One point, also by weights: at it, with the covariance that is added.
    for s in (0, 4):
        main = int(np.argmax(params.weights[s]))
        np.testing.assert_allclose(params.means[s, main], x[s, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(params.covariances[s, main], 1e-6 * np.eye(2), atol=1e-8)
    # Two points: a component at each.
    order = np.argsort(x[1, :2, 0]), np.argsort(params.means[1, :, 0])
    np.testing.assert_allclose(np.asarray(params.means[1])[order[1]], x[1, :2][order[0]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params.weights[1], 0.5, atol=1e-5)
    # No weight: as before.
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(params, field)[3], getattr(start, field)[3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_and_tight_components_keep_their_digits(rng, dtype):
    """Two clusters as wide as 1e-2 at a distance of 10, 1,000 from zero: the covariance from squares would have no digit."""
    side = np.arange(POINTS) % 2
    x = (1000.0 + 10.0 * side[:, None] + 1e-2 * rng.normal(size=(SEEDS, POINTS, 2))).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        model, keys = models.gaussian_mixture(), _keys(rng, SEEDS)
        params, _ = _fits(model, keys, _inits(model, keys), x, np.ones((SEEDS, POINTS), dtype))
    for s in range(SEEDS):
        for component, number in zip(np.argsort(params.means[s, :, 0]), (0, 1), strict=True):
            own = x[s, side == number].astype(np.float64)
            np.testing.assert_allclose(params.means[s, component], own.mean(axis=0), rtol=2e-7)
            np.testing.assert_allclose(
                params.covariances[s, component], np.cov(own.T, bias=True) + 1e-6 * np.eye(2), rtol=0, atol=1e-6
            )


def test_a_component_without_points_dies_quietly():
    x = np.linspace(-1.0, 1.0, 300)[:, None] * np.ones(2)
    start = (np.full(3, 1 / 3), np.array([[0.0, 0.0], [0.5, 0.5], [1e8, 1e8]]), np.stack([np.eye(2)] * 3))
    result = models.em(x, None, start)
    assert all(np.isfinite(part).all() for part in (*result.params, result.log_likelihood))
    assert result.params.weights[2] < 1e-12 and np.allclose(result.params.means[2], 1e8)


def test_the_first_rounds_have_one_component(rng):
    x, w, keys = _stacked(rng), rng.uniform(size=(SEEDS, POINTS)), _keys(rng, SEEDS)
    model = models.gaussian_mixture(one_component_rounds=2)
    params = _inits(model, keys)
    for number in (1, 2, 3):
        params, likelihood = _fits(model, keys, params, x, w)
        assert np.asarray(params.num_fits == number).all()
        if number <= 2:
            for s in range(SEEDS):
                np.testing.assert_array_equal(params.weights[s], [1.0, 0.0])
                np.testing.assert_allclose(params.means[s, 0], np.average(x[s], axis=0, weights=w[s]), atol=1e-12)
                cov = np.cov(x[s].T, aweights=w[s], bias=True) + 1e-6 * np.eye(2)
                np.testing.assert_allclose(params.covariances[s, 0], cov, atol=1e-12)
            assert np.asarray(params.num_iter == 0).all() and np.asarray(params.converged).all()
    assert (np.asarray(params.weights) > 1e-3).all() and np.asarray(params.num_iter >= 2).all()
    assert (likelihood[:, 1] > likelihood[:, 0]).all()
    at_once, _ = _fits(models.gaussian_mixture(), keys, _inits(model, keys), x, w)
    for field in FIELDS:  # from scratch: the same as without the rounds before
        np.testing.assert_array_equal(getattr(at_once, field), getattr(params, field))


def test_the_start_is_one_component_fit_to_normal_points(rng):
    stds = jnp.asarray(rng.uniform(0.5, 3.0, size=SEEDS))
    mean = rng.normal(size=2)

    @jax.jit
    def starts(keys, stds):
        return jax.vmap(lambda key, std: models.gaussian_mixture(mean=mean, std=std, num_initial=400).init(key))(
            keys, stds
        )

    params = starts(_keys(rng, SEEDS), stds)
    assert (params.weights == np.array([1.0, 0.0])).all() and np.asarray(params.num_fits == 0).all()
    z = (params.means[:, 0] - mean) / stds[:, None] * 20.0
    assert np.abs(z).max() < 5.5
    spread = params.covariances[:, 0] / stds[:, None, None] ** 2 - np.eye(2)
    assert np.abs(spread).max() < 6 * np.sqrt(2 / 400) and np.abs(spread).min() > 1e-6


@pytest.mark.parametrize(("k", "d"), [(4, 2), (3, 6)])
def test_log_prob_and_samples(rng, k, d):
    model = models.gaussian_mixture(k, d)
    params = _params(rng, k, d, zero=True)
    x = 3 * rng.normal(size=(50, d))
    np.testing.assert_allclose(model.log_prob(params, x), _scipy_log_prob(params, x), rtol=1e-10)
    num = 40_000
    draws = np.asarray(model.sample(_keys(rng), params, num))
    assert draws.shape == (num, d)
    weights, means, covariances = (np.asarray(part) for part in params[:3])
    mean = weights @ means
    offsets = means - mean
    cov = np.einsum("k,kij->ij", weights, covariances + offsets[:, :, None] * offsets[:, None, :])
    std = np.sqrt(np.diag(cov))
    assert (np.abs(draws.mean(axis=0) - mean) / std * np.sqrt(num)).max() < 5.5
    centred = draws - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert (np.abs(products.mean(axis=0) - cov) / products.std(axis=0) * np.sqrt(num)).max() < 5.5
    # Not the moments alone: the samples' own log-densities have the mean of independent draws.
    z = rng.choice(k, num, p=weights)
    own = means[z] + np.einsum("nij,nj->ni", np.linalg.cholesky(covariances)[z], rng.normal(size=(num, d)))
    first, second = (_scipy_log_prob(params, points) for points in (draws, own))
    assert scipy.stats.ks_2samp(first, second).pvalue > 1e-6


def test_log_prob_has_finite_derivatives_at_zero_weights(rng):
    params = _params(rng, 3, 2, zero=True)
    gradient = jax.grad(
        lambda means: models.gaussian_mixture(3).log_prob(params._replace(means=means), np.ones((4, 2))).sum()
    )
    assert np.isfinite(gradient(params.means)).all()


def test_restarts_keep_the_best(rng):
    x, key = _points(rng, 100, 3, separation=1.0), _keys(rng)
    one, several = models.gaussian_mixture(3), models.gaussian_mixture(3, num_restarts=3)
    start = one.init(key)
    tried = [one.fit(own, start, x, None) for own in jax.random.split(key, 3)]
    best = max(tried, key=lambda params: float(one.log_prob(params, x).mean()))
    kept = several.fit(key, start, x, None)
    np.testing.assert_allclose(several.log_prob(kept, x).mean(), one.log_prob(best, x).mean(), rtol=0, atol=1e-10)


def test_kmeans(rng):
    """Centres are the means of their points, points have the nearest centre, and all well separated clusters are found."""
    truth = 100.0 * np.array([[0, 0], [0, 1], [1, 0], [1, 1], [5, 5]])
    label = rng.permutation(np.arange(200) % 5)
    x, w = truth[label] + rng.normal(size=(200, 2)), rng.uniform(0.5, 2.0, size=200)
    # Greedy seeds miss a cluster in some percent of the runs; one in five is enough.
    results = [models.kmeans(key, x, w, 5) for key in _keys(rng, 5)]
    for result in results:
        distances = ((x[:, None] - np.asarray(result.centers)) ** 2).sum(axis=-1)
        np.testing.assert_array_equal(result.labels, distances.argmin(axis=1))
        np.testing.assert_allclose(result.inertia, w @ distances.min(axis=1), rtol=1e-9)
        for j in range(5):
            own = np.asarray(result.labels) == j
            assert np.linalg.norm(np.average(x[own], axis=0, weights=w[own]) - result.centers[j]) < 1.0
    best = min(results, key=lambda result: float(result.inertia))
    assert len({(int(a), int(b)) for a, b in zip(label, best.labels, strict=True)}) == 5


def test_vmap_is_a_loop_and_new_numbers_do_not_retrace(rng):
    x, keys = _stacked(rng), _keys(rng, SEEDS)
    w = rng.uniform(size=(SEEDS, POINTS))
    model = models.gaussian_mixture(one_component_rounds=1, tol=1e-4)
    start = _inits(model, keys)._replace(num_fits=jnp.arange(SEEDS, dtype=jnp.int32) % 3)
    batched, _ = _fits(model, keys, start, x, w)
    for s in range(SEEDS):
        alone = model.fit(keys[s], jax.tree.map(lambda part, s=s: part[s], start), x[s], w[s])
        for field in models.MixtureParams._fields:
            # Sums in another order: last digits, times what EM makes of them.
            np.testing.assert_allclose(getattr(batched, field)[s], getattr(alone, field), rtol=1e-8, atol=1e-8)
    before = len(traces)
    other = models.gaussian_mixture(mean=1.0, std=2.0, one_component_rounds=3, reg_covar=1e-3, tol=1e-5, max_iter=7)
    changed, _ = _fits(other, keys, start, x, w)
    assert len(traces) == before and not np.allclose(changed.covariances, batched.covariances)


def test_a_model_maps_over_its_numbers(rng):
    rounds, x, key = jnp.asarray([0.0, 1.0, 2.0]), _points(rng, POINTS), _keys(rng)

    @jax.jit
    def fits(rounds):
        def one(number):
            model = models.gaussian_mixture(one_component_rounds=number)
            return model.fit(key, model.init(key)._replace(num_fits=jnp.ones((), jnp.int32)), x, None)

        return jax.vmap(one)(rounds)

    np.testing.assert_array_equal(fits(rounds).num_iter > 0, [True, True, False])


CASES = {
    "num_components must be a whole number of at least 1, got 0": lambda: models.gaussian_mixture(0),
    "dimension must be a whole number of at least 1, got 1.5": lambda: models.gaussian_mixture(2, 1.5),
    "num_initial must be a whole number of at least 1, got -1": lambda: models.gaussian_mixture(num_initial=-1),
    "num_restarts must be a whole number of at least 1, got 0": lambda: models.gaussian_mixture(num_restarts=0),
    r"mean must be a number or have shape \(2,\), got shape \(3,\)": lambda: models.gaussian_mixture(
        mean=[0.0, 1.0, 2.0]
    ),
    "mean must be finite, got nan": lambda: models.gaussian_mixture(mean=np.nan),
    "std must be positive, got 0.0": lambda: models.gaussian_mixture(std=0.0),
    r"std must be a single number, got shape \(2,\)": lambda: models.gaussian_mixture(std=[1.0, 2.0]),
    "one_component_rounds must be a whole number of at least 0, got 2.5": lambda: models.gaussian_mixture(
        one_component_rounds=2.5
    ),
    "reg_covar must not be negative, got -1.0": lambda: models.gaussian_mixture(reg_covar=-1.0),
    "tol must not be negative, got -0.5": lambda: models.gaussian_mixture(tol=-0.5),
    "max_iter must be a whole number of at least 1, got 0": lambda: models.gaussian_mixture(max_iter=0),
    "key must be a PRNG key, got None": lambda: models.gaussian_mixture().init(None),
    "num must be a whole number of at least 1, got 0": lambda: models.gaussian_mixture().sample(0, None, 0),
    r"samples must have shape \(n, 2\), got shape \(5, 3\)": lambda: _bad_fit(np.ones((5, 3))),
    "samples must hold at least 2 points, got 1": lambda: _bad_fit(np.ones((1, 2))),
    r"samples must be finite, got nan at index \(0, 0\)": lambda: _bad_fit(np.full((5, 2), np.nan)),
    r"weights must hold one number for each of the 5 samples, got shape \(4,\)": lambda: _bad_fit(
        np.ones((5, 2)), np.ones(4)
    ),
    r"weights must not be negative and not all zero, got \[1.0, -1.0\]|\[ ?1., -1.\]": lambda: _bad_fit(
        np.ones((2, 2)), np.array([1.0, -1.0])
    ),
    r"weights must not be negative and not all zero, got \[0., 0.\]": lambda: _bad_fit(np.ones((2, 2)), np.zeros(2)),
    "start must hold weights": lambda: models.em(np.ones((5, 2)), None, (np.ones(2), np.ones((2, 2)), np.ones((2, 2)))),
    "weights of the start must not be negative": lambda: models.em(
        np.ones((5, 1)), None, (-np.ones(1), np.ones((1, 1)), np.ones((1, 1, 1)))
    ),
    "samples must hold at least 9 points, got 5": lambda: models.kmeans(0, np.ones((5, 2)), None, 9),
}


def _bad_fit(samples, weights=None):
    return models.gaussian_mixture().fit(0, None, samples, weights)


@pytest.mark.parametrize("message", CASES)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message) as caught:
        CASES[message]()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
