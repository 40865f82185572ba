"""Many large-K rounds in linear space: one function of x for each preference, its tilt.

    z_i = sum_x p(x) e_i(x),    p(x) <- p(x) W(x),    W(x) = sum_i u_i e_i(x),    u_i = phi_i / z_i    (Eq. 5)

with `e_i = exp((r_i - r_i*) / tau) <= 1`. So `W <= 1 / min_i z_i`, and false masses are harmless while their sum is below
rounding in every z_i. Per cell and round this reads q twice and writes it once; 2m fused multiply-adds and one product.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from plural_jax import _pallas
from plural_jax.density import many_rounds, on_chip
from plural_jax.density.core import DensityInfo, DensityState, Problem, dot
from plural_jax.density.linear_blocks import Measured, Setting, run
from plural_jax.density.linear_blocks_masses import Parts, add, mix
from plural_jax.density.linear_blocks_strides import Strides


class Tilts:
    """The rule of large pools; see `linear_blocks.Rule`."""

    sorts: ClassVar[bool] = True
    #: On a CPU a matrix product with fewer columns than this is slower than with this many (jaxlib 0.10: a round takes
    #: 0.1 ns per entry with 32 columns, 0.5 to 1 with 3 to 31), so that it pays to fill up with copies.
    columns: ClassVar[int] = 32
    fewest_cell_steps: ClassVar[int] = 0

    def __init__(self, setting: Setting) -> None:
        """See `linear_blocks.Rule`."""
        self._setting = setting
        self._parts = [setting.tilt[:, :, a:b] for a, b in pairwise(setting.cuts)]

    @staticmethod
    def fill_up(multiplier: Any, cells: int) -> Any:
        """The multiplier holds nothing that has cells."""
        return multiplier

    def measure(self, masses: Parts) -> Measured:
        """The normalizers over so many parts, and what follows from them."""
        unit = 2.0**-self._setting.form.scale
        return self.measured(add(dot(e, part.q) for e, part in zip(self._parts, masses, strict=False)) * unit)

    def measured(self, z: Array) -> Measured:
        """What follows from the normalizers, [G, m, C]."""
        return Measured(weights=self._setting.phi / z, z=z, w_max=1 / jnp.min(z))

    def w(self, measured: Measured, part: int) -> Array:
        """Sum_i u_i e_i(x)."""
        return mix(measured.weights, self._parts[part])

    def w_first(self, measured: Measured, length: int) -> Array:
        """The same in the first cells."""
        return mix(measured.weights, self._setting.tilt[:, :, :length])

    def normalizers(self, measured: Measured, masses: Parts) -> Array:
        """They are measured in every round."""
        assert measured.z is not None
        return measured.z

    def trusted(self, growth: Array, measured: Measured) -> Array:
        """False masses, and tilts that have underflowed, change no digit of a normalizer."""
        return self.known(growth, measured.w_max)

    def known(self, growth: Array, w_max: Array) -> Array:
        """The same for the largest W alone."""
        s, z_min = self._setting, 1 / w_max
        return (s.false_mass(growth) * s.coarse <= z_min) & (2.0**-s.form.depth * s.coarse <= s.w_low * z_min)

    def strides(self) -> Strides:
        """Two rounds at once, with two preferences."""
        return Strides(self._setting, self)


def rounds(
    problem: Problem, multiplier: Any, key: Array | None, state: DensityState, num_steps: int, every: int
) -> tuple[DensityState, DensityInfo]:
    """`num_steps` large-K rounds and the infos of every `every`-th; equal to repeated steps up to rounding."""
    del key  # the exact dynamics draw nothing
    return many_rounds.rounds(fastest, False, problem, multiplier, state, num_steps, every)


#: The rounds by plain XLA, on any device; see `many_rounds`.
xla_rounds = partial(run, Tilts)


def fastest(
    num_steps: int, every: int, landscape: tuple[Problem, Any], phi: Array, log_p: Array
) -> tuple[Array, DensityInfo]:
    """The rounds on the chip of a GPU, where a density fits there, and by plain XLA everywhere else."""
    if _pallas.available() and on_chip.fits(log_p.shape[1], phi.shape[1], log_p.dtype):
        return on_chip.run(num_steps, every, landscape, phi, log_p)
    return xla_rounds(num_steps, every, landscape, phi, log_p)
