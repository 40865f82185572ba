"""The arms of the image experiments: who curates (Table 1), and the baselines (E9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from plural_jax import curation

#: Preferences that every arm has, most of them with weight zero, so that all arms share one compiled round.
NUM_PREFERENCES = 5


class Arm(NamedTuple):
    """One way of retraining.

    Attributes:
        title: what a table calls it.
        phi: weights of the preferences.
        policy: of `pj.curation` for these weights; None: each draw has its own active preference, the paper's.
        real: probability that a curated image is replaced by a real one.
        accumulate: whether the flow is fit to everything that was curated so far.
        printed: the row of the paper's Table 1: FID, entropy, KL, feature variance, intra-class variance.
    """

    title: str
    phi: tuple[float, ...]
    policy: Callable[[tuple[float, ...]], Any] | None = None
    real: float = 0.0
    accumulate: bool = False
    printed: tuple[float, ...] | None = None


def _padded(*phi: float) -> tuple[float, ...]:
    return (*phi, *(0.0,) * (NUM_PREFERENCES - len(phi)))


def _equal(count: int) -> tuple[float, ...]:
    return _padded(*(1 / count,) * count)


_TWO = (77.6, 1.098, 1.204, 0.62, 0.72)

#: Table 1 in its order; polarized arms give phi to the second class, so that phi = 0 is the single preference.
TABLE_1: dict[str, Arm] = {
    "two": Arm("two balanced", _equal(2), printed=_TWO),
    "three": Arm("three balanced", _equal(3), printed=(64.2, 1.357, 0.946, 0.68, 0.79)),
    "four": Arm("four balanced", _equal(4), printed=(44.5, 1.670, 0.632, 0.74, 0.86)),
    "five": Arm("five balanced", _equal(5), printed=(35.9, 1.687, 0.616, 0.80, 0.85)),
    "single": Arm("single preference", _padded(1.0), printed=(100.0, 0.032, 2.271, 0.20, 0.05)),
    "phi-0.1": Arm("phi = 0.1", _padded(0.9, 0.1), printed=(90.1, 0.010, 2.293, 0.23, 0.07)),
    "phi-0.2": Arm("phi = 0.2", _padded(0.8, 0.2), printed=(85.3, 0.113, 2.190, 0.29, 0.05)),
    "phi-0.3": Arm("phi = 0.3", _padded(0.7, 0.3), printed=(83.2, 0.036, 2.266, 0.35, 0.16)),
    "phi-0.4": Arm("phi = 0.4", _padded(0.6, 0.4), printed=(80.2, 0.791, 1.512, 0.41, 0.60)),
}

#: E9, all with the two balanced preferences.
BASELINES: dict[str, Arm] = {
    "averaged": Arm("averaged reward", _equal(2), curation.averaged_reward),
    "per-round": Arm("one reward per round", _equal(2), curation.reward_per_round),
    "none": Arm("no curation", _equal(2), lambda phi: curation.no_curation()),
    "greedy": Arm("greedy", _equal(2), curation.greedy),
    "real": Arm("10 % real images", _equal(2), real=0.1),
    "accumulated": Arm("accumulated", _equal(2), accumulate=True),
}

ARMS: dict[str, Arm] = {**TABLE_1, **BASELINES}


def get(name: str) -> Arm:
    """The arm with this name.

    Raises:
        ValueError: there is none.

    Example:
        >>> get("phi-0.1").phi
        (0.9, 0.1, 0.0, 0.0, 0.0)
    """
    if name not in ARMS:
        raise ValueError(f"arms must be among {', '.join(ARMS)}, got {name!r}.")
    return ARMS[name]
