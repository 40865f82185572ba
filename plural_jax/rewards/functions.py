"""Analytic and tabulated rewards on R^d.

Shapes: m preferences, d dimensions, `...` any batch of points. Parameters may be lists, NumPy or JAX arrays, or tracers.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, static_field
from plural_jax._typing import ArrayLike
from plural_jax.grid import Grid
from plural_jax.landscape import as_float


def _centers(centers: ArrayLike) -> Array:
    """Centres as [m, d]; a flat list is m centres on the line."""
    _validate.finite(centers, "centers")
    array = as_float(centers)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"centers must have shape [m] (one dimension) or [m, d], got shape {np.shape(centers)}.")
    return array


def _per_preference(value: ArrayLike, name: str, centers: Array) -> Array | np.ndarray:
    """A parameter as one number for each preference, [m]; in NumPy where it is known, or under `jit` it would not be any more."""
    _validate.finite(value, name)
    m = centers.shape[0]
    if np.ndim(value) > 1 or (np.ndim(value) == 1 and np.shape(value)[0] != m):
        raise ValueError(f"{name} must be a number or one for each of the {m} centers, got shape {np.shape(value)}.")
    known = _validate.concrete(value)
    if known is None:
        return jnp.broadcast_to(jnp.asarray(value, centers.dtype), (m,))
    return np.broadcast_to(known.astype(centers.dtype), (m,))


def _squared_distance(x: Array, centers: Array) -> Array:
    """Squared Euclidean distance of every centre to every point, [m, ...]: along the points XLA can vectorize."""
    if x.shape[-1] != centers.shape[1]:
        raise ValueError(
            f"centers have {centers.shape[1]} dimension(s) but the points have {x.shape[-1]} (points {x.shape})."
        )
    difference = x - centers.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1), x.shape[-1])
    return jnp.sum(difference * difference, axis=-1)


def _largest(value: Array | np.ndarray) -> float | None:
    """The largest absolute value, or None where it is traced."""
    known = _validate.concrete(value)
    return None if known is None else float(np.abs(known).max())


def _for_points(value: Array | np.ndarray, x: Array) -> Array:
    """A parameter [m] as [m, ...], with an axis of length one for each axis of the points."""
    return jnp.asarray(value, x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


@pytree_dataclass
class Quadratic:
    """See `quadratic`."""

    centers: Array
    gamma: Array | np.ndarray

    @jax.jit
    def __call__(self, x: Array) -> Array:
        return jnp.moveaxis(-_for_points(self.gamma, x) * _squared_distance(x, self.centers), 0, -1)


def quadratic(centers: ArrayLike, gamma: ArrayLike) -> Quadratic:
    """Quadratic rewards around m centres (Eq. C.2).

    `r_i(x) = -gamma_i ||x - mu_i||^2`

    Args:
        centers: mu, [m, d]; or [m] in one dimension.
        gamma: sharpness, a number or [m]; not negative (reward per squared unit of x).

    Raises:
        ValueError: negative gamma, wrong shapes, NaN or infinity.

    Example:
        >>> quadratic([-1.0, 1.0], gamma=0.5)(jnp.zeros((1, 1))).tolist()
        [[-0.5, -0.5]]
    """
    mu = _centers(centers)
    value = _validate.real_array(gamma, "gamma")
    if value is not None and (value < 0).any():
        raise ValueError(f"gamma must not be negative, got {_validate.shown(value)}.")
    return Quadratic(mu, _per_preference(gamma, "gamma", mu))


@pytree_dataclass
class Bump:
    """See `bump`."""

    centers: Array
    height: Array | np.ndarray
    width: Array | np.ndarray

    @property
    def reward_range(self) -> float | None:
        """What the rewards of a preference differ by at most, or None where heights are traced; see `density.finite_pool`."""
        return _largest(self.height)

    @jax.jit
    def __call__(self, x: Array) -> Array:
        squared = _squared_distance(x, self.centers)
        bell = jnp.exp(-squared / (2 * _for_points(self.width, x) ** 2))
        return jnp.moveaxis(_for_points(self.height, x) * bell, 0, -1)


def bump(centers: ArrayLike, height: ArrayLike, width: ArrayLike) -> Bump:
    """Bell-shaped rewards around m centres, the landscape of C.9 for height 5 and width 1.

    `r_i(x) = height_i exp(-||x - mu_i||^2 / (2 width_i^2))`

    Args:
        centers: mu, [m, d]; or [m] in one dimension.
        height: reward at the centre, a number or [m].
        width: standard deviation of the bell, a number or [m], positive, in units of x.

    Raises:
        ValueError: a width that is not positive, wrong shapes, NaN or infinity.

    Example:
        >>> [f"{r:.3f}" for r in bump([-1.0, 1.0], height=5.0, width=1.0)(jnp.array([[1.0]]))[0]]
        ['0.677', '5.000']
    """
    mu = _centers(centers)
    _validate.positive(width, "width")
    return Bump(mu, _per_preference(height, "height", mu), _per_preference(width, "width", mu))


@pytree_dataclass
class Plateau:
    """See `plateau`."""

    centers: Array
    radius: Array | np.ndarray
    height: Array | np.ndarray
    floor: Array | np.ndarray

    @property
    def reward_range(self) -> float | None:
        """What the rewards of a preference differ by at most, or None where they are traced; see `density.finite_pool`."""
        return _largest(self.height - self.floor)

    @jax.jit
    def __call__(self, x: Array) -> Array:
        near = jnp.moveaxis(_squared_distance(x, self.centers) <= _for_points(self.radius, x) ** 2, 0, -1)
        return jnp.where(near, self.height.astype(x.dtype), self.floor.astype(x.dtype))


def plateau(centers: ArrayLike, radius: ArrayLike, height: ArrayLike = 1.0, floor: ArrayLike = 0.0) -> Plateau:
    """Rewards that are constant on a ball around each centre and constant elsewhere (the setting of Prop. 4).

    `r_i(x) = height_i if ||x - mu_i|| <= radius_i else floor_i`

    Args:
        centers: mu, [m, d]; or [m] in one dimension.
        radius: radius of the ball, a number or [m], positive, in units of x.
        height, floor: reward inside and outside, numbers or [m]. The leakage of Lemma 4 is `exp(-(height - floor))`.

    Raises:
        ValueError: a radius that is not positive, wrong shapes, NaN or infinity.

    Example:
        >>> plateau([-1.0, 1.0], radius=0.5, height=3.0)(jnp.array([[1.2]])).tolist()
        [[0.0, 3.0]]
    """
    mu = _centers(centers)
    _validate.positive(radius, "radius")
    radius, height, floor = (
        _per_preference(v, name, mu) for v, name in ((radius, "radius"), (height, "height"), (floor, "floor"))
    )
    return Plateau(mu, radius, height, floor)


@pytree_dataclass
class Table:
    """See `table`."""

    grid: Grid
    values: Array
    method: Literal["nearest", "linear"] = static_field(default="nearest")

    @jax.jit
    def __call__(self, x: Array) -> Array:
        if x.shape[-1] != self.grid.num_dims:
            raise ValueError(
                f"the table's grid has {self.grid.num_dims} dimension(s) but the points have {x.shape[-1]}."
            )
        if self.method == "nearest":
            return self.values.T[self.grid.index_of(x)].astype(x.dtype)
        coordinates = []
        for i, axis in enumerate(self.grid.axes):
            step = axis[1] - axis[0] if axis.shape[0] > 1 else jnp.ones((), axis.dtype)
            coordinates.append((x[..., i] - axis[0]) / step)
        tables = self.values.reshape((-1, *self.grid.shape))
        columns = [jax.scipy.ndimage.map_coordinates(t, coordinates, order=1, mode="nearest") for t in tables]
        return jnp.stack(columns, axis=-1)


def table(grid: Grid, values: ArrayLike, method: Literal["nearest", "linear"] = "nearest") -> Table:
    """Rewards measured on a grid: looked up at the nearest cell, or interpolated linearly between cells.

    Args:
        grid: where the rewards were measured.
        values: [m, n] or [m, *grid.shape].
        method: "nearest" returns the table exactly on the grid's own points; "linear" is for points in between.

    Raises:
        ValueError: a shape that does not fit the grid, NaN or infinity, an unknown method.

    Example:
        >>> from plural_jax import Grid
        >>> table(Grid.uniform(0.0, 1.0, 3), [[0.0, 1.0, 4.0]])(jnp.array([[0.9]])).tolist()
        [[4.0]]
    """
    _validate.finite(values, "values")
    if method not in ("nearest", "linear"):
        raise ValueError(f"method must be 'nearest' or 'linear', got {method!r}.")
    shape = np.shape(values)
    if len(shape) < 2 or shape[1:] not in ((grid.num_cells,), grid.shape):
        raise ValueError(f"values must have shape [m, {grid.num_cells}] or [m, *{grid.shape}], got {shape}.")
    return Table(grid, as_float(values).reshape(shape[0], -1), method)


@pytree_dataclass
class Items:
    """See `items`."""

    values: Array

    @jax.jit
    def __call__(self, x: Array) -> Array:
        return self.values.T[x]


def items(values: ArrayLike) -> Items:
    """Rewards measured on n items that have no geometry; samples are the items' numbers.

    Args:
        values: r_i of each item, [m, n].

    Raises:
        ValueError: not a table, NaN or infinity.

    Example:
        >>> items([[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]])(jnp.array([2, 1])).tolist()
        [[5.0, 0.0], [1.0, 1.0]]
    """
    _validate.finite(values, "values")
    if np.ndim(values) != 2 or 0 in np.shape(values):
        raise ValueError(f"values must be a table of m preferences x n items, got shape {np.shape(values)}.")
    return Items(as_float(values))
