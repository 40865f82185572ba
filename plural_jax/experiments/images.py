"""What the image experiments share (C.5): data, classifier, pretrained flow, and one arm of retraining.

Rewards are `gamma P_c(x)` for five of CIFAR-10's classes, from a classifier that also says what class an image is taken
for and in which features images are compared. The flow is pretrained once and kept in the cache; every arm starts from it, draws
the same noise and the same choices as every other arm, and is one run of `pj.retraining.loop`, saved after every round.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh
from jax.tree_util import Partial

from plural_jax import Process, data, metrics, models, retraining, rewards, run
from plural_jax.experiments import arms, image_arms, synthetic_images
from plural_jax.experiments.image_presets import PRESETS, Preset
from plural_jax.metrics import ImageMetrics, Moments, moments
from plural_jax.models.classifiers import load_classifier
from plural_jax.models.network import is_large
from plural_jax.process import Meter

#: Images of every round that are kept; every arm draws them from the same noise, another in each round.
NUM_SHOWN = 24


@dataclasses.dataclass(frozen=True)
class Config:
    """A flow retrained on its own curated images (C.5)."""

    preset: Literal["tiny", "cpu", "gpu", "paper"] = "cpu"
    """Sizes: seconds on synthetic images, CIFAR-10 on a few cores, in minutes on a large GPU, or the paper's on one."""
    arms: tuple[str, ...] = tuple(image_arms.TABLE_1)
    """Which arms to run: those of Table 1, or averaged, per-round, none, greedy, real, accumulated (E9)."""
    classes: tuple[str, ...] | None = None
    """Classes that the five preferences prefer; default: the preset's, those that its flow can make."""
    gamma: float = 5.0
    """Reward of an image that the classifier is sure of: r_c(x) = gamma P_c(x)."""
    temperature: float = 1.0
    """Temperature of the choice rule, in units of reward."""
    pool_size: int = 4
    """Candidates that each draw looks at."""
    num_steps: int | None = None
    """Rounds of retraining; default: the preset's."""
    num_candidates: int | None = None
    """Images generated in a round; default: the preset's."""
    num_curated: int | None = None
    """Curated draws of a round; default: the preset's."""
    data: Path | None = None
    """Folder or archive of CIFAR-10; default: where PLURAL_JAX_DATA points, the cache, or a download."""
    classifier: Path | None = None
    """Weights of a VGG11-BN or CIFAR ResNet; default: what lies in the cache or where PLURAL_JAX_DATA points."""
    inception: Path | None = None
    """Weights of Inception-v3 for the FID; without them it is not computed."""
    cache: Path | None = None
    """Folder for pretrained flows; default: the user's cache folder."""
    seed: int = 0
    """Seed of everything."""


class Setup(NamedTuple):
    """Everything that arms have in common.

    Attributes:
        preset: sizes, with what the configuration overrides.
        network: the velocity field.
        params: of the pretrained flow.
        look: `images -> (logits [n, 10], features [n, f])`, a pytree.
        classifier: its name.
        real: images to mix in and compare with, uint8 [n, 32, 32, 3].
        of_real: their metrics.
        reference: moments of their features.
        inception: moments of their Inception features and what computes these, or None where there are no weights.
    """

    preset: Preset
    network: models.Network
    params: Any
    look: Any
    classifier: str
    real: np.ndarray
    of_real: ImageMetrics
    reference: Moments
    inception: tuple[Moments, Any] | None


def sized(config: Config) -> Preset:
    """The preset with what the configuration overrides."""
    own = {name: getattr(config, name) for name in ("num_steps", "num_candidates", "num_curated")}
    for name, value in own.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if config.classes is not None:
        unknown = [name for name in config.classes if name not in data.CLASSES]
        if unknown or len(set(config.classes)) != image_arms.NUM_PREFERENCES:
            raise ValueError(
                f"classes must be {image_arms.NUM_PREFERENCES} different ones of {', '.join(data.CLASSES)}, "
                f"got {' '.join(config.classes)}."
            )
        own["classes"] = config.classes
    return dataclasses.replace(PRESETS[config.preset], **{k: v for k, v in own.items() if v is not None})


def classes_of(preset: Preset) -> tuple[int, ...]:
    """Numbers of the classes that the preferences prefer."""
    return tuple(data.CLASSES.index(name) for name in preset.classes)


def network_of(preset: Preset) -> models.Network:
    """The preset's velocity field, in the type that it computes in."""
    config = dataclasses.replace(models.UNETS[preset.network], dtype=preset.dtype)
    size = preset.coarse or preset.synthetic
    return models.unet(config if size is None else dataclasses.replace(config, size=size))


def codec_of(preset: Preset) -> models.Codec | None:
    """What lies between CIFAR-10's images and those that the flow models."""
    return None if preset.coarse is None else models.band_limited(32, preset.coarse)


def mesh_of(preset: Preset) -> Mesh | None:
    """All local devices as one axis that shares every batch; None where there is one, or where they do not divide it.

    Host devices are left alone by small networks, whose round would compile for longer than they save, and by adaptive steps,
    which ask all devices for their error in every step: with many sums in a loop, host devices once waited for ever.
    """
    devices = jax.local_devices()
    sizes = (preset.pretraining.batch_size, preset.refit.batch_size, preset.batch_size)
    if len(devices) == 1 or any(size % len(devices) for size in sizes):
        return None
    if devices[0].platform == "cpu":
        if preset.integrator.num_steps is None:
            return None
        network = network_of(preset)
        params = jax.eval_shape(network.init, jax.random.key(0))
        if not is_large(params, min(sizes) * math.prod(network.shape)):
            return None
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)


def look_at(look: Any, images: Array, batch_size: int) -> tuple[Array, Array]:
    """Logits and features of many images, in batches; bytes are read as -1 to 1."""
    n = images.shape[0]
    size = min(batch_size, n)
    count = -(-n // size)
    padded = jnp.concatenate([images, jnp.zeros((count * size - n, *images.shape[1:]), images.dtype)])

    def one(batch: Array) -> tuple[Array, Array]:
        return look(data.to_signed(batch) if batch.dtype == jnp.uint8 else batch)

    found = jax.lax.map(one, padded.reshape(count, size, *images.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(count * size, *x.shape[2:])[:n], found)


def prepare(config: Config, meter: Meter) -> Setup:
    """Load the data and the classifier, and pretrain the flow or take it from the cache."""
    preset = sized(config)
    if preset.synthetic is not None:
        real, _ = synthetic_images.labelled(2000, preset.synthetic, config.seed)
        look, name = Partial(synthetic_images.NearestColor()), "nearest color"
    else:
        real = data.cifar10(config.data, split="train").images
        found = find_classifier(config.classifier, config.data)
        look, name = Partial(_by_classifier, dataclasses.replace(found, batch_size=None)), found.name
    weights = None if preset.synthetic is not None else models.find_inception(config.inception)
    network = network_of(preset)
    params = pretrained(network, preset, real, config, meter)
    logits, features = jax.jit(look_at, static_argnums=2)(look, jnp.asarray(real), preset.batch_size)
    inception = None
    if weights is not None:
        extractor = models.load_inception(weights)
        inception = (metrics.inception_moments(real, extractor), extractor)
    of_real = metrics.image_metrics(logits, features)
    return Setup(preset, network, params, look, name, real, of_real, moments(np.asarray(features)), inception)


def find_classifier(path: Path | None = None, beside: Path | None = None) -> Any:
    """The classifier that gives rewards: from a file, or the best that lies with the data, at PLURAL_JAX_DATA or in the cache.

    Args:
        path: a file that `pj.models.classifiers.load_classifier` reads; default: a VGG11 before a ResNet-20, which is faster than
            deeper ones and nearest to the paper's 92.39 % of test images.
        beside: the folder of the data, which is looked at first.

    Raises:
        ValueError: the file is no classifier, or there is none.
    """
    if path is not None:
        return load_classifier(path)
    folders = [data.cache_folder()]
    if data.DATA_VARIABLE in os.environ:
        folders.insert(0, Path(os.environ[data.DATA_VARIABLE]))
    if beside is not None:
        folders.insert(0, Path(beside))
    for folder in folders:
        for name in ("cifar10_vgg11/vgg11.npz", "cifar10_resnet/resnet20.npz", "cifar10_resnet/resnet56.npz"):
            if (folder / name).is_file():
                return load_classifier(folder / name)
    raise ValueError(
        "classifier must be a file with a VGG11-BN or CIFAR ResNet, got none, and none lies in "
        f"{' or '.join(map(str, folders))}; `plural-jax train-classifier` makes one."
    )


def pretrained(network: models.Network, preset: Preset, real: np.ndarray, config: Config, meter: Meter) -> Any:
    """Parameters of the flow pretrained on real images: from the cache, or trained now and kept there."""
    said = json.dumps(
        [
            dataclasses.asdict(models.UNETS[preset.network]),
            preset.dtype,
            preset.coarse,
            preset.pretraining_rounds,
            {f.name: _plain(getattr(preset.pretraining, f.name)) for f in dataclasses.fields(preset.pretraining)},
            config.seed,
        ]
    ).encode()
    name = hashlib.sha256(said + hashlib.sha256(np.ascontiguousarray(real).data).digest()).hexdigest()[:16]
    folder = Path(config.cache or data.cache_folder() / "flows") / f"{preset.network}-{name}"
    if (folder / "params.npz").exists():
        return models.load_params(folder / "params.npz", network)
    codec = codec_of(preset)
    samples = real if codec is None else jax.jit(lambda x: codec.encode(data.to_signed(x)))(real)
    process = models.pretraining(network, preset.pretraining, samples, mesh=mesh_of(preset))
    start, going = jax.random.split(jax.random.key(config.seed))
    final, trace = run(
        process,
        process.init(start),
        preset.pretraining_rounds,
        key=going,
        checkpoint=folder / "run",
        checkpoint_every=1,
        progress=arms.NamedMeter(meter, "pretraining"),
    )
    models.save_params(folder / "params.npz", final.average)
    np.savetxt(folder / "loss.csv", np.stack([trace.step, trace.loss], 1), delimiter=",", header="step,loss")
    return final.average


def process_of(config: Config, setup: Setup, arm: image_arms.Arm) -> Process:
    """One arm as a process; arms that differ in their weights share their compiled round."""
    preset = setup.preset
    model = models.flow(
        setup.network,
        preset.refit,
        pretrained=setup.params,
        integrator=preset.integrator,
        batch_size=preset.batch_size,
        bounds=(-1.0, 1.0),
        codec=codec_of(preset),
        mesh=mesh_of(preset),
    )
    look = Partial(_InBatches(preset.batch_size), setup.look)
    options: dict[str, Any] = {}
    if arm.real:
        options = {"real": data.to_signed(jnp.asarray(setup.real[:5000])), "real_weight": arm.real}
    if arm.accumulate:
        options = {"accumulate": preset.num_steps}
    return retraining.loop(
        model,
        rewards.class_probability(Partial(_probabilities, look), classes_of(preset), config.gamma),
        arm.phi,
        policy=None if arm.policy is None else arm.policy(arm.phi),
        num_candidates=preset.num_candidates,
        num_curated=preset.num_curated,
        pool_size=config.pool_size,
        temperature=config.temperature,
        basin=Partial(_predicted_preference, _preferred(preset), look),
        measure=Partial(measuring(setup), look, setup.of_real),
        **options,
    )


class Measured(NamedTuple):
    """What is looked at beside the rewards, of the candidates of a round.

    Attributes:
        class_entropy, kl_to_uniform: of the predicted classes, in nats, [].
        feature_variance, intra_class_variance: in units of the real images', [].
        classifier_frechet: distance from the real images in the classifier's features, [].
        fid: distance in Inception's features, []; NaN where there are no weights for it: it was not computed.
        class_shares: share of each predicted class, [10].
        shown: some candidates, uint8 [k, 32, 32, 3].
    """

    class_entropy: Array
    kl_to_uniform: Array
    feature_variance: Array
    intra_class_variance: Array
    classifier_frechet: Array
    fid: Array
    class_shares: Array
    shown: Array


def measuring(setup: Setup) -> Callable[[Any, ImageMetrics, Any, Array], Measured]:
    """`(look, of_real, params, candidates) -> Measured`; equal for equal real images, so that arms compile once."""
    return _Measure(setup.reference, setup.inception)


def measured(setup: Setup, candidates: Array) -> Measured:
    """The same numbers for any images, such as those of the pretrained flow."""
    look = Partial(_InBatches(setup.preset.batch_size), setup.look)
    return jax.jit(measuring(setup))(look, setup.of_real, None, candidates)


@dataclasses.dataclass(frozen=True, eq=False)
class _Measure:
    reference: Moments
    inception: tuple[Moments, Any] | None

    # Hashable although its arrays are not: one object for each set of real images.
    def __hash__(self) -> int:
        return hash((type(self), id(self.reference)))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.reference is self.reference

    def __call__(self, look: Any, of_real: ImageMetrics, params: Any, candidates: Array) -> Measured:
        logits, features = look(candidates)
        seen = metrics.image_metrics(logits, features, of_real)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        # On the host and in float64, which compiled code has only where the user asked for it.
        frechet = jax.pure_callback(self._frechet, number, features)
        fid = jnp.float32(jnp.nan)
        if self.inception is not None:
            fid = jax.pure_callback(self._fid, number, candidates)
        return Measured(
            class_entropy=seen.class_entropy,
            kl_to_uniform=seen.kl_to_uniform,
            feature_variance=seen.feature_variance,
            intra_class_variance=seen.intra_class_variance,
            classifier_frechet=frechet,
            fid=fid,
            class_shares=seen.class_shares,
            shown=data.to_bytes(candidates[:NUM_SHOWN]),
        )

    def _frechet(self, features: Any) -> np.ndarray:
        return np.asarray(metrics.classifier_frechet_distance(np.asarray(features), self.reference), np.float32)

    def _fid(self, images: Any) -> np.ndarray:
        assert self.inception is not None  # the callback is made only then
        return np.asarray(metrics.fid(np.asarray(images), *self.inception), np.float32)


def _by_classifier(classifier: Any, images: Array) -> tuple[Array, Array]:
    return classifier(images)


@dataclasses.dataclass(frozen=True)
class _InBatches:
    size: int

    def __call__(self, look: Any, images: Array) -> tuple[Array, Array]:
        return look_at(look, images, self.size)


def _probabilities(look: Any, images: Array) -> Array:
    return jax.nn.softmax(look(images)[0], axis=1)


def _preferred(preset: Preset) -> Array:
    """The preference for each class; for a class that none prefers their number, which counts as leakage (C.7)."""
    wanted = jnp.full(len(data.CLASSES), image_arms.NUM_PREFERENCES, jnp.int32)
    return wanted.at[np.asarray(classes_of(preset))].set(jnp.arange(image_arms.NUM_PREFERENCES, dtype=jnp.int32))


def _predicted_preference(preferred: Array, look: Any, images: Array) -> Array:
    """The preference for the class that an image is taken for."""
    return preferred[jnp.argmax(look(images)[0], axis=1)]


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else float(value)
