"""Simulate a generative model retrained, round after round, on its own samples curated by several preferences at once."""

from typing import TYPE_CHECKING, Any

from plural_jax import curation, data, density, hosts, progress, retraining, rewards, theory
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
    from plural_jax import figures, metrics, models
else:

    def __getattr__(name: str) -> Any:
        # With the first use: matplotlib, and flax below the models, take a third of a second to a second to import.
        if name not in ("figures", "metrics", "models"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return importlib.import_module(f"plural_jax.{name}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
