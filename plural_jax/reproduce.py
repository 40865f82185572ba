"""`plural-jax reproduce`: every experiment at one size, one after another, ending in one page.

What is finished is not run again, so that an interrupted reproduction goes on with the same command. What cannot run here, such
as an experiment whose data are missing, is named at the end and does not keep the others from running.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from plural_jax import experiments, report
from plural_jax.experiments.arms import NamedMeter
from plural_jax.process import Meter
from plural_jax.progress import meter

_FEW_SEEDS: dict[str, Any] = {"num_seeds": 8, "num_steps": 25}

#: What differs from an experiment's defaults, by preset. Experiments that are not named run as they are.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "e1": _FEW_SEEDS,
        "e3": {"preset": "tiny", "arms": ("single", "two", "phi-0.1", "five"), "num_steps": 3},
        "e4": {"preset": "tiny", "distance": (5.0, 10.0)},
        "e5": {"spacing": 0.125},
        "e5-mixtures": {**_FEW_SEEDS, "phi": (0.1, 0.3, 0.5)},
        "e6-mixtures": {**_FEW_SEEDS, "pool_size": (2.0, 10.0, 100.0)},
        "e7": {**_FEW_SEEDS, "distance": (1.0, 2.0, 3.0, 4.0, 6.0)},
        "e8": {**_FEW_SEEDS, "distance": (2.0, 4.0, 6.0)},
        "e9": {"num_replicas": 10},
        "e9-images": {"preset": "tiny", "arms": ("two", "averaged", "none", "real"), "num_steps": 3},
        "e9-mixtures": _FEW_SEEDS,
        "phase": {"distance": tuple(0.5 * i for i in range(1, 11)), "phi": (0.1, 0.3, 0.5, 0.7, 0.9)},
        "survival": {"simulated_phi": (0.1,), "num_replicas": 50, "largest": 500},
    },
    "cpu": {},
    "paper": {name: {"preset": "paper"} for name in ("e3", "e4", "e9-images")},
}


@dataclass(frozen=True)
class Reproduce:
    """Run every experiment at one size and make one page of all of them; the same command goes on where it was interrupted."""

    preset: Literal["quick", "cpu", "paper"] = "quick"
    """Sizes: minutes, with made-up images and texts; the defaults, on real data, for hours on a few cores; the paper's, for a
    GPU."""
    only: tuple[str, ...] = ()
    """Names of experiments; default: all."""
    out: Path | None = None
    """Folder for the runs and the page; default: runs/reproduce-PRESET."""
    data: Path | None = None
    """Folder of CIFAR-10 and WikiText-2; default: where PLURAL_JAX_DATA points, the cache, or a download."""
    cache: Path | None = None
    """Folder for pretrained models; default: the user's cache folder."""
    progress: bool = True
    """Show a progress bar."""


class Step(NamedTuple):
    """One experiment of a reproduction: the experiment and its configuration."""

    experiment: experiments.Experiment
    config: Any


def steps(command: Reproduce) -> list[Step]:
    """What a command runs, in order: the sweep, then the experiments as they are listed.

    Raises:
        ValueError: an experiment that does not exist.

    Example:
        >>> [step.experiment.name for step in steps(Reproduce(only=("c9", "e2")))]
        ['c9', 'e2']
    """
    known = {experiments.SWEEP.name: experiments.SWEEP, **experiments.EXPERIMENTS}
    for name in command.only:
        if name not in known:
            raise ValueError(f"only must name experiments among {', '.join(known)}, got {name!r}.")
    own: Mapping[str, dict[str, Any]] = PRESETS[command.preset]
    found = []
    for name, experiment in known.items():
        if command.only and name not in command.only:
            continue
        options = dict(own.get(name, {}))
        names = {field.name for field in fields(experiment.config)}
        options |= {key: getattr(command, key) for key in ("data", "cache") if key in names}
        found.append(Step(experiment, experiment.config(**options)))
    return found


def reproduce(command: Reproduce, say: Callable[[str], None] = print) -> int:
    """Run what is missing and make the page; returns how many experiments could not run.

    Args:
        command: what to run.
        say: called with a line for each experiment.

    Raises:
        ValueError: an experiment that does not exist; a folder whose runs have other sizes.
    """
    plan = steps(command)
    out = command.out or Path("runs") / f"reproduce-{command.preset}"
    shown = meter(command.progress)
    failed: dict[str, str] = {}
    for number, (experiment, config) in enumerate(plan, start=1):
        folder, name = out / experiment.name, experiment.name
        if _finished(folder, config):
            say(f"[{number}/{len(plan)}] {name}: finished before")
            continue
        named: Meter = NamedMeter(shown, f"[{number}/{len(plan)}] {name}")
        try:
            experiments.execute(experiment, config, folder, resume=True, progress=named if command.progress else False)
        except (ValueError, OSError) as error:
            failed[name] = str(error)
            say(f"[{number}/{len(plan)}] {name}: not run: {error}")
            continue
        _marker(folder).write_text(json.dumps(asdict(config), default=str))
        say(f"[{number}/{len(plan)}] {name}: {experiment.title}")
    done = [out / step.experiment.name for step in plan if step.experiment.name not in failed]
    if done:
        say(report.write(report.Report(tuple(done), out / "report.html")).rstrip())
    if failed:
        say(f"{len(failed)} of {len(plan)} did not run: {', '.join(failed)}. The same command tries them again.")
    return len(failed)


def _marker(folder: Path) -> Path:
    """Written last, with the configuration: the run is finished."""
    return folder / "finished.json"


def _finished(folder: Path, config: Any) -> bool:
    if not _marker(folder).exists():
        return False
    then, now = json.loads(_marker(folder).read_text()), json.loads(json.dumps(asdict(config), default=str))
    places = ("data", "cache")
    if {k: v for k, v in then.items() if k not in places} != {k: v for k, v in now.items() if k not in places}:
        raise ValueError(f"out={str(folder.parent)!r} holds runs of other sizes; choose another folder.")
    return True
