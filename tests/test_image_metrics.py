"""Diversity in a classifier's eyes and Fréchet distances, against NumPy, SciPy and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from plural_jax import metrics
from plural_jax.metrics import frechet

NUM_CLASSES = 10


def _variances(features: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Loops over classes and dimensions, in float64."""
    features = features.astype(np.float64)
    within = []
    for label in np.unique(predicted):
        rows = features[predicted == label]
        if len(rows) >= 2:
            within.append(np.mean([column.var() for column in rows.T]))
    return float(np.mean([column.var() for column in features.T])), float(np.mean(within)) if within else 0.0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_metrics_are_those_of_a_loop_over_classes(rng: np.random.Generator, dtype: type) -> None:
    # Classes 7 to 9 have no image, class 6 has one.
    predicted = rng.permutation(np.concatenate([rng.integers(0, 6, 56), [6]]))
    features = (rng.normal(size=(57, 5)) * 3 + rng.normal(size=(NUM_CLASSES, 5))[predicted] * 50 + 1000).astype(dtype)
    logits = rng.uniform(-1, 1, (57, NUM_CLASSES)).astype(dtype)
    logits[np.arange(57), predicted] += 3
    found = metrics.image_metrics(logits, features)
    shares = np.bincount(predicted, minlength=NUM_CLASSES) / 57
    entropy = -sum(p * np.log(p) for p in shares if p > 0)
    tolerance = 1e-12 if dtype is np.float64 else 1e-4
    np.testing.assert_allclose(found.class_shares, shares, atol=1e-15)
    np.testing.assert_allclose(found.class_entropy, entropy, rtol=1e-12)
    np.testing.assert_allclose(found.kl_to_uniform, np.log(NUM_CLASSES) - entropy, rtol=1e-12)
    of_all, within = _variances(features, predicted)
    np.testing.assert_allclose(found.feature_variance, of_all, rtol=tolerance)
    np.testing.assert_allclose(found.intra_class_variance, within, rtol=tolerance)
    assert found.feature_variance.dtype == found.intra_class_variance.dtype == dtype

    one_by_one = (
        metrics.class_shares(predicted, NUM_CLASSES),
        metrics.class_entropy(predicted, NUM_CLASSES),
        metrics.kl_to_uniform(predicted, NUM_CLASSES),
        metrics.feature_variance(features),
        metrics.intra_class_variance(features, predicted, NUM_CLASSES),
    )
    inside = jax.jit(metrics.image_metrics)(logits, features)
    for ours, alone, jitted in zip(found, one_by_one, inside, strict=True):
        np.testing.assert_allclose(ours, alone, rtol=tolerance)
        np.testing.assert_allclose(ours, jitted, rtol=tolerance)


def test_against_real_data_the_variances_are_one(rng: np.random.Generator) -> None:
    logits, features = rng.normal(size=(40, NUM_CLASSES)), rng.normal(size=(40, 3))
    real = metrics.image_metrics(logits, features)
    again = metrics.image_metrics(logits, features, real)
    np.testing.assert_allclose([again.feature_variance, again.intra_class_variance], 1.0, rtol=1e-12)
    twice = metrics.image_metrics(logits, 2 * features, real)
    np.testing.assert_allclose([twice.feature_variance, twice.intra_class_variance], 4.0, rtol=1e-12)
    np.testing.assert_allclose(twice.class_entropy, real.class_entropy)
    np.testing.assert_allclose(metrics.feature_variance(2 * features, real.feature_variance), 4.0, rtol=1e-12)


@pytest.mark.parametrize("classes", [1, 5, NUM_CLASSES])
def test_entropy_of_balanced_classes(classes: int) -> None:
    predicted = np.repeat(np.arange(classes), 3)
    entropy, divergence = metrics.class_entropy(predicted, NUM_CLASSES), metrics.kl_to_uniform(predicted, NUM_CLASSES)
    np.testing.assert_allclose(entropy, np.log(classes), atol=1e-12)
    np.testing.assert_allclose(divergence, np.log(NUM_CLASSES / classes), atol=1e-12)
    assert entropy >= 0 and divergence >= 0


def test_collapsed_sets_have_finite_metrics() -> None:
    alike = metrics.image_metrics(np.tile(np.eye(NUM_CLASSES)[3], (4, 1)), np.ones((4, 2)))
    assert [float(v) for v in alike[1:]] == [0.0, pytest.approx(np.log(NUM_CLASSES)), 0.0, 0.0]
    # Every class has one image: none has a spread.
    assert float(metrics.intra_class_variance(np.eye(3), np.arange(3), NUM_CLASSES)) == 0.0
    assert float(metrics.feature_variance(np.ones((1, 2)))) == 0.0


def test_intra_class_variance_counts_classes_alike(rng: np.random.Generator) -> None:
    narrow, wide = rng.normal(size=(30, 4)), 5 * rng.normal(size=(6, 4))
    features, predicted = np.concatenate([narrow, wide]), np.repeat([2, 8], [30, 6])
    expected = (narrow.var(axis=0).mean() + wide.var(axis=0).mean()) / 2
    np.testing.assert_allclose(metrics.intra_class_variance(features, predicted, NUM_CLASSES), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.class_entropy([0, 10], 10), "predicted must lie between 0 and 9"),
        (lambda: metrics.class_entropy([0, -1], 10), "predicted must lie between 0 and 9"),
        (lambda: metrics.class_entropy([0.5], 10), "predicted must be whole numbers"),
        (lambda: metrics.class_entropy(np.zeros(0, int), 10), "predicted must hold the class of at least one"),
        (lambda: metrics.class_entropy([0], 0), "num_classes"),
        (lambda: metrics.feature_variance(np.ones(3)), r"features must have shape \[n, f\]"),
        (lambda: metrics.feature_variance(np.ones((3, 2)), 0.0), "reference must be positive"),
        (lambda: metrics.feature_variance(np.ones((3, 2)), np.ones(2)), "reference must be one number"),
        (lambda: metrics.intra_class_variance(np.ones((3, 2)), [0, 1], 10), "one class for each of the 3 rows"),
        (lambda: metrics.image_metrics(np.ones((2, 10)), np.ones((3, 2))), "logits must have shape"),
        (
            lambda: metrics.image_metrics(
                np.ones((3, 2)), np.ones((3, 2)), metrics.image_metrics(np.ones((3, 2)), np.ones((3, 2)))
            ),
            "reference.feature_variance must be positive",
        ),
        (lambda: metrics.moments(np.ones(3)), r"features must have shape \[n, f\]"),
        (lambda: metrics.moments([[np.nan]]), "features must be finite"),
        (lambda: metrics.merge(metrics.moments([[1.0]]), metrics.moments([[1.0, 2.0]])), "as many features"),
        (lambda: metrics.frechet_distance([0.0], [[1.0]], [0.0, 1.0], np.eye(2)), "mean2 must have shape"),
        (lambda: metrics.frechet_distance([0.0], [[1.0]], [0.0], np.eye(2)), "cov2 must have shape"),
        (lambda: metrics.frechet_distance([0.0], [[np.inf]], [0.0], [[1.0]]), "cov1 must be finite"),
        (lambda: metrics.frechet_distance([0.0], [[1.0]], [0.0], [[-1.0]]), "cov2 must be positive semidefinite"),
        (
            lambda: metrics.frechet_distance(np.zeros(2), [[1.0, 0.5], [0.0, 1.0]], np.zeros(2), np.eye(2)),
            "cov1 must be symmetric",
        ),
        (lambda: metrics.classifier_frechet_distance([[1.0]], [[1.0], [2.0]]), "features must hold at least two"),
        (lambda: metrics.classifier_frechet_distance([[1.0], [2.0]], [[1.0]]), "reference must hold at least two"),
        (lambda: jax.jit(metrics.moments)(jnp.ones((2, 2))), "outside jit"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_moments_are_numpys_in_every_split(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    features = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + rng.normal(size=4)
    expected_mean, expected_covariance = features.mean(axis=0), np.cov(features, rowvar=False)
    monkeypatch.setattr(frechet, "_ROWS", 7)
    cuts = np.sort(rng.choice(np.arange(1, 50), 3, replace=False))
    parts = [metrics.moments(part) for part in np.split(features, cuts)]
    left = metrics.merge(metrics.merge(metrics.merge(*parts[:2]), parts[2]), parts[3])
    right = metrics.merge(parts[0], metrics.merge(parts[1], metrics.merge(*parts[2:])))
    for found in (metrics.moments(features), left, right):
        assert found.num_images == 50
        np.testing.assert_allclose(found.mean, expected_mean, rtol=1e-12)
        np.testing.assert_allclose(found.covariance, expected_covariance, rtol=1e-11)


def test_moments_keep_a_small_variance_beside_a_large_mean(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frechet, "_ROWS", 16)
    # Multiples of 2^-10 up to 2^26, so that the shifted numbers are exact too. A sum of squares would keep no digit.
    steps = np.round(rng.normal(size=(64, 3)) * 1024) / 1024
    found = metrics.moments(steps + 2.0**26)
    np.testing.assert_allclose(found.covariance, np.cov(steps, rowvar=False), rtol=1e-6)


def test_moments_of_float32_are_computed_in_float64(rng: np.random.Generator) -> None:
    features = (rng.normal(size=(300, 3)) + 100).astype(np.float32)
    found = metrics.moments(jnp.asarray(features))
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-11)


def _covariance(rng: np.random.Generator, size: int, rank: int | None = None) -> np.ndarray:
    factor = rng.normal(size=(size, rank or size + 3))
    return factor @ factor.T


@pytest.mark.parametrize("large", [512, 1], ids=["singular values", "eigenvalues"])
@pytest.mark.parametrize("size", [1, 2, 17])
def test_frechet_distance_is_that_of_a_matrix_root(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, size: int, large: int
) -> None:
    monkeypatch.setattr(frechet, "_LARGE", large)
    mean1, mean2 = rng.normal(size=(2, size))
    cov1, cov2 = _covariance(rng, size), _covariance(rng, size)
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * np.real(root))
    found = metrics.frechet_distance(mean1, cov1, mean2, cov2)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.frechet_distance(mean2, cov2, mean1, cov1), found, rtol=1e-10)


def test_frechet_distance_of_commuting_covariances(rng: np.random.Generator) -> None:
    """Those with common axes: `||mu_1 - mu_2||^2 + sum_k (s_1k - s_2k)^2` for standard deviations along them."""
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    first, second = rng.uniform(0.1, 3, (2, 6))
    second[0] = first[1] = 0.0
    mean1, mean2 = rng.normal(size=(2, 6))
    found = metrics.frechet_distance(mean1, (axes * first**2) @ axes.T, mean2, (axes * second**2) @ axes.T)
    np.testing.assert_allclose(found, np.sum((mean1 - mean2) ** 2) + np.sum((first - second) ** 2), rtol=1e-10)


@pytest.mark.parametrize("large", [512, 1], ids=["singular values", "eigenvalues"])
def test_frechet_distance_of_few_samples_in_many_dimensions(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    """There `tr (C_1 C_2)^(1/2)` is the sum of the singular values of `X_1 X_2^T`, small and exact."""
    monkeypatch.setattr(frechet, "_LARGE", large)
    first, second = rng.normal(size=(5, 60)) * 3, rng.normal(size=(8, 60)) + 1
    centered1, centered2 = first - first.mean(axis=0), second - second.mean(axis=0)
    overlap = centered1 @ centered2.T / np.sqrt(4 * 7)
    expected = (
        np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2)
        + np.sum(centered1**2) / 4
        + np.sum(centered2**2) / 7
        - 2 * np.linalg.svd(overlap, compute_uv=False).sum()
    )
    np.testing.assert_allclose(metrics.classifier_frechet_distance(first, second), expected, rtol=1e-10)
    from_moments = metrics.classifier_frechet_distance(metrics.moments(first), metrics.moments(second))
    np.testing.assert_allclose(from_moments, expected, rtol=1e-10)


def test_frechet_distance_has_its_limits(rng: np.random.Generator) -> None:
    mean, step = rng.normal(size=(2, 9))
    for cov in (_covariance(rng, 9), _covariance(rng, 9, rank=2), np.zeros((9, 9))):
        alike = metrics.frechet_distance(mean, cov, mean, cov)
        assert 0 <= alike <= 1e-12 * max(np.trace(cov), 1.0)
        moved = metrics.frechet_distance(mean, cov, mean + step, cov)
        np.testing.assert_allclose(moved, np.sum(step**2), rtol=1e-10)
        to_a_point = metrics.frechet_distance(mean, cov, mean + step, np.zeros((9, 9)))
        np.testing.assert_allclose(to_a_point, np.sum(step**2) + np.trace(cov), rtol=1e-12)


def test_images_are_rounded_as_in_files(rng: np.random.Generator) -> None:
    levels = rng.integers(0, 256, (2, 4, 4, 3))
    real = (levels / 127.5 - 1).astype(np.float32)
    np.testing.assert_array_equal(frechet.as_saved(real), real)
    between = real + rng.uniform(-0.45, 0.45, real.shape).astype(np.float32) / 127.5
    np.testing.assert_array_equal(frechet.as_saved(between), real)
    assert np.abs(frechet.as_saved(rng.normal(size=(9,)) * 5)).max() <= 1.0


def test_eigenvalues_find_what_is_no_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "_LARGE", 1)
    with pytest.raises(ValueError, match="cov2 must be positive semidefinite"):
        metrics.frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.diag([1.0, -1.0]))
    # One that is zero on all directions of the first, and one without any direction.
    for other in (np.diag([0.0, 4.0]), np.zeros((2, 2))):
        expected = 1.0 + np.trace(other)
        first = np.diag([1.0, 0.0])
        assert metrics.frechet_distance(np.zeros(2), first, np.zeros(2), other) == pytest.approx(expected, rel=1e-12)
        assert metrics.frechet_distance(np.zeros(2), other, np.zeros(2), first) == pytest.approx(expected, rel=1e-12)
