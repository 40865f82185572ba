"""A trained classifier of images: a pytree of arrays with pure methods.

Images are float32 [n, height, width, 3] in [-1, 1] everywhere; what a network was trained with, a mean and a standard deviation
of images in [0, 1], is the classifier's own matter.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, set_field, static_field
from plural_jax._typing import ArrayLike
from plural_jax.models.classifiers import layers
from plural_jax.models.classifiers.layers import Arrays, Network

#: Statistics of the training images in [0, 1] by which the networks for CIFAR-10 are normalized, as published with them.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
#: The same mean, with the mean over images of the standard deviations inside each.
CIFAR_WITHIN = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@pytree_dataclass
class Classifier:
    """A network with its arrays, its normalization and a name.

    `P_c(x) = softmax(logits(x))_c`, the reward of class c up to gamma (C.5)

    Arguments of jitted and mapped functions as they are; the methods are pure and differentiable.

    Attributes:
        params: parameters, a nested dictionary of float32 arrays.
        statistics: means and variances of the batch normalizations, likewise.
        network: configuration of the network.
        name: what results say that they used.
        mean, std: of the channels of images in [0, 1].
        batch_size: images that are computed at a time, so that memory does not grow with n; None for all at once.

    Raises:
        ValueError: a mean or std that is not three numbers; a std that is not positive; a batch size that is not whole and
            positive. From its methods: images that are no floats of shape [n, height, width, 3], or that the network cannot take.

    Example:
        >>> import jax
        >>> from plural_jax.models import classifiers
        >>> network = classifiers.ResNet(depth=8, width=2)
        >>> classifier = classifiers.new_classifier(network, jax.random.key(0))
        >>> classifier.probabilities(jnp.zeros((3, 8, 8, 3))).shape
        (3, 10)
    """

    params: Arrays
    statistics: Arrays
    network: Network = static_field()
    name: str = static_field()
    mean: tuple[float, ...] = static_field(default=CIFAR[0])
    std: tuple[float, ...] = static_field(default=CIFAR[1])
    batch_size: int | None = static_field(default=500)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            _validate.finite(value, name)
            if len(value) != 3:
                raise ValueError(f"{name} must hold one number for each of the three colours, got {value}.")
            set_field(self, name, tuple(map(float, value)))
        _validate.positive(self.std, "std")
        if self.batch_size is not None:
            set_field(self, "batch_size", _validate.positive_integer(self.batch_size, "batch_size"))

    def __call__(self, images: ArrayLike) -> tuple[Array, Array]:
        """Logits, float32 [n, classes], and features, float32 [n, d], of images."""
        images = jnp.asarray(images)
        _check_images(images, self.network)
        return _evaluate(self, images)

    def logits(self, images: ArrayLike) -> Array:
        """Unnormalized log-probabilities of the classes, float32 [n, classes]."""
        return self(images)[0]

    def features(self, images: ArrayLike) -> Array:
        """Means over the pixels of the last feature map, float32 [n, d]."""
        return self(images)[1]

    def probabilities(self, images: ArrayLike) -> Array:
        """Probabilities of the classes, float32 [n, classes]."""
        return jax.nn.softmax(self.logits(images))


def new_classifier(network: Network, key: Array, **fields: Any) -> Classifier:
    """A classifier with random parameters, as a start of training.

    Args:
        network: a `VGG` or a `ResNet`.
        key: PRNG key.
        **fields: further fields of the `Classifier`; the name is otherwise that of the network, "untrained".
    """
    params, statistics = layers.initialize(network, key)
    given = {"name": f"{network.name} (untrained)", **fields}
    return Classifier(params, statistics, network, **given)


def accuracy(classifier: Classifier, images: ArrayLike, labels: ArrayLike) -> Array:
    """Share of images whose most probable class is their label, float32 [].

    Args:
        classifier: any.
        images: [n, height, width, 3] in [-1, 1].
        labels: classes, whole numbers [n].

    Raises:
        ValueError: not one label for each image, or labels that are no whole numbers.

    Example:
        >>> import jax
        >>> from plural_jax.models import classifiers
        >>> classifier = classifiers.new_classifier(classifiers.ResNet(depth=8, width=2), jax.random.key(0))
        >>> images = jnp.zeros((2, 8, 8, 3))
        >>> float(classifiers.accuracy(classifier, images, jnp.argmax(classifier.logits(images), axis=1)))
        1.0
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    _check_images(images, classifier.network)
    check_labels(labels, images.shape[0])
    chosen = jnp.argmax(classifier.logits(images), axis=1)
    return jnp.mean((chosen == labels.astype(chosen.dtype)).astype(jnp.float32))


def check_labels(labels: Array, num: int) -> None:
    """Refuse anything but one whole number for each image."""
    if labels.shape != (num,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be whole numbers, one for each of {num} images, got {labels.dtype}{list(labels.shape)}."
        )


def _check_images(images: Array, network: Network) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or not images.shape[0]:
        raise ValueError(f"images must have shape [n, height, width, 3], got {images.shape}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floats in [-1, 1], got {images.dtype}; bytes are images / 127.5 - 1.")
    network.check_size(images.shape[1], images.shape[2])


def normalize(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """Images in [-1, 1] as a network sees them, float32."""
    # ((x + 1) / 2 - mean) / std in one multiplication and one addition
    scale = jnp.asarray([0.5 / s for s in std], jnp.float32)
    shift = jnp.asarray([(0.5 - m) / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    return images.astype(jnp.float32) * scale + shift


@jax.jit
def _evaluate(classifier: Classifier, images: Array) -> tuple[Array, Array]:
    def some(images: Array) -> tuple[Array, Array]:
        x = normalize(images, classifier.mean, classifier.std)
        return layers.apply(classifier.network, classifier.params, classifier.statistics, x)[:2]

    n = images.shape[0]
    pieces = 1 if classifier.batch_size is None else -(-n // classifier.batch_size)
    if pieces == 1:
        return some(images)
    # Equal pieces, filled up with fewer zeros than there are pieces, so that one program does for all.
    size = -(-n // pieces)
    filled = jnp.pad(images, ((0, pieces * size - n), (0, 0), (0, 0), (0, 0)))
    found = jax.lax.map(some, filled.reshape(pieces, size, *images.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(pieces * size, *x.shape[2:])[:n], found)
