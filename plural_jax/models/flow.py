"""A continuous normalizing flow as a `Model`: samples by integrating a velocity field, refit by OT-CFM.

    dx/dt = v(t, x),    x(0) ~ N(0, I),    x(1) is a sample

Integration is `diffrax`'s: an adaptive solver with tolerances, or a fixed number of steps. A batch is one system with one step.

Shapes: n samples of the network's shape, d numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax.model import Model
from plural_jax.models.codec import Codec
from plural_jax.models.flow_training import FlowTraining, check_mesh, start_training, train
from plural_jax.models.network import Network, in_pieces

#: Names of solvers, and of their classes in diffrax.
_SOLVERS = {"euler": "Euler", "midpoint": "Midpoint", "heun": "Heun", "tsit5": "Tsit5", "dopri5": "Dopri5"}


@dataclass(frozen=True)
class Integrator:
    """How a flow is integrated from noise to samples.

    Attributes:
        solver: "dopri5" or "tsit5" (adaptive, or fixed with `num_steps`), "euler", "midpoint" or "heun" (which need `num_steps`).
        num_steps: fixed steps of equal length; None for steps that keep the tolerances.
        rtol, atol: relative and absolute tolerance of the adaptive solvers.
        max_steps: adaptive steps at most, before it is an error.

    Example:
        >>> Integrator("euler", num_steps=20).solver
        'euler'
    """

    solver: str = "dopri5"
    num_steps: int | None = None
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if self.solver not in _SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(_SOLVERS)}, got {self.solver!r}.")
        if self.num_steps is not None:
            _validate.positive_integer(self.num_steps, "num_steps")
        elif self.solver not in ("dopri5", "tsit5"):
            raise ValueError(f"num_steps must be given for the solver {self.solver!r}, which keeps no tolerance.")
        for name in ("rtol", "atol"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}.")


def flow(
    network: Network,
    training: FlowTraining,
    *,
    pretrained: Any = None,
    integrator: Integrator | None = None,
    batch_size: int = 500,
    bounds: tuple[float, float] | None = None,
    codec: Codec | None = None,
    mesh: Mesh | None = None,
) -> Model:
    """A flow that is refit, from where it is, by OT-CFM.

    Args:
        network: the velocity field, such as `pj.models.unet("3M")`.
        training: how a round refits it. The optimizer starts anew in every round; the moving average of the parameters is what is
            kept, and what the next round starts from.
        pretrained: parameters that every run starts from; default: random ones.
        integrator: default: Dopri5 with tolerances of 1e-4.
        batch_size: samples that are integrated together.
        bounds: (low, high) that samples are clipped to, (-1, 1) for images; default: none.
        codec: what lies between samples and what the network works on, such as `pj.models.band_limited(32, 16)`; default: none.
        mesh: devices that share every batch, of samples and of training, along an axis "batch".

    Returns:
        A `Model` whose params are the network's and whose samples are float32 [n, ...]. It has no `log_prob`: see `log_density`.

    Raises:
        ValueError: pretrained parameters of another network; a mesh that does not divide the batches.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> training = pj.models.FlowTraining(num_steps=2, batch_size=8)
        >>> model = pj.models.flow(pj.models.dense_field(2, width=8), training, integrator=pj.models.Integrator("euler", 4))
        >>> params = model.init(jax.random.key(0))
        >>> model.sample(jax.random.key(1), params, 5).shape
        (5, 2)

    Source: C.5 of the paper; Lipman et al. 2022; Tong et al. 2023.
    """
    batch_size = _validate.positive_integer(batch_size, "batch_size")
    check_mesh(mesh, training.batch_size)
    check_mesh(mesh, batch_size)
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}.")
    if pretrained is not None:
        wanted = jax.eval_shape(network.init, jax.random.key(0))
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
        if shapes(wanted) != shapes(pretrained):
            raise ValueError("pretrained must hold parameters of this network, got others; is it the same preset?")
    settings = _Sampling(integrator or Integrator(), batch_size, bounds, mesh)
    return Model(
        init=Partial(_start, network, pretrained),
        sample=Partial(_Sample(settings), network, codec),
        fit=Partial(_Fit(settings), network, codec, training),
    )


@dataclass(frozen=True)
class _Sampling:
    """What is static."""

    integrator: Integrator
    batch_size: int
    bounds: tuple[float, float] | None
    mesh: Mesh | None


def _start(network: Network, pretrained: Any, key: Array) -> Any:
    return network.init(key) if pretrained is None else pretrained


@dataclass(frozen=True)
class _Sample:
    settings: _Sampling

    def __call__(self, network: Network, codec: Codec | None, key: Array, params: Any, num: int) -> Any:
        settings = self.settings
        size = min(settings.batch_size, num)
        if settings.mesh is not None:
            size = -(-size // settings.mesh.size) * settings.mesh.size
        else:
            network = in_pieces(network)
        batches = -(-num // size)

        def one(key: Array) -> Array:
            noise = jax.random.normal(key, (size, *network.shape), jnp.float32)
            if settings.mesh is not None:
                sharding = NamedSharding(settings.mesh, PartitionSpec("batch"))
                noise = jax.lax.with_sharding_constraint(noise, sharding)
            found = integrate(network, params, noise, settings.integrator)
            return found if codec is None else codec.decode(found)

        samples = jax.lax.map(one, jax.random.split(key, batches))
        samples = jax.tree.map(lambda x: x.reshape(batches * size, *x.shape[2:])[:num], samples)
        if settings.bounds is None:
            return samples
        low, high = settings.bounds
        return jax.tree.map(lambda x: jnp.clip(x, low, high), samples)


@dataclass(frozen=True)
class _Fit:
    settings: _Sampling

    def __call__(
        self,
        network: Network,
        codec: Codec | None,
        training: FlowTraining,
        key: Array,
        params: Any,
        samples: Any,
        weights: Array | None,
    ) -> Any:
        start = start_training(training, params)
        samples = samples if codec is None else codec.encode(samples)
        return train(network, training, key, start, samples, weights, mesh=self.settings.mesh)[0].average


def integrate(network: Network, params: Any, noise: Array, integrator: Integrator) -> Array:
    """Where the flow takes noise: x(1) from x(0) = noise.

    Args:
        network: the velocity field.
        params: its parameters.
        noise: [n, ...].
        integrator: how.

    Returns:
        Samples, [n, ...].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import plural_jax as pj
        >>> network = pj.models.dense_field(1, width=8)
        >>> params = network.init(jax.random.key(0))
        >>> pj.models.integrate(network, params, jnp.zeros((3, 1)), pj.models.Integrator("midpoint", 4)).shape
        (3, 1)
    """

    def velocity(time: Array, x: Array, params: Any) -> Array:
        return network.apply(params, jnp.full(x.shape[0], time, jnp.float32), x, None)

    return _solve(velocity, noise, params, integrator, 0.0, 1.0)


def log_density(network: Network, params: Any, samples: Array, integrator: Integrator | None = None) -> Array:
    """Natural logarithm of a flow's density at samples, with the exact divergence of its velocity.

    `log p(x) = log N(x(0); 0, I) - int_0^1 div v(t, x(t)) dt`, along the path that ends in x

    Args:
        network: the velocity field.
        params: its parameters.
        samples: [n, ...]; every step costs d derivatives, so d should be small.
        integrator: default: Dopri5 with tolerances of 1e-4.

    Returns:
        [n], in nats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import plural_jax as pj
        >>> network = pj.models.dense_field(1, width=8)
        >>> params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0)))  # v = 0: the density is the noise's
        >>> print(jnp.round(pj.models.log_density(network, params, jnp.zeros((1, 1))), 3))
        [-0.919]

    Source: Chen et al. 2018, the instantaneous change of variables.
    """

    def velocity(time: Array, state: tuple[Array, Array], params: Any) -> tuple[Array, Array]:
        def one(x: Array) -> tuple[Array, Array]:
            field = lambda y: network.apply(params, jnp.full(1, time, jnp.float32), y.reshape(1, *x.shape), None)  # noqa: E731
            v, back = jax.vjp(lambda y: field(y).reshape(-1), x.reshape(-1))
            rows = jax.vmap(lambda e: back(e)[0])(jnp.eye(v.size, dtype=v.dtype))
            return v.reshape(x.shape), jnp.trace(rows)

        return jax.vmap(one)(state[0])

    start = (samples, jnp.zeros(samples.shape[0], samples.dtype))
    noise, gathered = _solve(velocity, start, params, integrator or Integrator(), 1.0, 0.0)
    flat = noise.reshape(noise.shape[0], -1)
    # Integrated from 1 to 0, the divergence has the other sign.
    return jnp.sum(jax.scipy.stats.norm.logpdf(flat), axis=1) + gathered


def _solve(velocity: Any, start: Any, params: Any, integrator: Integrator, begin: float, end: float) -> Any:
    import diffrax  # slow to import

    controller: Any
    if integrator.num_steps is None:
        controller = diffrax.PIDController(rtol=integrator.rtol, atol=integrator.atol)
        step, most = None, integrator.max_steps
    else:
        controller = diffrax.ConstantStepSize()
        step, most = (end - begin) / integrator.num_steps, integrator.num_steps + 1
    with jax.numpy_dtype_promotion("standard"):  # diffrax mixes types, which a user of strict promotion need not know
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            getattr(diffrax, _SOLVERS[integrator.solver])(),
            jnp.float32(begin),
            jnp.float32(end),
            None if step is None else jnp.float32(step),
            start,
            params,
            stepsize_controller=controller,
            max_steps=most,
        )
    return jax.tree.map(lambda x: x[0], solution.ys)
