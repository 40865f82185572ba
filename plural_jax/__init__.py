"""Simulate a generative model retrained, round after round, on its own samples curated by several preferences at once."""

from plural_jax import curation, data, density, hosts, metrics, models, progress, retraining, rewards, theory
from plural_jax.grid import Grid
from plural_jax.landscape import Landscape
from plural_jax.process import Process, run
from plural_jax.sweeps import sweep

__version__ = "0.1.0"
__all__ = [
    "Grid",
    "Landscape",
    "Process",
    "__version__",
    "curation",
    "data",
    "density",
    "hosts",
    "metrics",
    "models",
    "progress",
    "retraining",
    "rewards",
    "run",
    "sweep",
    "theory",
]
