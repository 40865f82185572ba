"""E9 on images: the baselines of a flow on CIFAR-10 beside two balanced preferences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from plural_jax.experiments import e3, image_arms, images
from plural_jax.experiments.base import Experiment
from plural_jax.process import Meter


@dataclass(frozen=True)
class Config(images.Config):
    """Baselines of a flow retrained on its own curated images (E9)."""

    arms: tuple[str, ...] = ("two", *image_arms.BASELINES)
    """Which baselines (or arms of Table 1) to run, by name."""


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """All arms, one after another; see `e3.run`."""
    return e3.run_named("e9-images", config, store, progress)


EXPERIMENT = Experiment(
    "e9-images", "a flow on CIFAR-10 under the baselines of E9, real images mixed in", Config, run, e3.tables, e3.plot
)
