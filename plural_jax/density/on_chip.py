"""Many large-K rounds on a GPU, the density of a configuration never leaving the chip.

The rounds of `tilt_blocks` again, with the same mathematics and the same bounds: blocks of linear rounds, folds of binary
exponents, a round in log space where not one linear round fits (see `linear_blocks`). Plain XLA writes q to device memory
after every round and reads it back twice. Here one program, a thread block in CUDA's words, takes one configuration through
all rounds. It reads the start once, and writes the final density and a row of numbers for each save; in between, q, the
exponents E and the tilts e_i stay in registers. Each configuration decides alone how long its blocks are.

Layout. A multiprocessor has 65,536 registers of 32 bits, and a thread at most 255 of them. A cell needs m + 2 (q, E and m
tilts), twice as many in float64. So a thread holds up to `_VALUES` = 128 such values, 32 cells at m = 2 in float32; the rest is
for temporaries, and 2 x 128 threads x 255 registers, two programs of 4 warps, are on a multiprocessor at a time. 4,096 cells at
m = 2 are 4 warps; fewer cells take fewer, and one warp alone needs no barrier. A program of 8 warps has a multiprocessor to
itself, and there a thread may hold `_MOST_VALUES` = 192 values: up to 12,288 cells at m = 2. Larger densities do not fit.

A density is a few vectors (4 to 7 at m = 2) of a power of two of cells, which is what the compiler asks for: n is then rounded
up by a quarter at most, and sums begin as chains of multiply-adds over the vectors. More vectors would take long to compile,
because that time grows with the square of the number of loads.

Roofline, m = 2, float32. A multiprocessor issues 128 FP32 operations a cycle, and a cell needs 2m + 1 = 5 in a round: m for W,
one for q W, m for the next sums, which are taken from the new q at once, so that a round is one pass and one reduction. 4,096
cells are 160 cycles. XLA's compiler for Hopper makes of a round 253 instructions for the 32 cells of a thread, without spills,
and so 253 cycles for a program alone. Then follows what every round waits for, in cycles, as estimated:

    sums between lanes: five shuffles, one after another        140
    sums between warps: shared memory, two barriers             130
    u_i = phi_i / z_i, 1 / min z_i, the two bounds              100

Preferences go through the sums in pairs (`over_cells`), or each would wait for its own. Two programs on a multiprocessor fill
each other's gaps: 2 x 160 useful cycles of about 253 + 370, half of the FP32 rate. One alone (fewer configurations than
multiprocessors) reaches a quarter. A fold, every dozen rounds, adds a twentieth. On an H200 a round took 716 cycles where this
says 311, a quarter of the FP32 rate. A summary costs as much as five rounds there: it reads m + 1 numbers for each cell, which
the programs of a landscape share in the caches, and sums 3m + 2 rows.

The kernel is Pallas, lowered by Triton, where arrays that fit are registers without being told so; see `plural_jax._pallas`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax.density.core import DensityInfo, Problem
from plural_jax.density.linear_blocks_masses import Format
from plural_jax.density.linear_blocks_summary import unpack
from plural_jax.density.on_chip_vectors import Fma, Vectors, fused, log_sum, over_cells, plain, unzip

_LOG2 = float(np.log(2.0))
#: A variance from raw moments may be this many times smaller than the second moment; below, it is summed anew.
_MAX_CANCELLATION = 16.0
#: Values of 32 bits that a thread holds where it can be helped, and where it cannot.
_VALUES, _MOST_VALUES = 128, 192
_MOST_WARPS, _LANES = 8, 32
#: Vectors times preferences, which decide how long compiling takes.
_MOST_LOADS = 14
#: Preferences that fit in the bits of an integer, and whose code compiles in reasonable time.
_MOST_PREFERENCES = 10


class Layout(NamedTuple):
    """Where cells are.

    Attributes:
        num_warps: of 32 threads, for each configuration.
        cells: in a vector, a power of two and a multiple of the threads.
        vectors: of a density; the last may have cells without mass.
    """

    num_warps: int
    cells: int
    vectors: int

    @classmethod
    def of(cls, num_cells: int, num_preferences: int, dtype: Any) -> Layout:
        """The fewest warps that leave room in the registers of a thread, or the most there are."""
        warps = 1
        while True:
            layout = cls._with(warps, num_cells, num_preferences)
            if warps == _MOST_WARPS or layout.values(num_preferences, dtype) <= _VALUES:
                return layout
            warps *= 2

    @classmethod
    def _with(cls, warps: int, num_cells: int, num_preferences: int) -> Layout:
        fewest = max(_LANES * warps, -(-num_cells // max(_MOST_LOADS // num_preferences, 1)))
        cells = 1 << (fewest - 1).bit_length()
        return cls(warps, cells, -(-num_cells // cells))

    def values(self, num_preferences: int, dtype: Any) -> int:
        """Registers in which a thread keeps its cells."""
        words = jnp.dtype(dtype).itemsize // 4
        return self.cells * self.vectors // (_LANES * self.num_warps) * (num_preferences + 2) * words


def fits(num_cells: int, num_preferences: int, dtype: Any) -> bool:
    """Whether a density of so many cells stays in the registers of one multiprocessor."""
    values = Layout.of(num_cells, num_preferences, dtype).values(num_preferences, dtype)
    return num_preferences <= _MOST_PREFERENCES and values <= _MOST_VALUES


def run(
    num_steps: int, every: int, landscape: tuple[Problem, Any], phi: Array, log_p: Array, *, interpret: bool = False
) -> tuple[Array, DensityInfo]:
    """`num_steps` rounds of G landscapes with C configurations each; see `many_rounds`.

    Args:
        num_steps, every, landscape, phi, log_p: as there.
        interpret: run the same program by XLA, slowly, on any device.
    """
    from jax.experimental import pallas as pl  # here, because importing it takes a while and few need it
    from jax.experimental.pallas import triton

    problem, _ = landscape
    (num_landscapes, m, num_configurations), n, dtype = phi.shape, log_p.shape[1], log_p.dtype
    layout = Layout.of(n, m, dtype)
    size = layout.cells * layout.vectors

    # r_i* is over cells with mass in some configuration, as in `linear_blocks`, so that no tilt there is above one.
    live = (log_p > -jnp.inf).any(axis=2)[:, None]
    best = jnp.max(jnp.where(live, problem.rewards, -jnp.inf), axis=2, keepdims=True)
    shifted = jnp.where(live, problem.rewards - best, 0.0)
    temperature = problem.temperature[:, None, None]
    tilt = jnp.where(live, jnp.exp(shifted / temperature), 0.0)
    sets = jnp.concatenate([problem.basins, problem.outside[:, None]], axis=1).astype(jnp.int32)
    member = jnp.sum(sets << np.arange(m + 1, dtype=np.int32)[:, None], axis=1, dtype=jnp.int32)

    def to_size(x: Array, value: float = 0) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - n)], constant_values=value)

    def spec(shape: tuple[int, ...], own: bool) -> Any:
        """Each program sees the part of its landscape, or its own."""

        def index(k: Array) -> tuple[Any, ...]:
            here = jax.lax.div(k, np.int32(num_configurations)), jax.lax.rem(k, np.int32(num_configurations))
            return *here[: 1 + own], *[np.int32(0)] * len(shape)

        return pl.BlockSpec((*[None] * (1 + own), *shape), index)

    one_start = log_p.shape[2] == 1
    inputs = [
        (to_size(shifted), False),
        (to_size(tilt), False),
        (to_size(member), False),
        (jnp.concatenate([best, temperature], axis=1)[:, :, 0], False),
        (jnp.swapaxes(phi, 1, 2), True),
        (to_size(log_p[:, :, 0] if one_start else jnp.swapaxes(log_p, 1, 2), -np.inf), not one_start),
    ]
    outputs = (size,), (num_steps // every, 4 * m + 5)
    # Configurations of a landscape one after another, so that those on the chip at a time share its tables.
    final, infos = pl.pallas_call(
        partial(_program, Format.of(dtype), layout, n, num_steps, every, plain if interpret else fused),
        grid=(num_landscapes * num_configurations,),
        in_specs=[spec(x.shape[1 + own :], own) for x, own in inputs],
        out_specs=[spec(shape, True) for shape in outputs],
        out_shape=[jax.ShapeDtypeStruct((num_landscapes, num_configurations, *shape), dtype) for shape in outputs],
        compiler_params=triton.CompilerParams(num_warps=layout.num_warps, num_stages=1),
        interpret=interpret,
        name="large_pool_rounds",
    )(*(x for x, _ in inputs))
    return jnp.swapaxes(final[:, :, :n], 1, 2), unpack(jnp.moveaxis(infos, 1, 3), m)


def _program(form: Format, layout: Layout, num_cells: int, num_steps: int, every: int, fma: Fma, *refs: Any) -> None:
    """All rounds of one configuration: what a thread block does."""
    *tables, final, infos = refs
    of = _Configuration(form, layout, num_cells, fma, *tables)

    def until_save(save: Array, now: _Now) -> _Now:
        now = of.advance(now, (save + 1) * every)
        for row, number in enumerate(of.observe(now)):
            infos[save, row] = number
        return now

    now = of.block(*of.from_log(of.start), jnp.int32(0))
    now = jax.lax.fori_loop(jnp.int32(0), jnp.int32(num_steps // every), until_save, now)
    if num_steps % every:
        now = of.advance(now, jnp.int32(num_steps))
    log_p = of.to_log(now)
    total = log_sum(log_p)
    for cells, x in zip(of.cells, log_p, strict=True):
        final[cells] = x - total


class _Now(NamedTuple):
    """What a program carries from round to round.

    Attributes:
        q, exponent: the density, as in `linear_blocks_masses.Masses`.
        z: its normalizers E_p[e_i], m scalars.
        growth: bound on what the block's rounds so far multiplied a mass by.
        age: rounds since the last fold.
        t: rounds done.
    """

    q: Vectors
    exponent: Vectors
    z: Vectors
    growth: Array
    age: Array
    t: Array


class _Configuration:
    """The numbers of one configuration, and what can be done with its density."""

    def __init__(self, form: Format, layout: Layout, num_cells: int, fma: Fma, *tables: Any) -> None:
        """Read what stays in registers; what only summaries and rounds in log space need stays where it is.

        The tables are references to r_i - r_i* [m, cells]; e_i [m, cells]; integers whose bit i is set in S_i and bit m outside
        all of them [cells]; r_i* and then the temperature [m + 1]; phi [m]; and the start [cells].
        """
        self._shifted, tilt, self._member, constants, phi, log_p = tables
        m = phi.shape[0]
        self.form, self._fma, self.m, self.unit = form, fma, m, 2.0**-form.scale
        self.cells = [slice(k * layout.cells, (k + 1) * layout.cells) for k in range(layout.vectors)]
        self.phi = [phi[i] for i in range(m)]
        *self.best, self.temperature = [constants[i] for i in range(m + 1)]
        self.start = tuple(log_p[x] for x in self.cells)
        live = [x > -jnp.inf for x in self.start]
        # No tilt where this configuration has no mass, although another one may have some.
        self.tilt = [
            tuple(jnp.where(a, tilt[i, x], 0.0) for a, x in zip(live, self.cells, strict=True)) for i in range(m)
        ]
        # Made once, because Triton's lowering refuses a constant that a branch returns.
        self._one, self._none = jnp.ones((), form.dtype), jnp.zeros((), jnp.int32)
        highest = reduce(jnp.maximum, [jnp.where(a, -w, -1.0) for a, w in zip(live, self.w(self.phi), strict=True)])
        w_low = -over_cells(jnp.max, [highest])[0]
        self._longest = ((form.scale - 1) * _LOG2 / -jnp.log(jnp.minimum(w_low, 0.5))).astype(jnp.int32)
        coarse = float(np.ldexp(16.0, form.mantissa + 1))  # what is smaller by this factor does not change a sum
        self._false_mass = num_cells * 2.0 ** (1 - form.depth) * coarse
        self._underflow = 2.0**-form.depth * coarse / w_low

    def _sum(self, a: Iterable[Array], b: Iterable[Array]) -> Array:
        """Sum of the products of pairs."""
        total = None
        for x, y in zip(a, b, strict=True):
            total = self._fma(x, y, total)
        assert total is not None
        return total

    # --- rounds -------------------------------------------------------------------------------------------------------

    def w(self, weights: Sequence[Array]) -> Vectors:
        """Sum_i u_i e_i(x)."""
        return tuple(self._sum(tilts, weights) for tilts in zip(*self.tilt, strict=True))

    def weights(self, z: Vectors) -> list[Array]:
        """u_i = phi_i / z_i."""
        return [phi / x for phi, x in zip(self.phi, z, strict=True)]

    def block(self, q: Vectors, exponent: Vectors, t: Array) -> _Now:
        """The first state of a block."""
        return _Now(q, exponent, self._normalizers(q), self._one, self._none, t)

    def _normalizers(self, q: Vectors) -> Vectors:
        return tuple(x * self.unit for x in over_cells(jnp.sum, [self._sum(tilt, q) for tilt in self.tilt]))

    def _trusted(self, growth: Array, z_min: Array) -> Array:
        return (growth * self._false_mass <= z_min) & (self._underflow <= z_min)

    def advance(self, now: _Now, end: Array) -> _Now:
        """Rounds until there are `end` of them."""

        def may_go_on(c: _Now) -> Array:
            z_min = reduce(jnp.minimum, c.z)
            return (c.t < end) & (c.age < self._longest) & self._trusted(c.growth / z_min, z_min)

        def some_rounds(c: _Now) -> _Now:
            c = jax.lax.cond(may_go_on(c), lambda c: c, lambda c: self.block(*self._fold(c), c.t), c)
            c = jax.lax.while_loop(may_go_on, self._linear_round, c)
            return jax.lax.cond(c.age == 0, self._log_round, lambda c: c, c)

        return jax.lax.while_loop(lambda c: c.t < end, some_rounds, now)

    def _linear_round(self, c: _Now) -> _Now:
        q = tuple(x * w for x, w in zip(c.q, self.w(self.weights(c.z)), strict=True))
        growth = c.growth / reduce(jnp.minimum, c.z)
        return c._replace(q=q, z=self._normalizers(q), growth=growth, age=c.age + 1, t=c.t + 1)

    def _log_round(self, c: _Now) -> _Now:
        log_p = self.to_log(c)
        new = [x + w for x, w in zip(log_p, self._log_w(self._log_z(log_p)), strict=True)]
        total = log_sum(new)
        return self.block(*self.from_log([x - total for x in new]), c.t + 1)

    # --- log space ----------------------------------------------------------------------------------------------------

    def from_log(self, log_p: Sequence[Array]) -> tuple[Vectors, Vectors]:
        """The q and the exponents of log-masses."""
        form = self.form

        def one(log_p: Array) -> tuple[Array, Array]:
            live = log_p > -jnp.inf
            finite = jnp.where(live, log_p, 0.0)
            whole = jnp.floor(finite / _LOG2)
            deep = jnp.exp(finite - whole * _LOG2) * 2.0**form.shallowest
            # A mass of 2^-depth is written as a deep one, the same number, since its exponential may be flushed to zero.
            q = jnp.where(whole <= -form.depth, deep, jnp.exp(finite) * 2.0**form.scale)
            return jnp.where(live, q, 0.0), whole.astype(jnp.int32) + form.scale

        return unzip(map(one, log_p))

    def to_log(self, c: _Now) -> list[Array]:
        """Log-masses, not normalized."""

        def one(q: Array, exponent: Array) -> Array:
            log_q = jnp.log(jnp.where(q > 0, q * self.unit, 1.0))
            return jnp.where(q > 0, self._deeper(exponent).astype(q.dtype) * _LOG2 + log_q, -jnp.inf)

        return list(map(one, *self._fold(c)))

    def _fold(self, c: _Now) -> tuple[Vectors, Vectors]:
        """The same masses with exponents brought up to date, as `Format.fold` does it."""
        form = self.form

        def one(q: Array, exponent: Array) -> tuple[Array, Array]:
            bits = form.as_bits(q)
            new = (bits >> form.mantissa) - form.bias + self._deeper(exponent).astype(form.bits)
            field = (jnp.maximum(new, form.shallowest) + form.bias) << form.mantissa
            folded = jax.lax.bitcast_convert_type((bits & ((1 << form.mantissa) - 1)) | field, form.dtype)
            return jnp.where(q > 0, folded, 0.0), jnp.where(q > 0, new, 0).astype(jnp.int32)

        return unzip(map(one, c.q, c.exponent))

    def _deeper(self, exponent: Array) -> Array:
        """E."""
        return jnp.minimum(exponent - self.form.shallowest, 0)

    def _log_tilt(self, i: int) -> list[Array]:
        return [self._shifted[i, x] / self.temperature for x in self.cells]

    def _log_z(self, log_p: list[Array]) -> list[Array]:
        """Log E_p[e_i]."""
        return [log_sum([x + e for x, e in zip(log_p, self._log_tilt(i), strict=True)]) for i in range(self.m)]

    def _log_w(self, log_z: list[Array]) -> list[Array]:
        """Log W, as `core.mix_log` has it."""

        def one(*log_tilt: Array) -> Array:
            log_h = [e - z for e, z in zip(log_tilt, log_z, strict=True)]
            shift = reduce(jnp.maximum, [jnp.where(a > 0, h, -jnp.inf) for a, h in zip(self.phi, log_h, strict=True)])
            return shift + jnp.log(self._sum([jnp.exp(jnp.minimum(h - shift, 60.0)) for h in log_h], self.phi))

        return list(map(one, *map(self._log_tilt, range(self.m))))

    # --- summaries ----------------------------------------------------------------------------------------------------

    def observe(self, c: _Now) -> list[Array]:
        """The numbers of `DensityInfo` in the order of `linear_blocks_summary.unpack`."""
        return jax.lax.cond(self._trusted(c.growth, reduce(jnp.minimum, c.z)), self._fast, self._careful, c)

    def _fast(self, c: _Now) -> list[Array]:
        maxima = self._maxima(self.w(self.weights(c.z)), 0.0)
        return self._numbers(c.q, self.unit, [jnp.log(z) for z in c.z], [jnp.log(x) for x in maxima])

    def _careful(self, c: _Now) -> list[Array]:
        """Without bounds, and without trust in a sum over q."""
        log_p = self.to_log(c)
        log_z = self._log_z(log_p)
        log_w = [jnp.where(x > -jnp.inf, w, -jnp.inf) for x, w in zip(log_p, self._log_w(log_z), strict=True)]
        return self._numbers([jnp.exp(x) for x in log_p], 1.0, log_z, self._maxima(log_w, -jnp.inf))

    def _maxima(self, w: Sequence[Array], nothing: float) -> list[Array]:
        """The highest W, and the highest outside the basins."""
        outside = [jnp.where(self._is_in(self.m, x), y, nothing) for x, y in zip(self.cells, w, strict=True)]
        return over_cells(jnp.max, [reduce(jnp.maximum, w), reduce(jnp.maximum, outside)])

    def _is_in(self, i: int, cells: slice) -> Array:
        return (self._member[cells] & (1 << i)) != 0

    def _numbers(self, masses: Sequence[Array], unit: float, log_z: list[Array], maxima: list[Array]) -> list[Array]:
        """All fields, from masses in some unit, log E_p[e_i], and the logs of the two highest W."""
        m = self.m
        p = [x * unit for x in masses]
        shifted = [[self._shifted[i, x] for x in self.cells] for i in range(m)]
        inside = [
            [jnp.where(self._is_in(i, x), y, 0.0) for x, y in zip(self.cells, p, strict=True)] for i in range(m + 1)
        ]
        logs = [jnp.log(jnp.maximum(x, 2.0**-self.form.depth)) for x in p]  # what is smaller adds nothing
        first = [self._sum(r, p) for r in shifted]
        second = [self._sum([x * x for x in r], p) for r in shifted]
        rows = [*first, *second, *(reduce(jnp.add, x) for x in inside), self._sum(logs, p)]
        *numbers, entropy = over_cells(jnp.sum, rows)
        mean, moment = numbers[:m], numbers[m : 2 * m]
        raw = [b - a * a for a, b in zip(mean, moment, strict=True)]
        keeps = reduce(jnp.logical_and, [v * _MAX_CANCELLATION >= b for v, b in zip(raw, moment, strict=True)])

        def central() -> list[Array]:
            squares = [[jnp.square(self._shifted[i, x] - mean[i]) for x in self.cells] for i in range(m)]
            return [x * unit for x in over_cells(jnp.sum, [self._sum(x, masses) for x in squares])]

        variance = jax.lax.cond(keeps, lambda: raw, central)
        log_z = [z + best / self.temperature for z, best in zip(log_z, self.best, strict=True)]
        mean = [best + x for x, best in zip(mean, self.best, strict=True)]
        objective = self._sum(log_z, self.phi)
        return [*mean, *variance, *log_z, -entropy, *numbers[2 * m :], maxima[1], objective, maxima[0]]
