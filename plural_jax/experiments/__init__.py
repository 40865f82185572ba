"""Experiments of the paper and of ours, each a configuration, a run, tables and figures."""

import importlib

from plural_jax import _validate
from plural_jax.experiments import sweep
from plural_jax.experiments.base import Experiment, Run, execute

#: Modules of this package that hold an `EXPERIMENT`, in the order in which they are listed.
_MODULES = (
    "c9", "e1", "e2", "e3", "e4", "e5", "e5_mixtures", "e6", "e6_mixtures", "e7",
    "e8", "e9", "e9_images", "e9_mixtures", "phase", "survival",
)  # fmt: skip
#: Every experiment by the name that the command line uses.
EXPERIMENTS: dict[str, Experiment] = {
    found.name: found for found in (importlib.import_module(f"{__name__}.{name}").EXPERIMENT for name in _MODULES)
}
#: The main job, a command of its own.
SWEEP = sweep.EXPERIMENT

__all__ = ["EXPERIMENTS", "SWEEP", "Experiment", "Run", "execute", "get"]


def get(name: str) -> Experiment:
    """The experiment with this name.

    Raises:
        ValueError: there is none.
    """
    if name not in EXPERIMENTS:
        own = " (it is a command: plural-jax sweep)" if name == SWEEP.name else _validate.nearest(name, EXPERIMENTS)
        raise ValueError(f"unknown experiment {name!r}; choose one of {', '.join(sorted(EXPERIMENTS))}{own}.")
    return EXPERIMENTS[name]
