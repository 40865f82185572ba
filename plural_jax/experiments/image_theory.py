"""What the exact densities predict for the image experiments: the same phi, K and gamma on what the pretrained flow generates.

Two landscapes, both from the candidates before the first round:

    classes   ten atoms, one for each predicted class c, with mass p_0(c) and rewards gamma E[P_i | predicted c]: the classifier's
              confusion is the leakage between basins
    samples   one atom for each candidate, with its own rewards: within a class, images that the classifier is surer of win

Both are `finite_pool` with the experiment's K. The model that is refit in the experiment differs from both: it moves only as far
as its training of a round takes it, and it generates images that were not among the first candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from plural_jax import Landscape, density
from plural_jax.process import run


class Prediction(NamedTuple):
    """Share of each class by round, rounds 0 to T: [T + 1, classes]."""

    classes: np.ndarray
    samples: np.ndarray


def predict(
    probabilities: np.ndarray,
    preferred: Sequence[int],
    phi: np.ndarray,
    gamma: float,
    temperature: float,
    pool_size: float,
    num_steps: int,
) -> Prediction:
    """Shares of the predicted classes by round, from the probabilities of the candidates before the first.

    Args:
        probabilities: the classifier's, of n candidates, [n, c].
        preferred: the class of each preference, m numbers.
        phi: weights of the preferences, [m].
        gamma, temperature, pool_size: of the experiment.
        num_steps: T.

    Returns:
        Shares on the landscape of classes and on that of samples.

    Example:
        >>> import numpy as np
        >>> sure = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
        >>> found = predict(sure, [0, 1], np.array([1.0, 0.0]), gamma=5.0, temperature=1.0, pool_size=4, num_steps=8)
        >>> bool(found.classes[-1, 0] > 0.999)
        True
    """
    c = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    members = np.eye(c)[predicted]  # [n, c]
    share = members.mean(0)
    present = share > 0
    wanted = list(preferred)
    confusion = (members.T @ probabilities)[present] / members.sum(0)[present, None]  # [present, c]
    by_class = np.zeros((num_steps + 1, c))
    by_class[:, present] = _shares(
        confusion[:, wanted].T * gamma, share[present], phi, temperature, pool_size, num_steps
    )
    uniform = np.full(len(probabilities), 1 / len(probabilities))
    atoms = _shares(probabilities[:, wanted].T * gamma, uniform, phi, temperature, pool_size, num_steps)
    return Prediction(by_class, atoms @ members)


def _shares(
    table: np.ndarray, start: np.ndarray, phi: np.ndarray, temperature: float, pool_size: float, num_steps: int
) -> np.ndarray:
    """Masses of atoms by round, [T + 1, n]."""
    land = Landscape(rewards=jnp.asarray(table, jnp.result_type(float)))
    process = density.finite_pool(land, phi, pool_size=float(pool_size), temperature=temperature)
    first = jnp.log(jnp.asarray(start / start.sum(), jnp.result_type(float)))
    _, trace = run(process, process.init(first), num_steps, save="density")
    return np.concatenate([start[None], np.exp(np.asarray(trace.log_p, np.float64))])
