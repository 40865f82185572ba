"""The fewest exponentials that make 1/S: the nodes of a finite pool's integral, three times fewer than a trapezoid rule's.

The choice among K candidates is `E[K A / S]` with a sum S of K numbers between the smallest A and 1. Whatever replaces 1/S to a
relative error on that interval replaces H to the same error, for every density and every K at once:

    1/S = sum_j w_j exp(-t_j S)  up to 3e-8,    exp(-length) <= S <= 1.

With k positive terms the best error falls like `exp(-pi^2 k / log(8 R))`, where R is the ratio of the interval's ends (Braess and
Hackbusch 2005). A trapezoid rule in log t has the same rate, but on the left, where its integrand falls like t alone, it spends
`log(1 / error)` e-folds on a tail that the end weights of the best sum take along.

A best sum meets 1/S in 2 k points. They are known well enough beforehand: like Zolotarev's points they are equidistant in the
argument of Jacobi's dn, dense in log S at both ends and even between them. That leaves 2 k equations for as many logarithms,
which Newton's method solves from a good start: for a narrow interval the rule of Gauss and Laguerre, which meets 1/S in one
point 2 k times, and then the sum with a term less, whose ends keep their shape while a term is put in their middle.

Float32 only: at 1e-12 the equations are nearly dependent in float64, which is all that NumPy solves in.
"""

from __future__ import annotations

from functools import cache

import numpy as np

#: Largest relative error: half a rounding of float32.
_ERROR = 3e-8
#: Number of terms and length of the interval of the first sum.
_FIRST = 4, 0.4
#: Beyond these the terms would not share one shift (see `quadrature`), and the saving is small.
_MOST = 64
#: How far one more term reaches, in its distance from the next.
_REACHES = 1.05, 1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3


def shortest_sum(length: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Logarithms of t and w of the shortest sum that is 1/S for `exp(-length) <= S <= 1`, [k] each; None if that is too long.

    Args:
        length: logarithm of the ratio of the interval's ends, at least 0.
    """
    for terms in range(_FIRST[0], _MOST + 1):
        widest = _widest(terms)
        if widest is None:
            break
        covered, x = widest
        if covered >= length:
            log_t, log_w = np.split(x, 2)
            # From an interval around 1 to one that ends there.
            return log_t + covered / 2, log_w + covered / 2
    return None


@cache
def _widest(terms: int) -> tuple[float, np.ndarray] | None:
    """Length of the widest interval around S = 1 that so many terms are seen to cover, and log t and log w, [2 k].

    Its ends are `exp(-length / 2)` and `exp(length / 2)`. None if Newton's method finds no such sum.
    """
    if terms == _FIRST[0]:
        length = _FIRST[1]
        t, w = np.polynomial.laguerre.laggauss(terms)
        found = _solve(np.concatenate([np.log(t), np.log(w) + t]), length)
        return None if found is None else (length, found)
    before = _widest(terms - 1)
    if before is None:
        return None
    length, shorter = before
    start, step = _with_another(shorter)
    for reach in _REACHES:
        found = _solve(start, length + reach * step)
        if found is not None and _largest_error(found, length + reach * step) <= _ERROR:
            return length + reach * step, found
    return None


def _with_another(x: np.ndarray) -> tuple[np.ndarray, float]:
    """A start with one term more, put in the middle, where terms are evenly spaced; and their distance."""
    log_t, log_w = np.split(x, 2)
    # A weight in units of its t, which changes slowly from term to term.
    relative = log_w - log_t
    middle = len(log_t) // 2
    step = log_t[middle] - log_t[middle - 1]
    new = [(log_t[middle - 1] + log_t[middle]) / 2]
    log_t = np.concatenate([log_t[:middle] - step / 2, new, log_t[middle:] + step / 2])
    relative = np.insert(relative, middle, (relative[middle - 1] + relative[middle]) / 2)
    return np.concatenate([log_t, log_t + relative]), float(step)


def _points(length: float, count: int) -> np.ndarray:
    """An even number of points S around 1 where a sum shall be 1/S."""
    from scipy.special import ellipj, ellipkm1  # the only place that needs it

    complement = np.exp(-2 * length)
    u = ellipkm1(complement) * (np.arange(count // 2) + 0.5) / count
    # The lower half is one over the upper; computed as such, because dn near its minimum loses digits.
    upper = np.log(ellipj(u, 1 - complement)[2]) + length / 2
    return np.exp(np.concatenate([upper, -upper[::-1]]))


def _deviation(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S sum_j w_j exp(-t_j S) - 1 in some points, [n], and its derivatives with respect to log t and log w, [n, 2 k]."""
    log_t, log_w = np.split(x, 2)
    ts = np.exp(log_t) * s[:, None]
    terms = np.exp(log_w) * s[:, None] * np.exp(-ts)
    return terms.sum(axis=1) - 1, np.concatenate([-terms * ts, terms], axis=1)


def _largest_error(x: np.ndarray, length: float) -> float:
    """Between the points as well."""
    s = np.exp(np.linspace(-length / 2, length / 2, 20 * len(x) + 1))
    return float(np.abs(_deviation(x, s)[0]).max())


def _solve(x: np.ndarray, length: float) -> np.ndarray | None:
    """The sum that meets 1/S in all points, by Newton's method, or None if it does not get there."""
    s = _points(length, len(x))
    for _ in range(40):
        deviation, derivatives = _deviation(x, s)
        size = np.abs(deviation).max()
        if not np.isfinite(size):
            return None
        if size < 1e-3 * _ERROR:
            return x
        scale = np.linalg.norm(derivatives, axis=0)
        step = np.linalg.lstsq(derivatives / scale, -deviation, rcond=1e-15)[0] / scale
        # No node or weight by more than a factor of 1.6 at once: from a poor start a full step overshoots.
        x = x + step * min(1.0, 0.5 / np.abs(step).max())
    return None
