"""Sweeps: the same numbers as one run at a time, in any batches, on any devices, after any interruption."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import plural_jax as pj
from plural_jax import sweep_batches, sweeps

GRID_POINTS = 24
PHIS, DISTANCES, SIZES = [0.2, 0.5, 0.7], [1.0, 2.5], [2.0, 10.0, np.inf]


def make(phi, distance, pool_size=np.inf):
    grid = pj.Grid.uniform(-4.0, 4.0, GRID_POINTS)
    land = pj.Landscape.on(grid, pj.rewards.bump(jnp.stack([-distance / 2, distance / 2]), 5.0, 1.0))
    return pj.density.finite_pool(land, jnp.stack([phi, 1 - phi]), pool_size=pool_size, eps=0.5)


def plain(phi, distance):
    """The same at K = inf, one step after another: quick to compile, for tests of the sweep and not of the density."""
    return make(phi, distance)._replace(rounds=None)


@pytest.fixture(scope="module")
def reference():
    return pj.sweep(make, phi=PHIS, distance=DISTANCES, pool_size=SIZES, num_steps=6)


@pytest.fixture(scope="module")
def plain_reference():
    return pj.sweep(plain, phi=PHIS, distance=DISTANCES, num_steps=4)


def test_same_as_single_runs(reference):
    for phi, distance, size in ((0.2, 2.5, 2.0), (0.7, 1.0, np.inf), (0.5, 2.5, 10.0)):
        process = make(jnp.asarray(phi), jnp.asarray(distance), size)
        _, trace = pj.run(process, process.init(), 6)
        for name, value in trace._asdict().items():
            got = reference[name].sel(phi=phi, distance=distance, pool_size=size)
            np.testing.assert_allclose(got, value, rtol=1e-10, atol=1e-10, err_msg=name)


def test_labels(reference):
    assert dict(reference.sizes) == {"phi": 3, "distance": 2, "pool_size": 3, "step": 6, "preference": 2}
    assert reference.basin_mass.dims == ("phi", "distance", "pool_size", "step", "preference")
    assert reference.entropy.dims == ("phi", "distance", "pool_size", "step")
    assert set(reference.data_vars) == set(pj.density.DensityInfo._fields)
    np.testing.assert_array_equal(reference.phi, PHIS)
    np.testing.assert_array_equal(reference.step, np.arange(1, 7))
    assert reference.attrs["num_steps"] == 6 and "jax" in reference.attrs["versions"]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_change_nothing(plain_reference, batch_size):
    batched = pj.sweep(plain, phi=PHIS, distance=DISTANCES, num_steps=4, batch_size=batch_size)
    xr.testing.assert_allclose(batched, plain_reference, rtol=1e-11, atol=1e-11)


def test_batches_of_three_axes_with_edges(reference):
    batched = pj.sweep(make, phi=PHIS, distance=DISTANCES, pool_size=SIZES, num_steps=6, batch_size=5)
    xr.testing.assert_allclose(batched, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order", [("distance", "phi"), ("phi", "distance")])
def test_axes_keep_their_order(plain_reference, order):
    axes = {"phi": [0.2, 0.5, 0.7], "distance": [1.0, 2.5]}
    ds = pj.sweep(plain, **{name: axes[name] for name in order}, num_steps=4, save="final", batch_size=4)
    assert ds.entropy.dims == (*order, "step")
    expected = plain_reference.entropy.sel(phi=0.7, distance=1.0, step=[4])
    np.testing.assert_allclose(ds.entropy.sel(phi=0.7, distance=1.0), expected, rtol=1e-11)


def test_save_policies():
    kwargs = {"phi": [0.2, 0.5], "distance": [1.0], "num_steps": 6}
    summary = pj.sweep(plain, **kwargs)
    final = pj.sweep(plain, **kwargs, save="final")
    assert final.step.values.tolist() == [6]
    np.testing.assert_allclose(final.objective, summary.objective.isel(step=[-1]), rtol=1e-11)
    density = pj.sweep(plain, **kwargs, save="density", every=3)
    assert density.log_p.dims == ("phi", "distance", "step", "cell") and density.step.values.tolist() == [3, 6]
    np.testing.assert_allclose(np.exp(density.log_p).sum("cell"), 1.0)
    custom = pj.sweep(plain, **kwargs, save=lambda state, info: {"p": jnp.exp(state.log_p), "f": info.objective})
    assert custom.p.dims == ("phi", "distance", "step", "p_dim_0")
    np.testing.assert_allclose(custom.f, summary.objective, rtol=1e-11)


def test_float32_and_labels_with_the_callers_digits():
    with jax.enable_x64(False):
        ds = pj.sweep(plain, phi=[0.1, 0.3], distance=[1.0], num_steps=2)
    assert ds.entropy.dtype == np.float32
    assert np.isfinite(ds.entropy.sel(phi=0.3, distance=1.0)).all()


def test_start_and_key():
    def started(mean, seed):
        process = plain(jnp.asarray(0.4), jnp.asarray(2.0))
        land = pj.Landscape.on(pj.Grid.uniform(-4.0, 4.0, GRID_POINTS), pj.rewards.quadratic([0.0], 1.0))
        return process, land.gaussian(mean, 1.0)

    ds = pj.sweep(started, mean=[-1.0, 1.0], seed=[0, 1], num_steps=1)
    assert float(ds.basin_mass[0, 0, 0, 0]) > float(ds.basin_mass[1, 0, 0, 0])

    def draw(scale):
        def step(key, state):
            return state, {"draw": scale * jax.random.normal(key)}

        return pj.Process(init=lambda: jnp.zeros(()), step=step)

    one = pj.sweep(draw, scale=[1.0, 2.0, 3.0], num_steps=4, key=jax.random.key(3))
    two = pj.sweep(draw, scale=[1.0, 2.0, 3.0], num_steps=4, key=jax.random.key(3), batch_size=1)
    xr.testing.assert_allclose(one, two)
    scaled = one.draw / one.scale
    assert len(np.unique(scaled.values.round(12))) == 12  # every configuration and round has numbers of its own


def test_one_compilation_for_all_batches_and_values():
    traces = []

    def counted(phi):
        traces.append(isinstance(phi, jax.core.Tracer))
        return plain(phi, jnp.asarray(2.0))

    pj.sweep(counted, phi=np.linspace(0.1, 0.9, 8), num_steps=3, batch_size=8)
    one_batch = sum(traces)
    traces.clear()
    pj.sweep(counted, phi=np.linspace(0.1, 0.9, 8), num_steps=3, batch_size=2)
    assert sum(traces) == one_batch


def test_light_axes_are_found():
    def weigh(phi, distance, pool_size):
        return make(phi, distance, pool_size)

    point = {name: jax.ShapeDtypeStruct((), jnp.float64) for name in ("phi", "distance", "pool_size")}
    sizes, cells = sweep_batches.dependent_sizes(lambda point: sweeps._build(weigh(**point)), point)
    assert cells == GRID_POINTS
    assert sizes["phi"] == 2 and sizes["distance"] >= cells and sizes["pool_size"] >= cells


def test_store_is_labelled_and_continues(tmp_path):
    axes = {"phi": PHIS, "distance": DISTANCES}
    store = tmp_path / "sweep.zarr"
    calls = []

    class Meter:
        def start(self, total, description): ...

        def stop(self): ...

        def advance(self, amount):
            calls.append(amount)
            if len(calls) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pj.sweep(plain, **axes, num_steps=4, batch_size=2, store=store, progress=Meter())
    partial = xr.open_zarr(store, consolidated=False, chunks=None)
    assert 0 < np.isnan(partial.entropy).sum() < partial.entropy.size
    done = pj.sweep(plain, **axes, num_steps=4, batch_size=2, store=store)
    whole = pj.sweep(plain, **axes, num_steps=4, batch_size=2, store=tmp_path / "whole.zarr")
    xr.testing.assert_identical(done.load(), whole.load())
    in_memory = pj.sweep(plain, **axes, num_steps=4, batch_size=2)
    xr.testing.assert_equal(done, in_memory)
    assert done.attrs == in_memory.attrs


def test_store_refuses_what_is_not_the_same_sweep(tmp_path):
    store = tmp_path / "sweep.zarr"
    pj.sweep(plain, phi=[0.2], distance=[1.0], num_steps=2, store=store)
    with pytest.raises(ValueError, match=r"holds another sweep \(num_steps is 2 there and 3 now\)"):
        pj.sweep(plain, phi=[0.2], distance=[1.0], num_steps=3, store=store)
    with pytest.raises(ValueError, match="holds another sweep"):
        pj.sweep(plain, phi=[0.3], distance=[1.0], num_steps=2, store=store)
    with pytest.raises(ValueError, match=r"`make` or a parameter inside it was different"):
        pj.sweep(lambda phi, distance: plain(phi, 2 * distance), phi=[0.2], distance=[1.0], num_steps=2, store=store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match="exists and is not a sweep"):
        pj.sweep(plain, phi=[0.2], distance=[1.0], num_steps=2, store=tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


_CHILD = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
import plural_jax as pj
from tests.test_sweep import plain

assert jax.local_device_count() == 4

class Slow:
    def start(self, total, description): print("started", flush=True)
    def advance(self, amount): print("batch", flush=True); time.sleep(float(sys.argv[1]))
    def stop(self): pass

for store in sys.argv[2:]:
    pj.sweep(plain, phi=np.linspace(0.1, 0.9, 7), distance=[1.0, 2.0, 3.0], num_steps=4, batch_size=3,
             store=store, progress=Slow())
print("done", flush=True)
"""


def _child(pause, *stores):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": root}
    words = [sys.executable, "-c", _CHILD, str(pause), *map(str, stores)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)


@pytest.mark.end_to_end
def test_killed_sweep_continues_on_four_devices(tmp_path):
    """SIGKILL in the middle; started again it computes only the rest, and gives the dataset of an unbroken run.

    7 x 3 configurations in batches of 3 x 1, the last of each distance of one: neither divides by four devices.
    """
    store = tmp_path / "killed.zarr"
    child = _child(3600, store)
    assert [child.stdout.readline().strip() for _ in range(2)] == ["started", "batch"]
    child.send_signal(signal.SIGKILL)
    child.wait()
    flags = list((store / "_finished" / "batches").rglob("c/*/*"))
    assert len(flags) >= 1
    before = {f: f.stat().st_mtime_ns for f in (store / "entropy" / "c").rglob("*") if f.is_file()}
    time.sleep(0.05)
    again = _child(0, store, tmp_path / "whole.zarr")
    assert again.communicate(timeout=600)[0].strip().endswith("done")
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.zarr", "whole.zarr"]
    killed, unbroken = (
        xr.open_zarr(tmp_path / name, consolidated=False, chunks=None).load() for name in ("killed.zarr", "whole.zarr")
    )
    xr.testing.assert_identical(killed, unbroken)
    assert unbroken.entropy.notnull().all()
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        here = pj.sweep(plain, phi=np.linspace(0.1, 0.9, 7), distance=[1.0, 2.0, 3.0], num_steps=4)
    xr.testing.assert_allclose(unbroken, here, rtol=1e-5, atol=1e-6)
