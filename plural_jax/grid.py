"""Uniform grids: the cells on which densities live."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass
from plural_jax._typing import ArrayLike


@pytree_dataclass
class Grid:
    """A regular grid in d dimensions; build it with `Grid.uniform`.

    Shapes: n cells in total, d dimensions. Cells are numbered in C order, the last axis fastest, so a vector over cells
    reshapes to `grid.shape`.

    Attributes:
        axes: the coordinates along each dimension, d arrays of shape [num_i].
    """

    axes: tuple[Array, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.axes, tuple) or any(np.ndim(axis) != 1 for axis in self.axes):
            raise ValueError(
                "axes must be a tuple of flat arrays, one for each dimension; Grid.uniform(low, high, num) makes them."
            )

    @classmethod
    def uniform(
        cls,
        low: ArrayLike | Sequence[float],
        high: ArrayLike | Sequence[float],
        num: int | Sequence[int],
    ) -> Grid:
        """Evenly spaced points from `low` to `high`, both ends included (the grid of C.9).

        Args:
            low, high: first and last coordinate; a scalar for one dimension, a sequence of d for more. May be traced.
            num: number of points, an int or a sequence of d ints (a single int is used for every dimension).

        Returns:
            A grid with n = prod(num) cells, in JAX's default float type or that of `low` and `high`.

        Raises:
            ValueError: an empty grid, `high` not above `low`, non-finite ends, or lengths that disagree.

        Example:
            >>> grid = Grid.uniform(-5.0, 5.0, 100)
            >>> grid.points.shape
            (100, 1)
            >>> Grid.uniform([-1.0, 0.0], [1.0, 2.0], [3, 5]).shape
            (3, 5)
        """
        _validate.finite(low, "low")
        _validate.finite(high, "high")
        dims = {len(shape) for shape in (np.shape(low), np.shape(high), np.shape(num))}
        if max(dims) > 1:
            raise ValueError("low, high and num must be scalars or flat sequences, one entry for each dimension.")
        lengths = {np.shape(v)[0] for v in (low, high, num) if np.shape(v)}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                f"low, high and num must have one entry for each dimension, got {np.shape(low)}, {np.shape(high)} and "
                f"{np.shape(num)}."
            )
        d = lengths.pop() if lengths else 1
        nums = [num] * d if np.ndim(num) == 0 else list(num)  # type: ignore[arg-type]
        nums = [_validate.positive_integer(k, "num (an empty grid has no cells)") for k in nums]
        dtype = jnp.result_type(float, *(jnp.asarray(v).dtype for v in (low, high) if jnp.asarray(v).dtype.kind == "f"))
        ends = [jnp.broadcast_to(jnp.asarray(v, dtype), (d,)) for v in (low, high)]
        low_c, high_c = _validate.concrete(ends[0]), _validate.concrete(ends[1])
        if low_c is not None and high_c is not None:
            for i, k in enumerate(nums):
                if k > 1 and not low_c[i] < high_c[i]:
                    raise ValueError(f"high must be above low, got low={low_c[i]} and high={high_c[i]}.")
        return cls(tuple(jnp.linspace(ends[0][i], ends[1][i], k, dtype=dtype) for i, k in enumerate(nums)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells along each dimension."""
        return tuple(axis.shape[0] for axis in self.axes)

    @property
    def num_cells(self) -> int:
        """Total number of cells n."""
        return math.prod(self.shape)

    @property
    def num_dims(self) -> int:
        """Number of dimensions d."""
        return len(self.axes)

    @property
    def points(self) -> Array:
        """Cell centres, [n, d]."""
        mesh = jnp.meshgrid(*self.axes, indexing="ij")
        return jnp.stack([m.reshape(-1) for m in mesh], axis=-1)

    @property
    def log_measure(self) -> Array:
        """Log volume of each cell, [n]: a point stands for a cell of one grid spacing."""
        dtype = self.axes[0].dtype
        log_volume = jnp.zeros((), dtype)
        for axis in self.axes:
            if axis.shape[0] > 1:
                log_volume = log_volume + jnp.log(axis[1] - axis[0])
        return jnp.full((self.num_cells,), log_volume, dtype=dtype)

    def index_of(self, x: Array) -> Array:
        """Number of the cell nearest to each point; points outside go to the edge. x [..., d] -> int [...]."""
        indices = []
        for i, axis in enumerate(self.axes):
            step = axis[1] - axis[0] if axis.shape[0] > 1 else jnp.ones((), axis.dtype)
            index = jnp.round((x[..., i] - axis[0]) / step)
            indices.append(jnp.clip(index, 0, axis.shape[0] - 1).astype(jnp.int32))
        return jax.numpy.ravel_multi_index(tuple(indices), self.shape, mode="clip")
