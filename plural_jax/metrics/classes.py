"""Diversity of generated images in the eyes of a classifier: the last four columns of the paper's Table 1.

The paper names these quantities and gives no formulas. What is computed here is said in each docstring [default]. Entropy and
divergence can be compared with the paper's: in every row of its table they add up to ln 10. The constants of its variances are
not known: relative to the real data's value (`reference`) they can be compared between classifiers, not with the printed digits.

Pure functions of arrays, usable inside `jit`. Shapes: n images, c classes, f features.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.landscape import as_float


class ImageMetrics(NamedTuple):
    """What a classifier says about a set of images; all real numbers of the default floating type, or of the features' type.

    Attributes:
        class_shares: how many of the images are predicted to be of each class, as a part of one, [c]; the leakage proxy of E8.
        class_entropy: in nats, from 0 to ln c.
        kl_to_uniform: in nats, from 0 to ln c.
        feature_variance: not negative; 1 for real data where a reference was given.
        intra_class_variance: not negative; 1 for real data where a reference was given.
    """

    class_shares: Array
    class_entropy: Array
    kl_to_uniform: Array
    feature_variance: Array
    intra_class_variance: Array


def class_shares(predicted: ArrayLike, num_classes: int) -> Array:
    """The distribution of predicted classes.

    `p_j = #{i : y_i = j} / n`

    Args:
        predicted: class y of each image, integers [n] from 0 to num_classes - 1.
        num_classes: c.

    Returns:
        [c], in the default floating type.

    Raises:
        ValueError: no images, labels that are not whole numbers or out of range.

    Example:
        >>> print(class_shares([0, 0, 2, 1], 3))
        [0.5  0.25 0.25]
    """
    num_classes = _check_predicted(predicted, num_classes)
    return _shares(jnp.asarray(predicted), num_classes)


def class_entropy(predicted: ArrayLike, num_classes: int) -> Array:
    """Shannon entropy of the distribution of predicted classes, in nats: higher where more classes are covered.

    `H = -sum_j p_j ln p_j`, with `0 ln 0 = 0`; from 0 for a single class to ln c for all alike

    Args:
        predicted: class of each image, integers [n].
        num_classes: c.

    Example:
        >>> print(f"{class_entropy([0, 1, 2, 3, 4], 10):.3f}")  # ln 5; the paper's five balanced preferences: 1.687
        1.609

    Source: Table 1, column "Entropy".
    """
    return _entropy(class_shares(predicted, num_classes))


def kl_to_uniform(predicted: ArrayLike, num_classes: int) -> Array:
    """Divergence of the distribution of predicted classes from the uniform one, in nats: lower where classes are balanced.

    `KL(p || uniform) = sum_j p_j ln(c p_j) = ln c - H`

    Args:
        predicted: class of each image, integers [n].
        num_classes: c.

    Example:
        >>> print(f"{kl_to_uniform([0, 1, 2, 3, 4], 10):.3f}")
        0.693

    Source: Table 1, column "KL Divergence".
    """
    return _kl(class_shares(predicted, num_classes))


def feature_variance(features: ArrayLike, reference: ArrayLike | None = None) -> Array:
    """How much images differ in feature space.

    `v = 1/f sum_k 1/n sum_i (x_ik - mean_k)^2`, divided by the reference

    Args:
        features: [n, f].
        reference: the value for real data in the same features, positive; None for the variance itself.

    Returns:
        A number of the features' floating type; 0 for a single image.

    Raises:
        ValueError: not a table, or empty; a reference that is not positive.

    Example:
        >>> print(feature_variance([[0.0, 1.0], [2.0, 1.0]]), feature_variance([[0.0, 1.0], [2.0, 1.0]], reference=2.0))
        0.5 0.25

    Source: Table 1, column "Feature Variance"; the formula is ours [default].
    """
    _check_features(features)
    _check_reference(reference, "reference")
    return _relative(_variance(as_float(features)), reference)


def intra_class_variance(
    features: ArrayLike, predicted: ArrayLike, num_classes: int, reference: ArrayLike | None = None
) -> Array:
    """How much images differ from others of the same predicted class.

    `w = mean_j v_j`, over the classes j with at least two images, of

    `v_j = 1/f sum_k 1/n_j sum_{i : y_i = j} (x_ik - mean_jk)^2`, divided by the reference

    Every such class counts alike, however many images it has: a share that moves from one class to another changes nothing while
    both look as they did. A class of one image has no spread to measure and is left out.

    Args:
        features: [n, f].
        predicted: class y of each image, integers [n].
        num_classes: c.
        reference: the value for real data in the same features, positive; None for the variance itself.

    Returns:
        A number of the features' floating type; 0 where no class has two images.

    Raises:
        ValueError: shapes that do not fit, labels out of range, a reference that is not positive.

    Example:
        >>> print(intra_class_variance([[0.0], [2.0], [7.0], [7.0], [100.0]], [0, 0, 1, 1, 2], 10))
        0.5

    Source: Table 1, column "Intra-Class Variance"; the formula is ours [default].
    """
    _check_features(features)
    num_classes = _check_predicted(predicted, num_classes)
    if np.shape(features)[0] != np.shape(predicted)[0]:
        raise ValueError(
            f"predicted must hold one class for each of the {np.shape(features)[0]} rows of features, got shape "
            f"{np.shape(predicted)}."
        )
    _check_reference(reference, "reference")
    return _relative(_intra_variance(as_float(features), jnp.asarray(predicted), num_classes), reference)


def image_metrics(logits: ArrayLike, features: ArrayLike, reference: ImageMetrics | None = None) -> ImageMetrics:
    """All of these at once, from what a classifier returns; the class of an image is the one with the largest output.

    Args:
        logits: [n, c], or the probabilities, which have the same largest entries.
        features: [n, f].
        reference: the metrics of real data, computed without a reference; the variances are divided by its variances.

    Raises:
        ValueError: shapes that do not fit; a reference whose variances are not positive.

    Example:
        >>> real = image_metrics(jnp.eye(2)[jnp.array([0, 0, 1, 1])], jnp.array([[0.0], [2.0], [6.0], [8.0]]))
        >>> print(real.class_shares, real.feature_variance, real.intra_class_variance)
        [0.5 0.5] 10.0 1.0
        >>> print(image_metrics(jnp.eye(2)[jnp.array([0, 0])], jnp.array([[0.0], [2.0]]), real).feature_variance)
        0.1
    """
    _check_features(features)
    shape = np.shape(logits)
    if len(shape) != 2 or shape[0] != np.shape(features)[0] or shape[1] == 0:
        raise ValueError(
            f"logits must have shape [n, c] with n = {np.shape(features)[0]} as features have, got {shape}."
        )
    variances = None
    if reference is not None:
        variances = (reference.feature_variance, reference.intra_class_variance)
        _check_reference(variances[0], "reference.feature_variance")
        _check_reference(variances[1], "reference.intra_class_variance")
    return _all(as_float(logits), as_float(features), variances)


@jax.jit
def _all(logits: Array, features: Array, reference: tuple[ArrayLike, ArrayLike] | None) -> ImageMetrics:
    num_classes = logits.shape[1]
    predicted = jnp.argmax(logits, axis=1)
    shares = _shares(predicted, num_classes)
    of_all, within = reference if reference is not None else (None, None)
    return ImageMetrics(
        class_shares=shares,
        class_entropy=_entropy(shares),
        kl_to_uniform=_kl(shares),
        feature_variance=_relative(_variance(features), of_all),
        intra_class_variance=_relative(_intra_variance(features, predicted, num_classes), within),
    )


@partial(jax.jit, static_argnums=1)
def _shares(predicted: Array, num_classes: int) -> Array:
    members = predicted[:, None] == jnp.arange(num_classes, dtype=predicted.dtype)
    return jnp.mean(members, axis=0, dtype=jnp.result_type(float))


@jax.jit
def _entropy(shares: Array) -> Array:
    return jnp.sum(jax.scipy.special.entr(shares))


@jax.jit
def _kl(shares: Array) -> Array:
    # Rounding could carry the difference below zero.
    return jnp.maximum(np.log(shares.shape[0]).item() - _entropy(shares), 0.0)


@jax.jit
def _variance(features: Array) -> Array:
    return jnp.mean(jnp.var(features, axis=0))


@partial(jax.jit, static_argnums=2)
def _intra_variance(features: Array, predicted: Array, num_classes: int) -> Array:
    # As matrix products: a scatter on a GPU adds in any order, and its last digits change from run to run.
    members = (predicted[:, None] == jnp.arange(num_classes, dtype=predicted.dtype)).astype(features.dtype)
    counts = jnp.sum(members, axis=0)
    per_member = members / jnp.maximum(counts, 1)

    def class_means(values: Array) -> Array:
        return jnp.einsum("nc,nf->cf", per_member, values, precision=jax.lax.Precision.HIGHEST)

    # Around the means themselves: a difference of squares would lose the digits of a small variance.
    own = jnp.einsum("nc,cf->nf", members, class_means(features), precision=jax.lax.Precision.HIGHEST)
    variances = jnp.mean(class_means((features - own) ** 2), axis=1)
    counted = counts >= 2
    return jnp.sum(jnp.where(counted, variances, 0.0)) / jnp.maximum(jnp.sum(counted, dtype=features.dtype), 1)


def _relative(value: Array, reference: ArrayLike | None) -> Array:
    return value if reference is None else value / jnp.asarray(reference, value.dtype)


def _check_predicted(predicted: ArrayLike, num_classes: int) -> int:
    num_classes = _validate.positive_integer(num_classes, "num_classes")
    shape = np.shape(predicted)
    if len(shape) != 1 or 0 in shape:
        raise ValueError(f"predicted must hold the class of at least one image, [n], got shape {shape}.")
    if not jnp.issubdtype(jnp.result_type(jnp.asarray(predicted)), jnp.integer):
        raise ValueError(f"predicted must be whole numbers, got {jnp.asarray(predicted).dtype}.")
    labels = _validate.concrete(predicted)
    if labels is not None and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"predicted must lie between 0 and {num_classes - 1}, got {_validate.shown(predicted)}.")
    return num_classes


def _check_features(features: ArrayLike) -> None:
    shape = np.shape(features)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"features must have shape [n, f] with at least one row and column, got {shape}.")


def _check_reference(reference: ArrayLike | None, name: str) -> None:
    if reference is None:
        return
    if np.ndim(reference):
        raise ValueError(f"{name} must be one number, got shape {np.shape(reference)}.")
    _validate.positive(reference, name)
