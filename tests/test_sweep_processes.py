"""One sweep by several processes: by `jax.distributed` on this machine, and by parts that know nothing of each other."""

import os
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import xarray as xr

import plural_jax as pj
from plural_jax import hosts, labels
from plural_jax.store import SweepStore
from tests.test_sweep import plain

pytestmark = pytest.mark.end_to_end

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TIMEOUT = 600
# 7 x 3 configurations in batches of 3 x 1, the last of each distance of one: neither divides by two devices.
AXES = {"phi": np.linspace(0.1, 0.9, 7), "distance": [1.0, 2.0, 3.0]}
SETTINGS = {"num_steps": 4, "batch_size": 3}
NUM_BATCHES = 9

_CHILD = """
import sys, time
import jax
from plural_jax import hosts
store, index, count, port, pause, heartbeat = sys.argv[1], *map(int, sys.argv[2:])
jax.config.update("jax_num_cpu_devices", 2)
hosts.join(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=heartbeat)
import plural_jax as pj
from tests.test_sweep_processes import AXES, SETTINGS, plain

assert jax.process_count() == count and jax.local_device_count() == 2

class Told:
    def start(self, total, description): print("start", total, flush=True)
    def advance(self, amount): print("batch", amount, flush=True); time.sleep(pause)
    def stop(self): pass

try:
    ds = pj.sweep(plain, **AXES, **SETTINGS, store=store, progress=Told())
except hosts.MissingPartError as error:
    print("error", error, flush=True)
else:
    print("complete", bool(ds.entropy.notnull().all()), flush=True)
hosts.leave()
"""


@pytest.fixture
def start():
    """Start processes; whatever still runs at the end of a test is killed."""
    children = []

    def one(words, **options):
        environment = {**os.environ, "PYTHONPATH": ROOT}
        children.append(
            subprocess.Popen(
                [sys.executable, *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=ROOT,
            )
        )
        return children[-1]

    yield one
    for child in children:
        child.kill()
        child.communicate()


def sweeping(start, store, count, pauses=(0, 0), heartbeat=100):
    port = free_port()
    return [start(["-c", _CHILD, store, i, count, port, pauses[i], heartbeat]) for i in range(count)]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def finish(child):
    out, err = child.communicate(timeout=TIMEOUT)
    assert child.returncode == 0, err
    return out.splitlines()


def times(store):
    """When each flag was written, by its file; a batch that is computed again has a new time."""
    return {
        path: path.stat().st_mtime_ns for path in (store / "_finished" / "batches" / "c").rglob("*") if path.is_file()
    }


def stored(store):
    return xr.open_zarr(store, consolidated=False, chunks=None).load()


@pytest.fixture(scope="module")
def on_one_device():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        return pj.sweep(plain, **AXES, **SETTINGS)


def test_one_of_two_processes_dies_and_the_same_command_computes_the_rest(start, tmp_path, on_one_device):
    """And two processes with two devices each have the numbers of one device."""
    store = tmp_path / "sweep.zarr"
    survivor, victim = sweeping(start, store, 2, pauses=(0, 3600), heartbeat=10)
    # Batches 0, 2, 4, ... are of process 0; every third has one configuration.
    assert [victim.stdout.readline().strip() for _ in range(2)] == ["start 10", "batch 3"]
    victim.send_signal(signal.SIGKILL)
    # The other one finishes its own part, and then finds out.
    lines = finish(survivor)
    assert lines[0] == "start 11" and sum(line.startswith("batch") for line in lines) == 5
    assert "3 of 9 batches are missing" in lines[-1] and "1 of 2 processes died" in lines[-1]
    before = times(store)
    assert len(before) == 6
    restarted = [finish(child) for child in sweeping(start, store, 2)]
    assert all(part[-1] == "complete True" for part in restarted)
    after = times(store)
    assert len(after) == NUM_BATCHES and all(after[path] == t for path, t in before.items())
    xr.testing.assert_allclose(stored(store), on_one_device, rtol=1e-5, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.zarr"]


def test_parts_that_know_nothing_of_each_other(tmp_path, monkeypatch):
    store = tmp_path / "sweep.zarr"
    computed = []
    write = SweepStore.write
    monkeypatch.setattr(
        SweepStore, "write", lambda self, batch, *rest: (computed.append(batch), write(self, batch, *rest))
    )
    third = pj.sweep(plain, **AXES, **SETTINGS, store=store, part=(2, 3))
    assert computed == [(0, 2), (1, 2), (2, 2)]  # every third of the 3 x 3 batches
    assert third.entropy.sel(distance=3.0).notnull().all() and third.entropy.sel(distance=[1.0, 2.0]).isnull().all()
    pj.sweep(plain, **AXES, **SETTINGS, store=store, part=(0, 3))
    pj.sweep(plain, **AXES, **SETTINGS, store=store, part=(0, 3))
    whole = pj.sweep(plain, **AXES, **SETTINGS, store=store)  # one process computes what no one did
    assert len(computed) == len(set(computed)) == NUM_BATCHES
    xr.testing.assert_equal(whole.load(), pj.sweep(plain, **AXES, **SETTINGS))


def test_a_batch_that_another_process_wrote_a_moment_ago_is_not_computed(tmp_path):
    store = tmp_path / "sweep.zarr"
    other = []

    class Meanwhile:
        def start(self, total, description):
            other.append(pj.sweep(plain, **AXES, **SETTINGS, store=store, part=(1, 2)))
            other.append(times(store))

        def advance(self, amount): ...
        def stop(self): ...

    pj.sweep(plain, **AXES, **SETTINGS, store=store, progress=Meanwhile())
    after = times(store)
    assert len(other[1]) == 4 and len(after) == NUM_BATCHES
    assert all(after[path] == t for path, t in other[1].items())


@pytest.mark.parametrize(
    "part", [3, "12", (1,), (0, 1, 2), (0.5, 2), (2, 2), (-1, 2), (0, 0)], ids=lambda part: str(part).replace(" ", "")
)
def test_parts_refused(part, tmp_path):
    with pytest.raises(ValueError, match=r"part must be \(index, count\)") as error:
        pj.sweep(plain, phi=[0.2], distance=[1.0], num_steps=2, store=tmp_path / "x", part=part)
    assert repr(part) in str(error.value) and not (tmp_path / "x").exists()


def test_several_processes_need_a_store(monkeypatch):
    with pytest.raises(ValueError, match="a sweep by 3 processes needs store"):
        pj.sweep(plain, phi=[0.2], distance=[1.0], num_steps=2, part=(0, 3))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="a sweep by 2 processes needs store"):
        pj.sweep(plain, phi=[0.2], distance=[1.0], num_steps=2)


def test_joining_without_a_job(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *words: None)
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *words: (_ for _ in ()).throw(ValueError("no coordinator"))
    )
    with pytest.raises(ValueError, match=r"no job to join \(no coordinator\)"):
        hosts.join()


def test_of_two_that_make_the_store_one_does(tmp_path):
    described = [labels.Variable("value", ("phi", "step"), (4, 2), np.dtype(np.float32))]
    coords = {"phi": np.arange(4.0), "step": np.arange(1, 3)}
    attrs = {"fingerprint": "abc", "num_steps": 2}
    path = tmp_path / "new" / "sweep.zarr"
    one = SweepStore.create(path, described, (2,), coords, attrs)
    one.write((1,), (slice(2, 4),), {"value": np.ones((2, 2), np.float32)})
    two = SweepStore.create(path, described, (1,), coords, attrs, exact=False)
    assert two.block == (2,) and two.is_finished((1,)) and not two.is_finished((0,))
    np.testing.assert_array_equal(two.open().value, [[np.nan] * 2] * 2 + [[1.0] * 2] * 2)
    with pytest.raises(ValueError, match=r"holds another sweep \(block is \[2\] there and \[1\] now\)"):
        SweepStore.create(path, described, (1,), coords, attrs)
    assert [p.name for p in path.parent.iterdir()] == ["sweep.zarr"]
    (tmp_path / "empty").mkdir()
    assert SweepStore.create(tmp_path / "empty", described, (2,), coords, attrs).block == (2,)


def test_a_store_that_appears_with_other_batches_decides(tmp_path, monkeypatch):
    """Two processes with different amounts of free memory start together: both use the batches of whoever was first."""
    store = tmp_path / "sweep.zarr"
    create = SweepStore.create

    def too_late(path, *rest, **options):
        monkeypatch.setattr(SweepStore, "create", create)
        pj.sweep(plain, **AXES, num_steps=4, batch_size=2, store=store, part=(0, 2))
        return create(path, *rest, **options)

    monkeypatch.setattr(SweepStore, "create", too_late)
    ds = pj.sweep(plain, **AXES, num_steps=4, store=store)
    assert ds.attrs["block"] == "[2, 1]"
    xr.testing.assert_allclose(ds, pj.sweep(plain, **AXES, num_steps=4), rtol=1e-11, atol=1e-11)


_COMMAND = [
    "-m",
    "plural_jax",
    "sweep",
    "--phi",
    "0.3:0.7:3",
    "--distance",
    "2",
    "3",
    "--pool-size",
    "inf",
    "--num",
    "20",
]
_COMMAND += ["--num-steps", "3", "--batch-size", "1", "--devices", "1", "--no-progress", "--no-show"]


def test_distributed_from_the_command_line(start, tmp_path):
    out = tmp_path / "run"
    job = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--out", out]
    first, second = (start([*_COMMAND, *job, "--process-id", i]) for i in range(2))
    printed = "\n".join(finish(first))
    assert "Weight of basin 1" in printed and str(out) in printed and "Compiling took" in printed
    assert finish(second) == []
    names = {path.name for path in out.iterdir()}
    assert {"dataset.zarr", "config.json", "versions.json", "table.txt", "sweep.png", "sweep.pdf"} <= names
    assert stored(out / "dataset.zarr").entropy.notnull().all()


def test_compiled_programs_are_kept_between_runs(start, tmp_path):
    """The command twice in one process that forgets in between what it compiled: the second run finds all of it on disk."""
    code = "import sys, jax; from plural_jax import cli, experiments; words = sys.argv[1:-2]\n"
    code += "experiments.SWEEP = experiments.SWEEP._replace(plot=lambda dataset: {})\n"  # nothing to compile there
    code += "for out in sys.argv[-2:]: assert cli.main([*words, '--out', out]) == 0; jax.clear_caches()"
    words = [*_COMMAND[2:], "--compilation-cache", tmp_path / "cache", tmp_path / "one", tmp_path / "two"]
    told = [line for line in finish(start(["-c", code, *words])) if line.startswith("Compiling took")]
    # "Compiling took 1.2 s (37 programs, 37 of them from the cache)."
    form = r"Compiling took [0-9.]+ s \((\d+) programs(?:, (\d+) of them from the cache)?\)\."
    (programs, cached), (programs_again, cached_again) = (
        map(int, re.fullmatch(form, line).groups(default="0")) for line in told
    )
    assert cached < programs
    assert cached_again == programs_again > 0
