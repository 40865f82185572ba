"""How much memory is free, and the largest batch that fits in it.

A batch is measured, not guessed: XLA says what a compiled program takes. The first program is for as many configurations as could
be wanted; only if it does not fit is a smaller one compiled, so most sweeps compile once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from plural_jax.sweep_batches import Program

#: Share of the free memory that a batch may take; the rest is for the host's copies and for whoever else needs some.
SHARE = 0.5
#: Bytes of results in a batch, at most. The host takes up to ten times that: two batches in flight, one fetched and compressed,
#: and what the allocator keeps for the next.
LARGEST_RESULT = 2**26


def largest_fitting(
    build: Callable[[int], Program], most: int, result_bytes: int, state_bytes: int, budget: int | None
) -> Program:
    """The program of the largest batch of at most `most` configurations that fits.

    Args:
        build: compiles the program for a batch size.
        most: configurations wanted.
        result_bytes: what one configuration saves.
        state_bytes: what one configuration keeps on its device at least, 0 if unknown.
        budget: bytes that a batch may take on each device, None if unknown.
    """
    size = max(1, min(most, LARGEST_RESULT // max(1, result_bytes)))
    if budget is not None and state_bytes:
        size = max(1, min(size, jax.local_device_count() * budget // state_bytes))
    while True:
        try:
            program = build(size)
        except jax.errors.JaxRuntimeError as error:
            # Some compilers refuse a program that could never run.
            if size == 1 or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            size = max(1, size // 4)
            continue
        if budget is None or program.bytes_needed <= budget or size == 1:
            return program
        # A little less than in proportion, as the parts of a program that do not grow with the batch take some too.
        size = max(1, min(int(0.9 * size * budget / program.bytes_needed), size - 1))


def device_budget() -> int | None:
    """Bytes that a batch may take on each local device, None where nobody says.

    On an accelerator a share of what its allocator has left; the devices of a CPU divide what the host has.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        free = free_on_host()
        return None if free is None else int(SHARE * free / len(devices))
    room = []
    for device in devices:
        stats = device.memory_stats()
        if not stats or "bytes_limit" not in stats:
            return None
        room.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return int(SHARE * min(room))


def free_on_host(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of main memory that this process may still take: what the system has, or what its control groups leave."""
    rooms = list(_cgroup_rooms(proc, cgroups))
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                rooms.append(1024 * int(line.split()[1]))
    except (OSError, ValueError):
        pass
    if not rooms and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        rooms.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)  # macOS says only what is built in
    return max(0, min(rooms)) if rooms else None


def _cgroup_rooms(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group above this process leaves; versions 1 and 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, used, reclaimable = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            reclaimable = "total_inactive_file"
        else:
            continue
        # Inside a container the path may be the host's, of which only the top is visible.
        parts = Path(path.lstrip("/")).parts
        for folder in (top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
            try:
                room = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield room + int(stat.get(reclaimable, 0))
            except (OSError, ValueError):  # no such group, or "max": no limit
                continue
