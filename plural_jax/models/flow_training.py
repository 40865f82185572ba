"""Fitting a velocity field to samples: the steps of OT-CFM, alone and as a `Process` that pretrains and survives a kill.

One step draws a minibatch, pairs it with noise, and takes an Adam step on the clipped gradient; beside the parameters runs their
exponential moving average, which is what samples are made with. Steps are compiled in groups: the couplings of a group are
computed together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, set_field, static_field
from plural_jax._typing import ArrayLike
from plural_jax.models.flow_matching import couple_many, matching_loss
from plural_jax.models.network import Network, in_pieces
from plural_jax.models.schedules import clipped_adam
from plural_jax.process import Process

#: Steps whose couplings are computed together, at most; their batches lie in memory at the same time.
_GROUP = 16


@pytree_dataclass
class FlowTraining:
    """How a velocity field is fit. Numbers may be traced; sizes are static.

    Attributes:
        num_steps: gradient steps of one fit (of one round, where a `Process` pretrains).
        batch_size: samples in a step.
        coupling: "exact" for minibatch optimal transport, "independent" for none.
        flip: whether images are mirrored at random.
        learning_rate: of Adam, after the warm-up.
        warm_up: steps over which it rises linearly from zero.
        decay: steps after which it has fallen to zero along a cosine; 0 for never.
        clip: largest norm of a gradient.
        average: decay of the moving average, reached gradually: step s uses min(average, (1 + s) / (10 + s)).
    """

    num_steps: int = static_field(default=1000)
    batch_size: int = static_field(default=128)
    coupling: str = static_field(default="exact")
    flip: bool = static_field(default=True)
    learning_rate: ArrayLike = 2e-4
    warm_up: ArrayLike = 0.0
    decay: ArrayLike = 0.0
    clip: ArrayLike = 1.0
    average: ArrayLike = 0.9999

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            _validate.positive_integer(getattr(self, name), name)
        if self.coupling not in ("exact", "independent"):
            raise ValueError(f"coupling must be 'exact' or 'independent', got {self.coupling!r}.")
        for name in ("learning_rate", "warm_up", "decay", "clip", "average"):
            value = getattr(self, name)
            known = _validate.concrete(value)
            top = 1.0 if name == "average" else np.inf
            if np.ndim(value) or (known is not None and not 0 <= known < top):
                raise ValueError(
                    f"{name} must be one number that is not negative{' and below 1' if top == 1 else ''}, "
                    f"got {_validate.shown(value)}."
                )
            # NumPy's own numbers: making a configuration must not start JAX's devices.
            set_field(self, name, np.float32(value) if known is not None else jnp.asarray(value, jnp.float32))


class TrainingState(NamedTuple):
    """What the next step needs.

    Attributes:
        params: of the network.
        average: their exponential moving average, the network to sample with.
        optimizer: state of Adam.
        step: steps so far, int32 [].
    """

    params: Any
    average: Any
    optimizer: Any
    step: Array


class TrainingInfo(NamedTuple):
    """A round of training in numbers.

    Attributes:
        loss: mean over the round's steps, [].
        gradient_norm: mean of the gradients' norms before clipping, [].
        step: steps so far, int32 [].
    """

    loss: Array
    gradient_norm: Array
    step: Array


def start_training(training: FlowTraining, params: Any) -> TrainingState:
    """The state before the first step from given parameters."""
    return TrainingState(params, params, clipped_adam(training).init(params), jnp.int32(0))


def train(
    network: Network,
    training: FlowTraining,
    key: Array,
    state: TrainingState,
    samples: Array,
    weights: Array | None = None,
    *,
    mesh: Mesh | None = None,
) -> tuple[TrainingState, TrainingInfo]:
    """Take `training.num_steps` steps on samples.

    Args:
        network: the velocity field.
        training: how.
        key: PRNG key.
        state: from `start_training` or an earlier call.
        samples: [n, ...]; uint8 images are read as -1 to 1.
        weights: [n], non-negative; batches are then drawn with these probabilities. Default: every sample once per pass.
        mesh: devices that share each batch, along an axis "batch" whose size divides it; default: one.

    Returns:
        The new state and what happened.
    """
    length = max(size for size in range(1, _GROUP + 1) if training.num_steps % size == 0)
    groups = training.num_steps // length
    choosing, stepping = jax.random.split(key)
    chosen = _batches(choosing, training, samples.shape[0], weights).reshape(groups, length, training.batch_size)
    optimizer = clipped_adam(training)
    if mesh is None:
        network = in_pieces(network)

    def placed(x: Array, *spec: str | None) -> Array:
        return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    loss_and_gradient = _loss_and_gradient(network, mesh)

    def group(state: TrainingState, given: tuple[Array, Array]) -> tuple[TrainingState, tuple[Array, Array]]:
        indices, number = given
        keys = jax.random.split(jax.random.fold_in(stepping, number), 4)
        x = _as_float(samples[indices])
        if training.flip and x.ndim == 5:
            mirrored = jax.random.bernoulli(keys[0], 0.5, (*indices.shape, 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, :, ::-1], x)
        noise = jax.random.normal(keys[1], x.shape, x.dtype)
        if training.coupling == "exact":
            # Whole on every device: shared out, each of the assignment's tiny steps would wait for all devices.
            order = placed(couple_many(placed(noise), placed(x)))
            noise = jnp.take_along_axis(noise, order.reshape(*indices.shape, *[1] * (x.ndim - 2)), 1)
        time = jax.random.uniform(keys[2], indices.shape, jnp.float32)
        x, noise, time = (placed(y, None, "batch") for y in (x, noise, time))

        def one(state: TrainingState, batch: tuple[Array, ...]) -> tuple[TrainingState, tuple[Array, Array]]:
            x, noise, time, dropping = batch
            value, gradient = loss_and_gradient(state.params, noise, x, time, dropping)
            with jax.numpy_dtype_promotion(
                "standard"
            ):  # optax mixes types, which a user of strict promotion need not know
                updates, memory = optimizer.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            s = state.step.astype(jnp.float32)
            keep = jnp.minimum(jnp.asarray(training.average), (1 + s) / (10 + s))
            average = jax.tree.map(lambda a, p: (keep * a + (1 - keep) * p).astype(a.dtype), state.average, params)
            return TrainingState(params, average, memory, state.step + 1), (value, optax.tree.norm(gradient))

        return jax.lax.scan(one, state, (x, noise, time, jax.random.split(keys[3], length)))

    state, (losses, norms) = jax.lax.scan(group, state, (chosen, jnp.arange(groups, dtype=jnp.int32)))
    return state, TrainingInfo(jnp.mean(losses), jnp.mean(norms), state.step)


def _loss_and_gradient(network: Network, mesh: Mesh | None) -> Callable[..., tuple[Array, Any]]:
    """The loss of a batch and its gradient by the parameters, as `(params, noise, x, time, key) -> (loss, gradient)`.

    On several devices each takes its share, and one sum of one vector joins them: a sum for each array would make devices wait
    a hundred times a step, and with it host devices, which run on one pool of threads, once waited for each other for ever.
    """

    def alone(params: Any, noise: Array, x: Array, time: Array, key: Array) -> tuple[Array, Any]:
        def loss(params: Any) -> Array:
            return matching_loss(lambda t, y: network.apply(params, t, y, key), noise, x, time)

        return jax.value_and_grad(loss)(params)

    def share(params: Any, noise: Array, x: Array, time: Array, key: Array) -> tuple[Array, Any]:
        found = alone(params, noise, x, time, jax.random.fold_in(key, jax.lax.axis_index("batch")))
        vector, restore = jax.flatten_util.ravel_pytree(found)
        return restore(jax.lax.pmean(vector, "batch"))

    if mesh is None:
        return alone
    whole, part = PartitionSpec(), PartitionSpec("batch")
    # Unchecked: a checked gradient would be summed array by array.
    return jax.shard_map(
        share, mesh=mesh, in_specs=(whole, part, part, part, whole), out_specs=(whole, whole), check_vma=False
    )


def pretraining(network: Network, training: FlowTraining, samples: ArrayLike, *, mesh: Mesh | None = None) -> Process:
    """Fitting a velocity field to data as a process, each round of which takes `training.num_steps` steps.

    `pj.run(process, process.init(key), num_steps=R, key=..., checkpoint=FOLDER, progress=...)` trains for R rounds, with
    progress, and goes on where it was killed; `state.average` is what `pj.models.flow(..., pretrained=)` wants.

    Args:
        network: the velocity field, such as `pj.models.unet()`.
        training: how; `decay` counts steps over all rounds.
        samples: [n, ...] of the network's shape; uint8 images are read as -1 to 1.
        mesh: see `train`.

    Returns:
        A stochastic process with `TrainingState` and `TrainingInfo`; `init(key)`, or `init(key, params)` to go on.

    Raises:
        ValueError: samples of another shape than the network's; a mesh that does not divide the batch.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> network = pj.models.dense_field(1, width=16)
        >>> training = pj.models.FlowTraining(num_steps=4, batch_size=8)
        >>> process = pj.models.pretraining(network, training, jnp.ones((32, 1)))
        >>> state, info = pj.run(process, process.init(jax.random.key(0)), num_steps=2, key=jax.random.key(1))
        >>> int(state.step), info.loss.shape
        (8, (2,))

    Source: C.5 of the paper, for the pretraining on CIFAR-10.
    """
    shape = np.shape(samples)
    if shape[1:] != tuple(network.shape) or not shape[0]:
        raise ValueError(f"samples must have shape [n, {', '.join(map(str, network.shape))}], got {shape}.")
    check_mesh(mesh, training.batch_size)
    loop = _Rounds(mesh)
    return Process(init=Partial(_first, network, training), step=Partial(loop, network, training, jnp.asarray(samples)))


def check_mesh(mesh: Mesh | None, batch_size: int) -> None:
    """Refuse devices that cannot share a batch."""
    if mesh is None:
        return
    if mesh.axis_names != ("batch",):
        raise ValueError(f"mesh must have one axis, 'batch', got axes {mesh.axis_names}.")
    if batch_size % mesh.size:
        raise ValueError(f"batch_size must be a multiple of the mesh's devices, got {batch_size} and {mesh.size}.")


@dataclass(frozen=True)
class _Rounds:
    """Steps of a round on the devices of a mesh; equal for equal meshes."""

    mesh: Mesh | None

    def __call__(
        self, network: Network, training: FlowTraining, samples: Array, key: Array | None, state: TrainingState
    ) -> tuple[TrainingState, TrainingInfo]:
        if key is None:
            raise ValueError("key must be a PRNG key, because batches and noise are drawn at random, got None.")
        return train(network, training, key, state, samples, mesh=self.mesh)


def _first(network: Network, training: FlowTraining, key: Array, params: Any = None) -> TrainingState:
    return start_training(training, network.init(key) if params is None else params)


@partial(jax.jit, static_argnames=("num",))
def _batches_of(key: Array, training: FlowTraining, num: int, weights: Array | None) -> Array:
    wanted = training.num_steps * training.batch_size
    if weights is not None:
        return jax.random.categorical(key, jnp.log(weights), shape=(wanted,)).astype(jnp.int32)
    passes = -(-wanted // num)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num))(jax.random.split(key, passes))
    return orders.reshape(-1)[:wanted].astype(jnp.int32)


def _batches(key: Array, training: FlowTraining, num: int, weights: Array | None) -> Array:
    """The samples of every step, int32 [num_steps * batch_size]: whole passes in random order, or draws by weight."""
    return _batches_of(key, training, num, weights)


def _as_float(x: Array) -> Array:
    """Bytes as images from -1 to 1; other numbers as they are."""
    return x.astype(jnp.float32) / 127.5 - 1 if x.dtype == jnp.uint8 else x
