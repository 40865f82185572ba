"""A landscape: atoms, their base measure, and what every preference thinks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._pytree import is_key, pytree_dataclass, set_field
from plural_jax._typing import ArrayLike
from plural_jax.grid import Grid


@pytree_dataclass
class Landscape:
    """Rewards of m preferences on n atoms (cells of a grid, or items with no geometry).

    Shapes: m preferences, n atoms, d dimensions. All arrays share the floating type of `rewards`.

    Args:
        rewards: r_i(x) for each preference and atom, [m, n]; finite.
        points: coordinates of the atoms, [n, d], or None where there is no geometry.
        log_measure: log of the base measure of each atom, [n] (a cell's volume); default: all equal. `-inf` takes an
            atom out of the domain.
        reward: the function x [..., d] -> r [..., m] behind the table, which `on` fills in; for those who leave the grid.

    Raises:
        ValueError: rewards that are not m x n, NaN or infinite; a measure of the wrong length, or zero everywhere.

    Example:
        >>> land = Landscape(rewards=[[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]])
        >>> land.num_preferences, land.num_atoms
        (2, 3)
    """

    rewards: Array
    points: Array | None = None
    log_measure: Array | None = None
    reward: Any = None

    def __post_init__(self) -> None:
        _validate.finite(self.rewards, "rewards")
        if np.ndim(self.rewards) != 2 or 0 in np.shape(self.rewards):
            raise ValueError(
                f"rewards must be a table of m preferences x n atoms, neither empty, got shape {np.shape(self.rewards)}."
            )
        rewards = as_float(self.rewards)
        n = rewards.shape[1]
        set_field(self, "rewards", rewards)
        if self.points is not None:
            _validate.finite(self.points, "points")
            if np.ndim(self.points) != 2 or np.shape(self.points)[0] != n:
                raise ValueError(f"points must have shape [n, d] with n = {n}, got shape {np.shape(self.points)}.")
            set_field(self, "points", jnp.asarray(self.points, rewards.dtype))
        if self.log_measure is None:
            set_field(self, "log_measure", jnp.full((n,), -np.log(n), rewards.dtype))
        else:
            check_log_mass(self.log_measure, n, "log_measure")
            set_field(self, "log_measure", jnp.asarray(self.log_measure, rewards.dtype))

    @classmethod
    def on(cls, grid: Grid, reward: Callable[[Array], Array]) -> Landscape:
        """Evaluate a reward function on every cell of a grid.

        Args:
            grid: the cells.
            reward: x [..., d] -> r [..., m]; anything of `pj.rewards`, or your own function.

        Returns:
            A landscape with the grid's points and cell volumes.

        Raises:
            ValueError: the function does not return one row of m rewards for each point, or returns NaN or infinity.

        Example:
            >>> import plural_jax as pj
            >>> grid = pj.Grid.uniform(-5.0, 5.0, 100)
            >>> pj.Landscape.on(grid, pj.rewards.bump(centers=[-1.0, 1.0], height=5.0, width=1.0)).rewards.shape
            (2, 100)
        """
        if not isinstance(grid, Grid):
            raise ValueError(
                f"grid must be a Grid, such as Grid.uniform(-5.0, 5.0, 100), got {_validate.kind(grid)}; "
                "the order is Landscape.on(grid, reward)."
            )
        if not callable(reward):
            raise ValueError(
                f"reward must be a function of points, got {_validate.kind(reward)}; a table of rewards, [m, n], is "
                "Landscape(rewards=table)."
            )
        points = grid.points
        values = reward(points)
        if np.ndim(values) != 2 or np.shape(values)[0] != points.shape[0]:
            raise ValueError(
                f"reward must map points [n, d] = {points.shape} to rewards [n, m], got shape {np.shape(values)}"
                f"{_validate.reward_advice(values, points.shape[0])}"
            )
        # A function of its own is no pytree; wrapped, it is one without leaves.
        known = Partial(reward) if jax.tree_util.all_leaves([reward]) else reward
        return cls(rewards=jnp.asarray(values).T, points=points, log_measure=grid.log_measure, reward=known)

    @property
    def num_preferences(self) -> int:
        """M."""
        return self.rewards.shape[0]

    @property
    def num_atoms(self) -> int:
        """N."""
        return self.rewards.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Floating type of every array here."""
        return self.rewards.dtype

    def uniform(self) -> Array:
        """Log-mass of the uniform density: every atom in proportion to its base measure, [n]."""
        return normalize(self._log_measure)

    def gaussian(self, mean: ArrayLike, std: ArrayLike) -> Array:
        """Log-mass of a Gaussian density restricted to the atoms and normalized there, [n].

        Args:
            mean: centre, a scalar or [d].
            std: standard deviation (units of `points`), a scalar or [d] for one per dimension; positive.

        Raises:
            ValueError: a landscape without points, a non-finite mean, a standard deviation that is not positive.

        Example:
            >>> import plural_jax as pj
            >>> land = pj.Landscape.on(pj.Grid.uniform(-5.0, 5.0, 101), pj.rewards.quadratic([-1.0, 1.0], gamma=0.5))
            >>> int(land.gaussian(0.0, 1.0).argmax())
            50
        """
        if self.points is None:
            raise ValueError("gaussian needs a landscape with points; this one was built from a table of rewards.")
        _validate.finite(mean, "mean")
        _validate.positive(std, "std")
        for name, value in (("mean", mean), ("std", std)):
            if np.ndim(value) > 1 or (np.ndim(value) == 1 and np.shape(value)[0] != self.points.shape[1]):
                raise ValueError(
                    f"{name} must be a scalar or have one entry for each of the {self.points.shape[1]} dimensions, got "
                    f"shape {np.shape(value)}."
                )
        z = (self.points - jnp.asarray(mean, self.dtype)) / jnp.asarray(std, self.dtype)
        return normalize(self._log_measure - 0.5 * jnp.sum(z * z, axis=-1))

    def basins(self, eps: ArrayLike) -> Array:
        """Near-optimal basins `S_i = {x : r_i(x) >= r_i* - eps}` of Assumption 1, bool [m, n].

        The optimum r_i* is taken over the atoms that belong to the domain (positive base measure).
        """
        inside = self._log_measure > -jnp.inf
        best = jnp.max(jnp.where(inside, self.rewards, -jnp.inf), axis=1, keepdims=True)
        return (self.rewards >= best - jnp.asarray(eps, self.dtype)) & inside

    def without_reward(self) -> Landscape:
        """The same numbers without the function behind them, so that a new function compiles nothing."""
        bare = object.__new__(Landscape)  # what was checked once is not checked again
        for name in ("rewards", "points", "log_measure"):
            set_field(bare, name, getattr(self, name))
        set_field(bare, "reward", None)
        return bare

    @property
    def _log_measure(self) -> Array:
        assert self.log_measure is not None  # set by the constructor
        return self.log_measure


def as_float(value: ArrayLike) -> Array:
    """An array of the caller's floating type; integers and booleans become JAX's default float."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    return array


@jax.jit
def normalize(log_mass: Array) -> Array:
    """Shift log-masses so that they sum to one in probability; `-inf` stays `-inf`."""
    return log_mass - jax.nn.logsumexp(log_mass)


def check_weights(landscape: Landscape, phi: ArrayLike) -> None:
    """Refuse what is no landscape, and weights that do not fit its preferences."""
    if not isinstance(landscape, Landscape):
        raise ValueError(
            f"landscape must be a Landscape, got {_validate.kind(landscape)}; make one of a table [m, n] by "
            "Landscape(rewards=table), or of a reward function by Landscape.on(grid, reward)."
        )
    m, n = landscape.rewards.shape
    given = len(phi) if isinstance(phi, (list, tuple)) else np.size(phi)
    turned = (
        f"; rewards [m, n] have shape ({m}, {n}): Landscape(rewards=table.T) if a row is a sample" if given == n else ""
    )
    _validate.simplex(phi, "phi", m, turned)


def check_log_mass(value: ArrayLike, n: int, name: str) -> None:
    """Refuse log-masses of the wrong length, NaN or +inf, or with no mass at all; also probabilities and keys."""
    if is_key(value):
        raise ValueError(f"{name} must hold log-masses, got a PRNG key; a density starts without one: process.init().")
    if np.shape(value) != (n,):
        raise ValueError(f"{name} must have one log-mass for each of the {n} atoms, got shape {np.shape(value)}.")
    array = _validate.real_array(value, name)
    if array is None:
        return
    bad = np.isnan(array) | np.isposinf(array)
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(f"{name} must not hold NaN or +inf, got {array[index]} at index {index}.")
    if np.isneginf(array).all():
        raise ValueError(f"{name} holds no mass: all {n} log-masses are -inf.")
    # Taken for log-masses, probabilities would be an almost uniform density, and nobody would notice.
    if n > 2 and (array >= 0).all() and abs(array.astype(np.float64).sum() - 1.0) < 1e-5:
        raise ValueError(
            f"{name} holds probabilities, which sum to 1, and must hold their logarithms: give jnp.log of it."
        )
