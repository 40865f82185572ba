"""What all benchmarks share: interleaved repeats, medians with their spread, fitted exponents, and a JSON of it all."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np


class Timing(NamedTuple):
    """Seconds of one contender: the median of its repeats, and their lower and upper quartile."""

    median: float
    low: float
    high: float


def interleaved(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Time functions in turns, so that a machine that slows down slows down all of them.

    Args:
        contenders: name -> function without arguments; what it returns is waited for. Each is called once before, to
            compile and to touch its memory.
        repeats: turns.
    """
    for function in contenders.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            # OpenMP threads of the contender before keep spinning for up to 0.2 s, and its data fill the caches: wait, and
            # warm up once more.
            time.sleep(0.25)
            jax.block_until_ready(function())
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(*(float(np.quantile(s, q)) for q in (0.5, 0.25, 0.75))) for name, s in seconds.items()}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Least-squares b of seconds = a size^b: 1 where cost is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "devices": [str(device) for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
    }


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
