"""Memory and compilation: batches that fit, large sweeps that stream to disk, one compilation."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import plural_jax as pj
from plural_jax import memory, sweep_batches
from tests.test_sweep import plain

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MEBIBYTE = 2**20
NUM_STEPS = 12
#: How much more memory 10^6 configurations may take than 10^5, in MiB. Their results are 137 MiB and their parameters 15 MiB; in
#: batches of 2 MiB, what is in flight, fetched and encoded at a time is about 20 MiB, and what compilers take varies by 20.
MORE_MEMORY = 64


def tiny(phi, distance):
    grid = pj.Grid.uniform(-4.0, 4.0, 16)
    land = pj.Landscape.on(grid, pj.rewards.bump(jnp.stack([-distance / 2, distance / 2]), 5.0, 1.0))
    return pj.density.large_pool(land, jnp.stack([phi, 1 - phi]), eps=0.5)._replace(rounds=None)


def few(state, info):
    return {"entropy": info.entropy, "mass": info.basin_mass}


_CHILD = """
import resource, sys
import numpy as np
import jax
import plural_jax as pj
from plural_jax import memory
from tests.test_sweep_memory import NUM_STEPS, few, tiny

memory.LARGEST_RESULT = 2**21
num, store = int(sys.argv[1]), sys.argv[2]
axes = {"phi": np.linspace(0.05, 0.95, num), "distance": np.linspace(1.0, 4.0, 1000)}
pj.sweep(tiny, **axes, num_steps=NUM_STEPS, save=few, store=store)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10))
"""


@pytest.mark.end_to_end
@pytest.mark.skipif(sys.platform == "win32", reason="asks the system for the peak of resident memory")
def test_a_million_configurations_stream_to_the_store(tmp_path):
    # Optimized code, as users run it: there is more to compute here than to compile.
    environment = {**os.environ, "PYTHONPATH": ROOT, "XLA_FLAGS": ""}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, num, str(tmp_path / num)], stdout=subprocess.PIPE, env=environment, cwd=ROOT
        )
        for num in ("100", "1000")
    ]
    try:
        tenth, whole = (int(child.communicate(timeout=600)[0]) for child in children)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert whole - tenth < MORE_MEMORY
    ds = xr.open_zarr(tmp_path / "1000", consolidated=False, chunks=None)
    assert ds.entropy.size == NUM_STEPS * 10**6
    files = sum(path.is_file() for path in (tmp_path / "1000").rglob("*"))
    assert files < 500
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for i, j in ((0, 0), (999, 999), (123, 58), (500, 59), (777, 941)):
            picked = ds.isel(phi=i, distance=j)
            process = tiny(jnp.asarray(float(picked.phi)), jnp.asarray(float(picked.distance)))
            _, trace = pj.run(process, process.init(), NUM_STEPS, save=few)
            np.testing.assert_allclose(picked.entropy, trace["entropy"], rtol=1e-5)
            np.testing.assert_allclose(picked.mass, trace["mass"], rtol=1e-4, atol=1e-6)


def measured(monkeypatch, **sizes):
    """Record the batches that are compiled, with their size, under other limits."""
    programs = []

    class Recorded(sweep_batches.Program):
        def __init__(self, *args):
            super().__init__(*args)
            programs.append(self)

    monkeypatch.setattr(pj.sweeps, "Program", Recorded)
    for name, value in sizes.items():
        monkeypatch.setattr(memory, name, value)
    return programs


AXES = {"phi": np.linspace(0.1, 0.9, 16), "distance": np.linspace(1.0, 3.0, 16)}


def test_a_batch_that_does_not_fit_is_cut_to_what_does(monkeypatch):
    whole = pj.sweep(plain, **AXES, num_steps=2)
    programs = measured(monkeypatch)
    pj.sweep(plain, **AXES, num_steps=2)
    assert len(programs) == 1 and programs[0].plan.block == (16, 16)  # it fits: nothing else is compiled
    budget = programs[0].bytes_needed // 5
    programs.clear()
    monkeypatch.setattr(memory, "device_budget", lambda: budget)
    cut = pj.sweep(plain, **AXES, num_steps=2)
    assert len(programs) <= 4
    size = np.prod(programs[-1].plan.block)
    assert programs[-1].bytes_needed <= budget and 1 < size < 256
    xr.testing.assert_allclose(cut, whole, rtol=1e-11, atol=1e-11)


def test_results_in_a_batch_are_bounded(monkeypatch, tmp_path):
    result = 2 * 8 * (len(pj.density.DensityInfo._fields) + 16)  # at most, per configuration
    programs = measured(monkeypatch, LARGEST_RESULT=40 * result)
    pj.sweep(plain, **AXES, num_steps=2)
    assert 16 <= np.prod(programs[-1].plan.block) <= 100
    # A stored sweep is cut into sixteenths at least, and into quarters of each process's part.
    for part, most in ((None, 16), ((0, 64), 1)):
        pj.sweep(plain, **AXES, num_steps=2, store=tmp_path / str(most), part=part)
        assert np.prod(programs[-1].plan.block) == most


def test_a_device_that_cannot_hold_one_batch(monkeypatch):
    """Compilers that refuse a program for want of memory, and backends that do not say what one takes."""

    def build(size):
        if size > 10:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        built.append(size)
        return SimpleNamespace(bytes_needed=needed(size))

    built, needed = [], lambda size: 0
    memory.largest_fitting(build, 1000, 8, 0, 100)
    assert built == [3]
    built, needed = [], lambda size: 1000 * size
    memory.largest_fitting(build, 8, 8, 0, 100)  # nothing fits: one configuration is tried all the same
    assert built[-1] == 1 and len(built) <= 3
    built, needed = [], lambda size: 50 * size
    memory.largest_fitting(build, 1000, 8, 100, 900)  # states alone bound it
    assert built == [9 * jax.local_device_count()]


def test_a_sweep_that_fits_differently_later_continues(tmp_path, monkeypatch):
    store = tmp_path / "sweep.zarr"
    first = pj.sweep(plain, **AXES, num_steps=2, store=store, part=(0, 2))
    monkeypatch.setattr(memory, "device_budget", lambda: 1)
    again = pj.sweep(plain, **AXES, num_steps=2, store=store)
    assert again.attrs == first.attrs and again.entropy.notnull().all()
    with pytest.raises(ValueError, match=r"holds another sweep \(block is .* there and \[3, 1\] now\)"):
        pj.sweep(plain, **AXES, num_steps=2, store=store, batch_size=3)


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        ("all", "batch_size must be 'auto' or a whole number of at least 1, got 'all'"),
        (0, "batch_size must be a whole number of at least 1, got 0"),
        (1.5, "batch_size must be a whole number of at least 1, got 1.5"),
    ],
)
def test_batch_sizes_refused(batch_size, message):
    with pytest.raises(ValueError, match=message):
        pj.sweep(plain, phi=[0.5], distance=[1.0], num_steps=1, batch_size=batch_size)


def test_memory_of_the_host_and_of_its_control_groups(tmp_path):
    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemTotal:  99999 kB\nMemAvailable:    5000 kB\n")
    assert memory.free_on_host(proc, cgroups) == 5000 * 1024
    # Version 2: the group itself has no limit, the one above it has.
    write(proc / "self" / "cgroup", "0::/job/step\n")
    write(cgroups / "job" / "step" / "memory.max", "max\n")
    write(cgroups / "job" / "step" / "memory.current", "1\n")
    write(cgroups / "job" / "memory.max", f"{3 * MEBIBYTE}\n")
    write(cgroups / "job" / "memory.current", f"{2 * MEBIBYTE}\n")
    write(cgroups / "job" / "memory.stat", f"anon 7\ninactive_file {MEBIBYTE // 2}\n")
    assert memory.free_on_host(proc, cgroups) == 3 * MEBIBYTE // 2
    # Version 1, in a container that sees only the top.
    write(proc / "self" / "cgroup", "9:name=systemd:/\n4:cpu,memory:/of/the/host\n")
    write(cgroups / "memory" / "memory.limit_in_bytes", f"{4 * MEBIBYTE}\n")
    write(cgroups / "memory" / "memory.usage_in_bytes", f"{2 * MEBIBYTE}\n")
    write(cgroups / "memory" / "memory.stat", "cache 5\n")
    assert memory.free_on_host(proc, cgroups) == 2 * MEBIBYTE
    assert memory.free_on_host() > 0


def test_memory_of_accelerators(monkeypatch):
    def devices(*stats):
        return lambda: [SimpleNamespace(platform="gpu", memory_stats=lambda s=s: s) for s in stats]

    monkeypatch.setattr(jax, "local_devices", devices({"bytes_limit": 100, "bytes_in_use": 20}, {"bytes_limit": 200}))
    assert memory.device_budget() == 40
    monkeypatch.setattr(jax, "local_devices", devices({"bytes_limit": 100}, None))
    assert memory.device_budget() is None


def test_nothing_is_compiled_between_batches(tmp_path):
    compiled = []

    def listen(event, duration_secs, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    class Told:
        def __init__(self):
            self.counts, self.texts = [], []

        def describe(self, text):
            self.texts.append(text)

        def start(self, total, description):
            self.texts.append(description)
            self.counts.append(len(compiled))

        def advance(self, amount):
            self.counts.append(len(compiled))

        def stop(self): ...

    told = Told()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        pj.sweep(plain, **AXES, num_steps=2, store=tmp_path / "sweep", batch_size=7, progress=told)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(told.counts) > 16 and set(told.counts) == {told.counts[0]} and told.counts[0] > 0
    assert told.texts[0] == "compiling" and told.texts[1].startswith("configurations (compiled in ")
    done = Told()
    pj.sweep(plain, **AXES, num_steps=2, store=tmp_path / "sweep", batch_size=7, progress=done)
    assert done.texts == ["configurations"]  # a finished sweep is opened, and nothing compiled
