"""When a minority survives: two plateaus, N curated samples in each round, as an exact Markov chain.

Two plateaus hold all mass, a and 1 - a; the rewards are constant on each (Prop. 4), and preference i likes the other plateau by
its leakage kappa_i = exp(-Delta_i / tau). Then the count j of plateau 1 among N samples is all that a round needs to know:

    j_{t+1} ~ Binomial(N, q(j_t / N)),    q(a) = P(a curated item lies in plateau 1),

and both 0 and N are absorbing. Items inside a plateau are equally good, so it does not matter which of them are drawn.

Everything here runs on the host in NumPy's float64, whatever JAX computes in: the answers are few numbers, asked once, and
their binomial coefficients need the digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from plural_jax import _validate
from plural_jax._typing import ArrayLike

#: Binomial probabilities this far out sum to less than exp(-_TAIL) = 1e-17, by Bernstein's inequality.
_TAIL = 39.0
#: Rows of a transition matrix that are cut to one range of counts.
_PIECE = 64


class LossTime(NamedTuple):
    """When one of two plateaus is lost for good, and which.

    Attributes:
        mean: mean number of rounds until one of them has no sample left.
        first_lost: probability that it is the first plateau.
    """

    mean: float
    first_lost: float


def curated_share(
    mass: ArrayLike, phi: float, *, leakage: ArrayLike = 0.0, pool_size: float = math.inf
) -> np.ndarray | np.floating:
    """Probability q(a) that a curated item lies in the first of two plateaus, which holds the mass a.

    `q(a) = phi a / (a + kappa_1 (1-a)) + (1-phi) kappa_2 a / (kappa_2 a + 1 - a)` for K = infinity (Eq. 5), and for
    K candidates `q(a) = E_J[phi J / (J + kappa_1 (K-J)) + (1-phi) kappa_2 J / (kappa_2 J + K-J)]`, `J ~ Binomial(K, a)` (Lemma 1)

    Args:
        mass: a, any shape, in [0, 1].
        phi: weight of the first preference, in [0, 1].
        leakage: kappa_1 and kappa_2, or one number for both, in [0, 1]; 0 where a preference would never take the other plateau
            while it has a choice.
        pool_size: K, a whole number of at least 2, or infinity.

    Returns:
        q, float64 of the shape of `mass`.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> print(f"{curated_share(0.5, 0.1):.3f} {curated_share(0.5, 0.1, pool_size=2):.3f}")
        0.100 0.300
    """
    a = _unit(mass, "mass")
    weight, (first, second), size = _check(phi, leakage, pool_size)
    if math.isinf(size):
        return _choice(a, 1 - a, weight, first, second)[()]
    count = np.arange(int(size) + 1)
    taken = _choice(count, size - count, weight, first, second)
    shares = np.empty(a.size)
    # In pieces, so that many masses and a large K do not need all their products at once.
    step = max(1, 2**22 // len(count))
    for i in range(0, a.size, step):
        piece = slice(i, i + step)
        shares[piece] = _Rows(int(size), a.ravel()[piece]).average(taken)
    return np.where(a == 0, 0.0, shares.reshape(a.shape))[()]


def extinction_probability(
    set_size: int,
    phi: float,
    *,
    num_steps: int = 100,
    initial: float | None = None,
    leakage: ArrayLike = 0.0,
    pool_size: float = math.inf,
) -> np.ndarray:
    """Probability that the first of two plateaus has died out, by round.

    `P(j_t = 0)`, `j_{t+1} ~ Binomial(N, q(j_t / N))`, from the exact start `j_1 ~ Binomial(N, q(a_0))`. Without leakage and with
    K = infinity it is `1 - (1 - (1-phi)^N)^t` up to the event that the other plateau dies out first.

    Args:
        set_size: N, the number of samples that each round keeps, a whole number of at least 1.
        phi: weight of the first preference, in [0, 1].
        num_steps: rounds T.
        initial: mass a_0 of the first plateau before the first round, in [0, 1]; phi by default.
        leakage, pool_size: as for `curated_share`.

    Returns:
        The probability after rounds 1..T, float64 [T], never decreasing. Absolute error about 1e-15 T.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> extinct = extinction_probability(50, phi=0.1, num_steps=100)
        >>> print(f"{extinct[0]:.4f} {extinct[-1]:.4f}")
        0.0052 0.4035

    Source: the Wright-Fisher chain with frequency-dependent selection.
    """
    n = _validate.positive_integer(set_size, "set_size")
    steps = _validate.positive_integer(num_steps, "num_steps")
    weight, kappa, size = _check(phi, leakage, pool_size)
    rounds = _extinct_by_round(n, weight, _start(initial, weight), kappa, size)
    return np.array([next(rounds) for _ in range(steps)])


def required_set_size(
    phi: float,
    *,
    num_steps: int = 100,
    survival: float = 0.95,
    initial: float | None = None,
    leakage: ArrayLike = 0.0,
    pool_size: float = math.inf,
    largest: int = 10_000,
) -> float:
    """How many samples each round must keep so that the first of two plateaus survives.

    The smallest N with `P(j_T > 0) >= survival`. Without leakage and with K = infinity each round loses the plateau with
    probability (1-phi)^N, so that `N = log(1 - survival^(1/T)) / log(1-phi)`, rounded up.

    Args:
        phi: weight of the first preference, in (0, 1).
        num_steps: rounds T.
        survival: the probability asked for, in (0, 1).
        initial, leakage, pool_size: as for `extinction_probability`.
        largest: the search ends here. Large sets take long: 10,000 samples through 100 rounds a few seconds.

    Returns:
        N, a whole number, or infinity where more than `largest` would be needed. The latter is so for every N that is not
        exponential in T where even the exact law loses the plateau: with `phi K < 1`, or `phi < kappa_1` and no leakage back. The
        search takes it that survival does not fall as N grows.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> required_set_size(0.1, num_steps=100, survival=0.95)
        72.0
        >>> required_set_size(0.1, num_steps=100, survival=0.95, leakage=0.05)
        215.0
    """
    largest = _validate.positive_integer(largest, "largest")
    steps = _validate.positive_integer(num_steps, "num_steps")
    if not 0 < survival < 1:
        raise ValueError(f"survival must lie between 0 and 1, both excluded, got {survival}.")
    weight, kappa, size = _check(phi, leakage, pool_size)
    if not 0 < weight < 1:
        raise ValueError(f"phi must lie between 0 and 1, both excluded, got {phi}.")
    allowed = math.log(-math.expm1(math.log(survival)))

    def log_extinct(n: int) -> float:
        by_round = extinction_probability(n, weight, num_steps=steps, initial=initial, leakage=kappa, pool_size=size)
        return math.log(max(float(by_round[-1]), 1e-300))

    low, at_low = 0, 0.0  # no sample, no survivor
    high = min(largest, max(1, math.ceil(math.log(-math.expm1(math.log(survival) / steps)) / math.log1p(-weight))))
    at_high = log_extinct(high)
    while at_high > allowed:
        if high == largest:
            return math.inf
        low, at_low, high = high, at_high, min(2 * high, largest)
        at_high = log_extinct(high)
    # The logarithm is close to linear in N, so that a secant is almost there; where it is not, halving gets on.
    halve = False
    while high - low > 1:
        middle = (low + high) // 2
        if not halve:
            middle = low + round((high - low) * (at_low - allowed) / (at_low - at_high))
            middle = min(max(middle, low + 1), high - 1)
        width, value = high - low, log_extinct(middle)
        if value > allowed:
            low, at_low = middle, value
        else:
            high, at_high = middle, value
        halve = not halve and high - low > width // 2
    return float(high)


def time_to_loss(
    set_size: int,
    phi: float,
    *,
    initial: float | None = None,
    leakage: ArrayLike = 0.0,
    pool_size: float = math.inf,
) -> LossTime:
    """How long two plateaus coexist, on average, and which of them is lost.

    `E(j) = 1 + sum_k P(j, k) E(k)` over counts with both plateaus. Without leakage and with K = infinity:
    `1 / ((1-phi)^N + phi^N)` rounds.

    Solved by elimination without any subtraction, so that a mean time of 1e40 rounds has as many digits as one of 10.

    Args:
        set_size: N, the number of samples that each round keeps, a whole number of at least 1. The work grows as N^3: about a
            second for 1,000.
        phi: weight of the first preference, in [0, 1].
        initial: mass of the first plateau before the first round, in [0, 1]; phi by default.
        leakage, pool_size: as for `curated_share`.

    Returns:
        A `LossTime`.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> time = time_to_loss(50, phi=0.1)
        >>> print(f"{time.mean:.1f} {time.first_lost:.3f}")
        194.0 1.000

    Source: Grassmann, Taksar and Heyman (1985) for the elimination.
    """
    n = _validate.positive_integer(set_size, "set_size")
    weight, kappa, size = _check(phi, leakage, pool_size)
    masses = np.append(np.arange(n + 1) / n, _start(initial, weight))
    ((_, p),) = _Rows(n, _share(masses, weight, kappa, size), cut=False).pieces
    # Column n, the loss of the other plateau, goes to the front, so that counts are eliminated from the last one on.
    to = np.concatenate([p[:, [n]], p[:, :n]], axis=1)
    time = np.ones(n + 2)
    for j in range(n - 1, 0, -1):
        ahead = to[j, : j + 1]
        gone = (
            to[1:, j + 1] / ahead.sum()
        )  # into j, and out of it to somewhere else; from j + 1 on no row is read again
        to[1:j, : j + 1] += np.outer(gone[: j - 1], ahead)
        to[n + 1, : j + 1] += gone[n] * ahead
        time[1:j] += gone[: j - 1] * time[j]
        time[n + 1] += gone[n] * time[j]
    return LossTime(mean=float(time[n + 1]), first_lost=min(float(to[n + 1, 1]), 1.0))


def _extinct_by_round(
    n: int, phi: float, start: float, kappa: tuple[float, float], pool_size: float
) -> Iterator[float]:
    """The probability that plateau 1 has died out, round after round."""
    rows = _Rows(n, _share(np.arange(n + 1) / n, phi, kappa, pool_size))
    first = _Rows(n, _share(np.array([start]), phi, kappa, pool_size))
    # Backward in time: the probability from every count, which the start averages over its first round.
    extinct = np.zeros(n + 1)
    extinct[0] = 1.0
    while True:
        yield float(first.average(extinct)[0])
        extinct = rows.average(extinct)


def _share(masses: np.ndarray, phi: float, kappa: tuple[float, float], pool_size: float) -> np.ndarray:
    return np.asarray(curated_share(masses, phi, leakage=kappa, pool_size=pool_size))


def _start(initial: float | None, phi: float) -> float:
    return phi if initial is None else float(_unit(initial, "initial", scalar=True))


class _Rows:
    """Binomial(n, q) for many q, cut where the tails are below 1e-17.

    Rows are kept in pieces, each over one range of counts, so that an average is a few plain matrix products; with rows in
    the order of q the ranges are short.

    Attributes:
        pieces: (first count, probabilities [rows of the piece, counts of the piece]).
    """

    def __init__(self, n: int, q: np.ndarray, cut: bool = True) -> None:
        log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, n + 1)))])
        log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
        # The least number stands for 0, so that 0 log 0 is 0.
        tiny = np.finfo(float).tiny
        log_q, log_rest = np.log(np.maximum(q, tiny)), np.log(np.maximum(1 - q, tiny))
        reach = _TAIL / 3 + np.sqrt((_TAIL / 3) ** 2 + 2 * _TAIL * n * q * (1 - q)) if cut else np.full(len(q), n)
        low, high = np.floor(np.maximum(n * q - reach, 0)), np.ceil(np.minimum(n * q + reach, n))
        self.pieces = []
        for i in range(0, len(q), _PIECE if cut else len(q)):
            rows = slice(i, i + _PIECE) if cut else slice(None)
            k = np.arange(int(low[rows].min()), int(high[rows].max()) + 1)
            p = np.exp(log_choose[k] + k * log_q[rows, None] + (n - k) * log_rest[rows, None])
            self.pieces.append((k[0], p / p.sum(axis=1, keepdims=True)))

    def average(self, f: np.ndarray) -> np.ndarray:
        """E[f(count)] for every row; f [n + 1]."""
        return np.concatenate([p @ f[first : first + p.shape[1]] for first, p in self.pieces])


def _choice(first: Any, second: Any, phi: float, kappa_1: float, kappa_2: float) -> np.ndarray:
    """Probability of plateau 1, where candidates are `first` and `second` of the two; an empty plateau is never chosen."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    neither = (first == 0) | (second == 0)
    one = np.where(neither, 1.0, first + kappa_1 * second)
    two = np.where(neither, 1.0, kappa_2 * first + second)
    mixed = phi * first / one + (1 - phi) * kappa_2 * first / two
    return np.where(neither, (first > 0).astype(float), mixed)


def _unit(value: ArrayLike, name: str, scalar: bool = False) -> np.ndarray:
    array = _validate.real_array(value, name)
    if array is None:
        raise ValueError(f"{name} is traced; this function runs on the host and needs its value.")
    if scalar and array.ndim != 0:
        raise ValueError(f"{name} must be a single number, got shape {array.shape}.")
    array = array.astype(float)
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name} must lie between 0 and 1, got {_validate.shown(array)}.")
    return array


def _check(phi: ArrayLike, leakage: ArrayLike, pool_size: ArrayLike) -> tuple[float, tuple[float, float], float]:
    """Phi, both leakages and K as Python numbers."""
    weight = float(_unit(phi, "phi", scalar=True))
    kappa = _unit(leakage, "leakage")
    if kappa.shape not in ((), (2,)):
        raise ValueError(f"leakage must be one number or two, (kappa_1, kappa_2), got shape {kappa.shape}.")
    first, second = np.broadcast_to(kappa, (2,)).tolist()
    size = _validate.real_array(pool_size, "pool_size")
    if size is None or size.ndim != 0:
        raise ValueError(f"pool_size must be a single number that is not traced, got shape {np.shape(pool_size)}.")
    if not (size >= 2 and (np.isinf(size) or size == np.floor(size))):
        raise ValueError(f"pool_size must be a whole number of at least 2, or infinity, got {size}.")
    return weight, (first, second), float(size)
