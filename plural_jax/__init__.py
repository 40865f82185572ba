"""Simulate a generative model retrained, round after round, on its own samples curated by several preferences at once."""

from typing import TYPE_CHECKING, Any

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
    "figures",
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

if TYPE_CHECKING:
    from plural_jax import figures
else:

    def __getattr__(name: str) -> Any:
        if name != "figures":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # With the first use: matplotlib takes a second to import, and most programs draw nothing.
        import importlib

        return importlib.import_module("plural_jax.figures")
