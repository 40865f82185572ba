"""What the exact densities predict for the text experiment: the same rewards, temperature and K on a line of word counts.

    P_{t+1}(L) = P_t(L) sum_i phi_i e^{-|L - T_i| / tau} / Z_i(t),    P_0 the lengths that the pretrained model writes    (Eq. 5)

The experiment differs in two ways: its model moves only as far as the training of a round takes it, and its pool keeps the real
texts of the beginning.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from plural_jax import Landscape, density
from plural_jax.process import run


def predict(
    share: np.ndarray, phi: np.ndarray, targets: np.ndarray, temperature: float, pool_size: float | None, num_steps: int
) -> np.ndarray:
    """Shares of word counts by round, from those of the pretrained model.

    Args:
        share: of texts with 0, 1, ... words before the first round, [l + 1].
        phi: weights of the preferences, [m].
        targets: T, [m], in words.
        temperature: tau, in words.
        pool_size: K; None: the large-K limit.
        num_steps: T.

    Returns:
        [T + 1, l + 1], rounds 0 to T.

    Example:
        >>> import numpy as np
        >>> found = predict(np.full(9, 1 / 9), np.array([0.5, 0.5]), np.array([2.0, 6.0]), 0.5, None, 20)
        >>> [f"{p:.2f}" for p in found[-1]]
        ['0.00', '0.00', '0.50', '0.00', '0.00', '0.00', '0.50', '0.00', '0.00']
    """
    share = np.asarray(share, np.float64) / np.sum(share)
    there = np.flatnonzero(share)
    rewards = -np.abs(there[None] - np.asarray(targets, np.float64)[:, None])
    land = Landscape(rewards=jnp.asarray(rewards, jnp.result_type(float)))
    process = density.finite_pool(
        land, phi, pool_size=np.inf if pool_size is None else float(pool_size), temperature=temperature
    )
    first = jnp.log(jnp.asarray(share[there], jnp.result_type(float)))
    _, trace = run(process, process.init(first), num_steps, save="density")
    found = np.zeros((num_steps + 1, len(share)))
    found[0] = share
    found[1:, there] = np.exp(np.asarray(trace.log_p, np.float64))
    return found
