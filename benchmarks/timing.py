"""What all benchmarks share: turns, medians with their spread, comparisons, fitted exponents, and a JSON of it all."""

from __future__ import annotations

import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np


class Timing(NamedTuple):
    """Seconds of one contender, or any other repeated number: the median, and the lower and upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Timing:
        """Quartiles of repeated measurements."""
        return cls(*(float(np.quantile(values, q)) for q in (0.5, 0.25, 0.75)))


@dataclass(frozen=True)
class Comparison:
    """Contenders that compute the same thing, measured in turns.

    Attributes:
        name: of the benchmark, and where it has several the one that this is, such as "tilt" or "limit, bumps".
        workload: what is computed, in words.
        reference: the contender that ratios are relative to.
        seconds: name -> seconds of each turn; turn by turn in the same order, so that ratios are taken within a turn.
        unit: what `work` counts.
        work: how many units one call of every contender does.
        scaled: name -> factor, of contenders that did only a part of the work and whose seconds were multiplied by it.
        ceiling: what `fractions` are relative to.
        fractions: name -> the part of a ceiling of the machine that a contender reaches.
        notes: sentences that belong below the table.
        extra: further numbers, for the JSON.
    """

    name: str
    workload: str
    reference: str
    seconds: dict[str, list[float]]
    unit: str = "calls"
    work: float = 1.0
    scaled: dict[str, float] = field(default_factory=dict)
    ceiling: str = ""
    fractions: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, Timing]:
        """Seconds of every contender."""
        return {name: Timing.of(seconds) for name, seconds in self.seconds.items()}

    @property
    def ratios(self) -> dict[str, Timing]:
        """Time of every contender / time of the reference, turn by turn where both had the same number of turns."""
        base = np.asarray(self.seconds[self.reference])

        def ratio(seconds: list[float]) -> Timing:
            return Timing.of(np.asarray(seconds) / (base if len(seconds) == len(base) else np.median(base)))

        return {name: ratio(seconds) for name, seconds in self.seconds.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, with the medians and quartiles that follow from it."""
        return asdict(self) | {
            "timings": {name: t._asdict() for name, t in self.rows.items()},
            "ratios": {name: t._asdict() for name, t in self.ratios.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Comparison:
        """The reverse of `to_json`."""
        return cls(**{name: value for name, value in content.items() if name not in ("timings", "ratios")})


def turns(contenders: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = True) -> dict[str, list[float]]:
    """Time functions in turns, so that a machine that slows down slows down all of them.

    Args:
        contenders: name -> function without arguments; what it returns is waited for.
        repeats: turns.
        warm: whether each is called once before all turns, to compile and to touch its memory, and once more before each
            measurement, because the contender before it has filled the caches. False where the first call is what counts.
    """
    if warm:
        for function in contenders.values():
            jax.block_until_ready(function())
    # Idle threads of the contender before go on spinning for a while: those of OpenBLAS for a few hundredths of a second,
    # those of OpenMP for 0.2 s unless they were told not to.
    pause = 0.05 if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE" else 0.25
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            time.sleep(pause)
            if warm:
                jax.block_until_ready(function())
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compile_together(functions: Iterable[Callable[[], Any]]) -> None:
    """Call each for the first time, on all cores at once, because compiling has one to itself."""
    with ThreadPoolExecutor(cores()) as pool:
        for called in [pool.submit(lambda f=f: jax.block_until_ready(f())) for f in functions]:
            called.result()


def interleaved(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Medians and quartiles of `turns`."""
    return {name: Timing.of(seconds) for name, seconds in turns(contenders, repeats).items()}


def scaled(seconds: dict[str, list[float]], factors: Mapping[str, float]) -> dict[str, list[float]]:
    """The seconds that contenders would have taken for all of the work."""
    return {name: [factors.get(name, 1.0) * s for s in values] for name, values in seconds.items()}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Least-squares b of seconds = a size^b: 1 where cost is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def optional(module: str) -> Any:
    """A peer's module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "devices": [str(d) if d.platform == "cpu" else d.device_kind for d in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "blas": blas(),
    }


def blas() -> str:
    """The kernels that NumPy's matrix products run on: OPENBLAS_CORETYPE, where it is set, may choose slow ones."""
    threadpoolctl = optional("threadpoolctl")
    found = [] if threadpoolctl is None else threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    kernels = [f"{x['internal_api']} {x['version']}, {x.get('architecture', 'unknown')} kernels" for x in found]
    chosen = os.environ.get("OPENBLAS_CORETYPE")
    # NumPy is loaded before SciPy, which brings a library of its own.
    return (kernels[0] if kernels else "unknown") + (f", set by OPENBLAS_CORETYPE={chosen}" if chosen else "")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write results where people can compare them later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\nWritten to {path}.")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
