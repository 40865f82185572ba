"""Fréchet distances between sets of features, in float64 on the host.

The name FID is kept for Inception features (`fid`). The same distance in the features of another network is a
`classifier_frechet_distance`; its numbers are on another scale and cannot be compared with any FID.

Shapes: n images, f features.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.models.inception import FeatureExtractor, check_images

#: Rows that are converted to float64 at once.
_ROWS = 4096
#: With more features than this, singular values are not computed to the last digit.
_LARGE = 512
#: What rounding in float32 may do to a covariance, in units of its largest eigenvalue.
_ROUNDING = 1e-5


class Moments(NamedTuple):
    """What a Fréchet distance needs of a set of features.

    Attributes:
        num_images: n.
        mean: float64 [f].
        covariance: float64 [f, f], the unbiased estimate (divided by n - 1); zero for a single row.
    """

    num_images: int
    mean: np.ndarray
    covariance: np.ndarray


def moments(features: ArrayLike) -> Moments:
    """Number, mean and covariance of features.

    `mean = sum_i x_i / n`, `covariance = sum_i (x_i - mean)(x_i - mean)^T / (n - 1)`

    Computed in blocks of rows, each around its own mean, and joined with `merge`: no sum of squares loses the digits of a small
    variance beside a large mean.

    Args:
        features: [n, f].

    Returns:
        Moments in float64.

    Raises:
        ValueError: not a table, or without rows or columns; NaN or infinity.

    Example:
        >>> found = moments([[1.0, 0.0], [3.0, 0.0]])
        >>> found.num_images, found.mean.tolist(), found.covariance.tolist()
        (2, [2.0, 0.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    table = _table(features, "features")
    return functools.reduce(merge, (_block(table[start : start + _ROWS]) for start in range(0, len(table), _ROWS)))


def _block(rows: np.ndarray) -> Moments:
    values = rows.astype(np.float64)
    mean = values.mean(axis=0)
    values -= mean
    return Moments(len(values), mean, values.T @ values / max(len(values) - 1, 1))


def merge(first: Moments, second: Moments) -> Moments:
    """The moments of two sets of features together (Chan, Golub and LeVeque 1979).

    `S = S_1 + S_2 + (mu_2 - mu_1)(mu_2 - mu_1)^T n_1 n_2 / (n_1 + n_2)` for `S = (n - 1) covariance`

    Raises:
        ValueError: different numbers of features.

    Example:
        >>> merge(moments([[1.0]]), moments([[3.0]]))
        Moments(num_images=2, mean=array([2.]), covariance=array([[2.]]))
    """
    if np.shape(first.mean) != np.shape(second.mean):
        raise ValueError(
            f"first and second must have as many features, got {np.shape(first.mean)} and {np.shape(second.mean)}."
        )
    count = first.num_images + second.num_images
    step = second.mean - first.mean
    scatter = first.covariance * (first.num_images - 1) + second.covariance * (second.num_images - 1)
    scatter += np.outer(step, step) * (first.num_images * second.num_images / count)
    return Moments(count, first.mean + step * (second.num_images / count), scatter / (count - 1))


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians (Dowson and Landau 1982).

    `d = ||mu_1 - mu_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))`

    With any factors `C_i = F_i F_i^T`, the trace of the root is the sum of the singular values of `F_1^T F_2`: these are real and
    not negative, whatever the rank of the covariances. The same value for exchanged arguments, up to rounding.

    Args:
        mean1, mean2: [f].
        cov1, cov2: [f, f], symmetric and positive semidefinite; singular ones are welcome.

    Returns:
        The distance, not negative, from float64 arithmetic.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, a matrix that is no covariance.

    Example:
        >>> print(frechet_distance([0.0], [[1.0]], [3.0], [[4.0]]))  # 3^2 + (2 - 1)^2
        10.0

    Source: Heusel et al. 2017, Eq. 6, for its use on features.
    """
    means = [_vector(mean1, "mean1"), _vector(mean2, "mean2")]
    if means[0].shape != means[1].shape:
        raise ValueError(f"mean2 must have shape {means[0].shape} as mean1 has, got {means[1].shape}.")
    covariances = [_matrix(cov1, "cov1", len(means[0])), _matrix(cov2, "cov2", len(means[0]))]
    root = _trace_of_root(*covariances)
    traces = np.trace(covariances[0]) + np.trace(covariances[1])
    return max(0.0, float(np.sum((means[0] - means[1]) ** 2) + (traces - 2 * root)))


def _trace_of_root(cov1: np.ndarray, cov2: np.ndarray) -> float:
    first = _factor(cov1, "cov1")
    if len(cov1) <= _LARGE:
        product = first.T @ _factor(cov2, "cov2")
        return float(np.linalg.svd(product, compute_uv=False).sum()) if product.size else 0.0
    # The squares of these singular values: for the 2,048 features of Inception twice as fast, and right to seven digits. None is
    # left out as noise here, because in float64 the squares of all small ones look like it.
    squares = first.T @ cov2 @ first
    values = np.linalg.eigvalsh((squares + squares.T) / 2) if squares.size else np.zeros(1)
    _check_semidefinite(values, "cov2")
    return float(np.sqrt(np.maximum(values, 0.0)).sum())


def _factor(covariance: np.ndarray, name: str) -> np.ndarray:
    """F with `covariance = F F^T`, [f, rank]."""
    values, vectors = np.linalg.eigh(covariance)
    _check_semidefinite(values, name)
    # Below this the eigenvalues are noise, and their roots would be large.
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def _check_semidefinite(values: np.ndarray, name: str) -> None:
    if values[0] < -_ROUNDING * max(values[-1], 0.0):
        raise ValueError(f"{name} must be positive semidefinite, got an eigenvalue of {values[0]:.6g}.")


def classifier_frechet_distance(features: ArrayLike | Moments, reference: ArrayLike | Moments) -> float:
    """Fréchet distance between images in the features of a classifier: not FID, and on another scale.

    `d = frechet_distance` of the two sets' means and covariances. It tells rounds and arms of one study apart where no Inception
    weights are at hand, as long as all use the same classifier.

    Args:
        features: of the images to judge, [n, f] with n at least 2, or their moments.
        reference: of real images, [n, f] or their moments.

    Raises:
        ValueError: fewer than two images, different numbers of features, NaN or infinity.

    Example:
        >>> print(classifier_frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]))
        9.0
    """
    return _distance(_as_moments(features, "features"), _as_moments(reference, "reference"))


def fid(images: ArrayLike | Moments, reference: ArrayLike | Moments, extractor: FeatureExtractor) -> float:
    """Fréchet Inception distance: `frechet_distance` of means and covariances of Inception-v3 features.

    Values depend on how many images are used (fewer give larger ones): compare equal numbers only; the usual one is 50,000
    generated images against all real training images. With fewer images than the 2,048 features the covariance is singular, and
    the value is defined all the same.

    Args:
        images: to judge, [n, height, width, 3] in [-1, 1] with n at least 2, or their `inception_moments`.
        reference: real images, likewise.
        extractor: from `load_inception`. Features of any other network give a `classifier_frechet_distance`.

    Raises:
        TypeError: the extractor is not Inception's.
        ValueError: fewer than two images, NaN, a wrong shape.

    Source: Heusel et al. 2017. Within 1e-2 of pytorch-fid on the same images and weights.
    """
    if not isinstance(extractor, FeatureExtractor):
        raise TypeError(f"extractor must come from load_inception, got {type(extractor).__name__}.")
    both = (
        value if isinstance(value, Moments) else inception_moments(value, extractor) for value in (images, reference)
    )
    return _distance(*(_enough(value, name) for value, name in zip(both, ("images", "reference"), strict=True)))


def inception_moments(images: ArrayLike, extractor: FeatureExtractor) -> Moments:
    """Moments of Inception features of images, a batch at a time: neither pictures nor features pile up.

    The images are first clipped to [-1, 1] and rounded to the 256 levels that a saved picture has [default], because published
    values are computed from pictures; real images do not change.

    Args:
        images: [n, height, width, 3] in [-1, 1].
        extractor: from `load_inception`; its `batch_size` is the batch.
    """
    check_images(images)
    n, size = np.shape(images)[0], min(extractor.batch_size, np.shape(images)[0])
    blocks, features = [], []
    for start in range(0, n, size):
        pictures = as_saved(images[start : start + size])  # type: ignore[index]
        count = len(pictures)
        # A full batch always, so that the network is compiled once.
        filled = np.concatenate([pictures, np.zeros((size - count, *pictures.shape[1:]), np.float32)])
        features.append(np.asarray(extractor(filled))[:count])
        if len(features) * size >= _ROWS or start + size >= n:
            blocks.append(moments(np.concatenate(features)))
            features = []
    return functools.reduce(merge, blocks)


def as_saved(images: ArrayLike) -> np.ndarray:
    """Images as they come back from a file of 8-bit numbers, float32: `2 round(255 (x + 1) / 2) / 255 - 1`, x clipped to [-1, 1].

    Example:
        >>> print(as_saved([-3.0, -1.0, 0.0, 1.0]))
        [-1.         -1.          0.00392157  1.        ]
    """
    values = np.clip(np.asarray(images, np.float64), -1.0, 1.0)
    return (np.rint((values + 1.0) * 127.5) / 127.5 - 1.0).astype(np.float32)


def _distance(first: Moments, second: Moments) -> float:
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def _as_moments(value: ArrayLike | Moments, name: str) -> Moments:
    return _enough(value if isinstance(value, Moments) else moments(_table(value, name)), name)


def _enough(value: Moments, name: str) -> Moments:
    if value.num_images < 2:
        raise ValueError(f"{name} must hold at least two images, which a covariance needs, got {value.num_images}.")
    return value


def _table(value: ArrayLike, name: str) -> np.ndarray:
    shape = np.shape(value)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} must have shape [n, f] with at least one row and column, got {shape}.")
    _validate.finite(value, name)
    return _host(value, name)


def _host(value: ArrayLike, name: str) -> np.ndarray:
    array = _validate.real_array(value, name)
    if array is None:
        raise ValueError(f"{name} must hold numbers: Fréchet distances are computed on the host, outside jit.")
    return array


def _vector(value: ArrayLike, name: str) -> np.ndarray:
    if len(np.shape(value)) != 1 or 0 in np.shape(value):
        raise ValueError(f"{name} must have shape [f], got {np.shape(value)}.")
    _validate.finite(value, name)
    return _host(value, name).astype(np.float64)


def _matrix(value: ArrayLike, name: str, size: int) -> np.ndarray:
    if np.shape(value) != (size, size):
        raise ValueError(
            f"{name} must have shape ({size}, {size}) as its mean has {size} numbers, got {np.shape(value)}."
        )
    _validate.finite(value, name)
    matrix = _host(value, name).astype(np.float64)
    skew = np.abs(matrix - matrix.T).max()
    if skew > _ROUNDING * np.abs(matrix).max():
        raise ValueError(f"{name} must be symmetric, got entries that differ by {skew:.6g}.")
    return (matrix + matrix.T) / 2
