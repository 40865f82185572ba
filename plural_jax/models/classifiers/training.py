"""Training a classifier: stochastic gradient descent with momentum on cropped and mirrored images, as a `Process` of epochs.

An epoch is one `step`, compiled as a whole: shuffling, augmentation and all gradient steps run on the device. Being a process it
gets the meter, the checkpoints and the resumption of `plural_jax.run`.

Shapes: n images of h x w pixels, batches of b.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.models.classifiers import layers
from plural_jax.models.classifiers.base import CIFAR, Classifier, accuracy, check_labels, normalize
from plural_jax.models.classifiers.layers import Arrays
from plural_jax.models.classifiers.resnet import ResNet
from plural_jax.models.classifiers.vgg import VGG
from plural_jax.models.network import drop
from plural_jax.process import Meter, Process, run


@dataclass(frozen=True)
class TrainingConfig:
    """A recipe for training; the defaults are one for VGG11 on CIFAR-10.

    With them (batches of 256, rate 0.1, 200 epochs) chenyaofo/pytorch-cifar-models reports 92.79 % for a VGG11 with batch
    normalization; here the same numbers are a recipe, not a measurement.

    Attributes:
        network: what is trained.
        epochs: passes over the training images.
        batch_size: images in a step; the last ones of an epoch, too few for a batch, wait for another.
        learning_rate: the highest.
        momentum: of Nesterov's kind.
        weight_decay: of kernels; biases and normalizations have none.
        schedule: after the warm-up the rate falls to zero along half a cosine, or for "one-cycle" along a line.
        warmup_epochs: epochs over which it rises linearly from zero.
        label_smoothing: probability that the target spreads evenly over all classes; it makes probabilities, and so rewards,
            less extreme.
        crop: pixels by which an image may move each way, at random.
        padding: what comes in from outside: "black", or the image's own mirror image for "reflect".
        flip: whether images are mirrored at random, left to right.
        cutout: side of a square, in pixels, that each image loses at a random place, whose colour becomes `mean`; 0 for none.
        dropout: share of the numbers of every hidden linear layer that are dropped at random, for a `VGG` with `hidden` layers.
        average: decay of a moving average of the arrays, which then is the result; step s uses min(average, (1 + s) / (10 + s)).
            None for no average.
        dtype: in which the network computes; parameters, statistics and losses are float32.
        mean, std: of the channels of images in [0, 1], by which the input is normalized.

    Raises:
        ValueError: a number outside its range, or an unknown name.
    """

    network: VGG | ResNet = dataclasses.field(default_factory=VGG)
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "one-cycle"] = "cosine"
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    crop: int = 4
    padding: Literal["black", "reflect"] = "black"
    flip: bool = True
    cutout: int = 0
    dropout: float = 0.0
    average: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    mean: tuple[float, float, float] = CIFAR[0]
    std: tuple[float, float, float] = CIFAR[1]

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            _validate.positive_integer(getattr(self, name), name)
        _validate.positive(self.learning_rate, "learning_rate")
        _validate.positive(self.std, "std")
        for name, top in (
            ("momentum", 1.0), ("weight_decay", np.inf), ("warmup_epochs", self.epochs), ("label_smoothing", 1.0),
            ("average", 1.0), ("crop", np.inf), ("cutout", np.inf), ("dropout", 1.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value < top:
                below = "" if top == np.inf else f" and below {top:g}"
                raise ValueError(f"{name} must not be negative{below}, got {value}.")
        if self.dropout and not getattr(self.network, "hidden", ()):
            raise ValueError(f"dropout must be 0 for a network without hidden linear layers, got {self.dropout}.")
        for name, known in (
            ("schedule", ("cosine", "one-cycle")), ("padding", ("black", "reflect")), ("dtype", ("float32", "bfloat16")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")


class TrainingState(NamedTuple):
    """What the next epoch needs.

    Attributes:
        params, statistics: of the network, as in a `Classifier`.
        momentum: a pytree like params.
        average: (params, statistics), averaged over steps; None where the recipe has no average.
        epoch: epochs so far, int32 [].
    """

    params: Arrays
    statistics: Arrays
    momentum: Any
    average: Any
    epoch: Array


class EpochInfo(NamedTuple):
    """An epoch in numbers, all float32 [].

    Attributes:
        loss: mean cross-entropy of the augmented images, in nats.
        accuracy: share of them that was right, each judged before the step that learned from it.
        learning_rate: of the last step.
        test_accuracy: of the network after the epoch (its average, where there is one) on test images; NaN without them.
    """

    loss: Array
    accuracy: Array
    learning_rate: Array
    test_accuracy: Array


def train_classifier(
    images: ArrayLike,
    labels: ArrayLike,
    config: TrainingConfig | None = None,
    *,
    key: Array,
    test: tuple[ArrayLike, ArrayLike] | None = None,
    mesh: Mesh | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    progress: Meter | None = None,
) -> tuple[Classifier, EpochInfo]:
    """Train a classifier of images from random parameters.

    Args:
        images: [n, h, w, 3], uint8 from 0 to 255 or floats in [-1, 1].
        labels: classes, whole numbers [n].
        config: the recipe; default: `TrainingConfig()`.
        key: PRNG key.
        test: images and labels to measure the accuracy on after every epoch.
        mesh: devices that share each batch, along an axis "batch" whose size divides it; default: one.
        checkpoint: a folder in which every `checkpoint_every`-th epoch is saved; the same call after an interruption goes on from
            there and gives the arrays that it would have given without one, bit for bit.
        progress: a `Meter`, told about epochs.

    Returns:
        The classifier, and an `EpochInfo` whose arrays have a leading axis over epochs.

    Raises:
        ValueError: images or labels of the wrong form; fewer images than a batch; labels that the network has no class for; a
            mesh that does not divide the batch; a `checkpoint` that holds something else; a loss that became NaN.

    Example:
        >>> import jax
        >>> from plural_jax.models import classifiers
        >>> network = classifiers.ResNet(8, num_classes=2, width=2)
        >>> recipe = classifiers.TrainingConfig(network, epochs=1, batch_size=4, warmup_epochs=0)
        >>> images = jnp.zeros((8, 8, 8, 3), jnp.uint8)
        >>> labels = jnp.zeros(8, int)
        >>> classifier, history = classifiers.train_classifier(images, labels, recipe, key=jax.random.key(0))
        >>> classifier.name, history.loss.shape
        ('resnet8 (trained for 1 epoch)', (1,))

    Source: C.5 of the paper, for the classifier that rewards; its recipe is not told.
    """
    config = TrainingConfig() if config is None else config
    process = training_process(images, labels, config, test=test, mesh=mesh)
    starting, running = jax.random.split(key)
    saving = {} if checkpoint is None else {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every}
    state, history = run(
        process,
        process.init(starting),
        config.epochs,
        key=running,
        progress=progress,
        **saving,  # type: ignore[arg-type]
    )
    if np.isnan(history.loss).any():
        raise ValueError(f"training diverged (a loss is NaN); learning_rate={config.learning_rate:g} may be too large.")
    return trained(config, state), history


def trained(config: TrainingConfig, state: TrainingState) -> Classifier:
    """The classifier that a state of training holds: the average, where there is one."""
    params, statistics = (state.params, state.statistics) if config.average is None else state.average
    name = f"{config.network.name} (trained for {config.epochs} epoch{'' if config.epochs == 1 else 's'})"
    return Classifier(params, statistics, config.network, name, config.mean, config.std)


def training_process(
    images: ArrayLike,
    labels: ArrayLike,
    config: TrainingConfig,
    *,
    test: tuple[ArrayLike, ArrayLike] | None = None,
    mesh: Mesh | None = None,
) -> Process:
    """The process of `train_classifier`, one step of which is an epoch.

    Args: see `train_classifier`.

    Returns:
        A stochastic process with `TrainingState` and `EpochInfo`; `init(key)`.
    """
    images, labels = _checked(images, labels, config, "images")
    if images.shape[0] < config.batch_size:
        raise ValueError(
            f"batch_size must be at most the number of images, got {config.batch_size} of {images.shape[0]}."
        )
    if config.crop >= min(images.shape[1:3]):
        raise ValueError(f"crop must be below the size of the images, got {config.crop} of {images.shape[1:3]}.")
    if mesh is not None and mesh.axis_names != ("batch",):
        raise ValueError(f"mesh must have one axis, 'batch', got axes {mesh.axis_names}.")
    if mesh is not None and config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the mesh's devices, got {config.batch_size} and {mesh.size}."
        )
    checked = None if test is None else _checked(*test, config, "test images")
    return Process(init=Partial(_Start(config)), step=Partial(_Epoch(config, mesh), images, labels, checked))


def learning_rate(config: TrainingConfig, step: Array, steps_per_epoch: int) -> Array:
    """The rate of a step, counted from zero over all epochs, float32 [].

    `rate = highest * min((s + 1) / warm_up, 1) * f((s - warm_up) / (steps - warm_up))`, f half a cosine or a line from 1 to 0
    """
    warmup, last = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    s = step.astype(jnp.float32)
    along = jnp.clip((s - warmup) / (last - warmup), 0.0, 1.0)
    falling = 0.5 * (1 + jnp.cos(jnp.pi * along)) if config.schedule == "cosine" else 1 - along
    return config.learning_rate * jnp.minimum(1.0, (s + 1) / max(warmup, 1.0)) * falling


def augment(key: Array, images: Array, index: Array, crop: int, padding: str, flip: bool) -> Array:
    """Images at `index`, each moved by up to `crop` pixels each way and, one in two, mirrored.

    Args:
        key: PRNG key.
        images: all images, [n, h, w, 3]; uint8 or floats in [-1, 1].
        index: which, int32 [b].
        crop, padding, flip: see `TrainingConfig`.

    Returns:
        float32 [b, h, w, 3] in [-1, 1].
    """
    for_rows, for_columns, for_flips = jax.random.split(key, 3)
    num, (height, width) = index.shape[0], images.shape[1:3]

    def places(key: Array, size: int) -> Array:
        start = jax.random.randint(key, (num, 1), -crop, crop + 1, jnp.int32)
        return start + jnp.arange(size, dtype=jnp.int32)

    rows, columns = places(for_rows, height), places(for_columns, width)
    if flip:
        mirrored = jax.random.bernoulli(for_flips, 0.5, (num, 1))
        columns = jnp.where(mirrored, columns[:, ::-1], columns)

    def inside(place: Array, size: int) -> Array:
        return (place >= 0) & (place < size)

    def reflected(place: Array, size: int) -> Array:
        return (size - 1) - jnp.abs((size - 1) - jnp.abs(place))

    # One gather from the whole set: nothing is padded, and bytes become floats only once they are chosen.
    at = reflected(rows, height)[:, :, None], reflected(columns, width)[:, None, :]
    x = as_floats(images[index[:, None, None], at[0], at[1]])
    if padding == "black":
        kept = inside(rows, height)[:, :, None, None] & inside(columns, width)[:, None, :, None]
        x = jnp.where(kept, x, jnp.float32(-1))
    return x


def cut_out(key: Array, shape: tuple[int, ...], size: int) -> Array:
    """A square in each image of a shape [n, h, w, ...], around a random pixel and cut off at the edges; bool [n, h, w, 1].

    Source: DeVries and Taylor 2017.
    """
    num, height, width = shape[:3]

    def inside(key: Array, length: int) -> Array:
        start = jax.random.randint(key, (num, 1), 0, length, jnp.int32) - size // 2
        place = jnp.arange(length, dtype=jnp.int32)
        return (start <= place) & (place < start + size)

    for_rows, for_columns = jax.random.split(key)
    return (inside(for_rows, height)[:, :, None] & inside(for_columns, width)[:, None, :])[..., None]


def dropping(key: Array, rate: float) -> layers.Drop:
    """Dropout as a function of numbers and their layer's number."""
    return lambda y, layer: drop(y, jax.random.fold_in(key, layer), rate)


def as_floats(images: Array) -> Array:
    """Bytes as float32 in [-1, 1]; floats as float32."""
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images.astype(jnp.float32)


@dataclass(frozen=True)
class _Start:
    """The first state; equal for equal recipes, so that nothing compiles twice."""

    config: TrainingConfig

    def __call__(self, key: Array) -> TrainingState:
        params, statistics = layers.initialize(self.config.network, key)
        average = None if self.config.average is None else (params, statistics)
        return TrainingState(params, statistics, _optimizer(self.config).init(params), average, jnp.int32(0))


@dataclass(frozen=True)
class _Epoch:
    """One pass over the images, on the devices of a mesh."""

    config: TrainingConfig
    mesh: Mesh | None

    def __call__(
        self, images: Array, labels: Array, test: tuple[Array, Array] | None, key: Array | None, state: TrainingState
    ) -> tuple[TrainingState, EpochInfo]:
        if key is None:
            raise ValueError("key must be a PRNG key, because images are shuffled and cropped at random, got None.")
        config, size = self.config, self.config.batch_size
        steps = images.shape[0] // size
        shuffling, cropping = jax.random.split(key)
        order = jax.random.permutation(shuffling, images.shape[0])[: steps * size].astype(jnp.int32)

        def one(state: TrainingState, given: tuple[Array, Array, Array]) -> tuple[TrainingState, tuple[Array, ...]]:
            index, key, number = given
            x = augment(key, images, index, config.crop, config.padding, config.flip)
            x = normalize(x, config.mean, config.std)
            if config.cutout:
                x = jnp.where(cut_out(jax.random.fold_in(key, 0), x.shape, config.cutout), 0.0, x)
            x, y = self._shared(x), self._shared(labels[index])
            step = state.epoch * steps + number
            rate = learning_rate(config, step, steps)
            state, loss, right = _descend(config, state, x, y, rate, step, jax.random.fold_in(key, 1))
            return state, (loss, right, rate)

        numbers = jnp.arange(steps, dtype=jnp.int32)
        given = order.reshape(steps, size), jax.random.split(cropping, steps), numbers
        state, (losses, rights, rates) = jax.lax.scan(one, state, given)
        state = state._replace(epoch=state.epoch + 1)
        measured = jnp.float32(jnp.nan)
        if test is not None:
            measured = accuracy(trained(config, state), as_floats(test[0]), test[1])
        return state, EpochInfo(jnp.mean(losses), jnp.mean(rights), rates[-1], measured)

    def _shared(self, x: Array) -> Array:
        """Spread the leading axis over the devices."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec("batch")))


def _descend(
    config: TrainingConfig, state: TrainingState, x: Array, y: Array, rate: Array, step: Array, key: Array
) -> tuple[TrainingState, Array, Array]:
    """One gradient step on a batch of normalized images; also its loss and the share of images that were right."""
    dropout = dropping(key, config.dropout) if config.dropout else None

    def objective(params: Arrays) -> tuple[Array, tuple[Array, Arrays]]:
        wide = x.astype(jnp.dtype(config.dtype))
        logits, _, statistics = layers.apply(
            config.network, params, state.statistics, wide, training=True, drop=dropout
        )
        logits = logits.astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]
        smooth = config.label_smoothing
        loss = -jnp.mean((1 - smooth) * own + smooth * jnp.mean(log_p, axis=1))
        right = jnp.mean((jnp.argmax(logits, axis=1).astype(y.dtype) == y).astype(jnp.float32))
        return loss, (right, statistics)

    (loss, (right, statistics)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, momentum = _optimizer(config).update(gradient, state.momentum, state.params)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    average = state.average
    if average is not None and config.average is not None:
        s = step.astype(jnp.float32)
        keep = jnp.minimum(jnp.float32(config.average), (1 + s) / (10 + s))
        average = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, average, (params, statistics))
    return TrainingState(params, statistics, momentum, average, state.epoch), loss, right


def _optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """The direction of a step; the rate is multiplied afterwards, so that momentum does not remember rates."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=partial(jax.tree_util.tree_map_with_path, _is_kernel)),
        optax.trace(config.momentum, nesterov=True),
    )


def _is_kernel(path: Any, leaf: Any) -> bool:
    return path[-1].key == "kernel"


def _checked(images: ArrayLike, labels: ArrayLike, config: TrainingConfig, name: str) -> tuple[Array, Array]:
    """Images and labels on the device; labels as int32."""
    images, known = jnp.asarray(images), _validate.concrete(labels)
    if images.ndim != 4 or images.shape[3] != 3 or not images.shape[0]:
        raise ValueError(f"{name} must have shape [n, height, width, 3], got {images.shape}.")
    if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} must be uint8 or floats in [-1, 1], got {images.dtype}.")
    config.network.check_size(*images.shape[1:3])
    labels = jnp.asarray(labels)
    check_labels(labels, images.shape[0])
    if known is not None and not 0 <= known.min() <= known.max() < config.network.num_classes:
        raise ValueError(
            f"labels must be from 0 to {config.network.num_classes - 1} for {config.network.num_classes} classes, "
            f"got {known.min()} to {known.max()}."
        )
    return images, labels.astype(jnp.int32)
