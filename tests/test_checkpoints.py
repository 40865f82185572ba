"""Runs on disk: an interrupted run goes on from its newest checkpoint and ends as an unbroken one does, bit for bit."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj

ROUNDS = 12
KEY = jax.random.key(5)
#: Orbax leaves the reads that it no longer waits for to an event loop that is closed.
ignore_unraisable = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Mixed(NamedTuple):
    """Every kind of leaf that a state may have."""

    position: jax.Array
    coarse: jax.Array
    half: jax.Array
    count: jax.Array
    flags: dict
    keys: jax.Array
    empty: jax.Array
    weak: jax.Array
    nothing: None


def mixed_start():
    return Mixed(
        position=jnp.asarray([0.0, -0.0, 1.0], jnp.float64),
        coarse=jnp.asarray(0.5, jnp.float32),
        half=jnp.ones(2, jnp.bfloat16),
        count=jnp.asarray(0, jnp.int32),
        flags={"b": jnp.asarray([True, False])},
        keys=jax.random.split(jax.random.key(1, impl="rbg"), 2),
        empty=jnp.zeros((0, 3), jnp.float32),
        weak=jnp.full(3, 1.0),
        nothing=None,
    )


def mixed_step(scale, key, state):
    one, two = jax.random.split(key)
    own = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
    moved = Mixed(
        position=state.position + scale * jax.random.normal(one, (3,), jnp.float64),
        coarse=state.coarse * jax.random.uniform(two, dtype=jnp.float32),
        half=state.half + jax.random.normal(two, (2,), jnp.bfloat16),
        count=state.count + 1,
        flags={"b": ~state.flags["b"]},
        keys=own,
        empty=state.empty,
        weak=state.weak * 1.25,
        nothing=None,
    )
    return moved, {
        "sum": moved.position.sum(),
        "half": moved.half,
        "keys": own,
        "empty": moved.empty,
        "weak": state.weak,
    }


def mixed(scale=0.3):
    return pj.Process(init=mixed_start, step=jax.tree_util.Partial(mixed_step, jnp.asarray(scale)))


def density(phi=0.3):
    land = pj.Landscape(rewards=np.array([[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]]))
    return pj.density.large_pool(land, jnp.asarray([phi, 1 - phi]), eps=0.5)._replace(rounds=None)


class Interrupt:
    """A meter that gives up after so many rounds, and notes what it was told."""

    def __init__(self, after=None):
        self.after, self.told = after, []

    def start(self, total, description): ...

    def stop(self): ...

    def advance(self, amount):
        self.told.append(amount)
        if self.after is not None and sum(self.told) >= self.after:
            raise KeyboardInterrupt


def assert_identical(a, b):
    """Structure, types and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(x, jax.Array) and x.dtype == y.dtype and x.shape == y.shape
        assert x.aval.weak_type == y.aval.weak_type and x.devices() == y.devices()
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(x) == jax.random.key_impl(y)
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def interrupted(folder, after, process, state, num_steps=ROUNDS, **kwargs):
    with pytest.raises(KeyboardInterrupt):
        pj.run(process, state, num_steps, checkpoint=folder, progress=Interrupt(after), **kwargs)


def rounds_in(folder):
    return sorted(int(p.name) for p in (folder / "rounds").iterdir())


def damage(folder, finished, ruin):
    """Ruin the files of one checkpoint that hold the numbers."""
    files = [p for p in (folder / "rounds" / str(finished)).rglob("*") if p.parent.name == "d"]
    assert files
    for path in files:
        path.write_bytes(ruin(path.read_bytes()))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The run that the others must equal, its folder complete."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return folder, pj.run(mixed(), mixed_start(), ROUNDS, key=KEY, checkpoint=folder, checkpoint_every=5)


def test_goes_on_after_an_interruption(tmp_path, unbroken):
    folder, whole = unbroken
    assert rounds_in(folder) == [10, 12]  # the last two, and a shorter piece at the end
    again, settings = tmp_path / "run", {"key": KEY, "checkpoint_every": 5}
    interrupted(again, 5, mixed(), mixed_start(), **settings)
    assert rounds_in(again) == [5]
    interrupted(again, 10, mixed(), mixed_start(), **settings)
    assert rounds_in(again) == [5, 10]
    meter = Interrupt()
    assert_identical(pj.run(mixed(), mixed_start(), ROUNDS, checkpoint=str(again), progress=meter, **settings), whole)
    assert meter.told == [10, 2]
    # And the numbers are those of a run without checkpoints.
    plain = pj.run(mixed(), mixed_start(), ROUNDS, key=KEY)
    np.testing.assert_allclose(whole[1]["sum"], plain[1]["sum"], rtol=1e-12)
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, plain)


def test_complete_run_computes_nothing(tmp_path, unbroken, caplog):
    rounds = []

    def counting():
        def step(key, state):
            jax.debug.callback(lambda t: rounds.append(int(t)), state)
            return state + 1, {"t": state}

        return pj.Process(init=lambda: jnp.asarray(0), step=step)

    def compiled():
        """Whether a new function of the same name and content is compiled, and what the run returns."""
        caplog.clear()
        with jax.log_compiles():
            result = pj.run(counting(), jnp.asarray(0), 4, checkpoint=tmp_path / "run")
        jax.effects_barrier()
        return any("Compiling jit(_run_piece)" in message for message in caplog.messages), result

    first, second = compiled(), compiled()
    assert first[0] and not second[0]
    assert sorted(rounds) == [0, 1, 2, 3]
    assert_identical(second[1], first[1])
    meter, folder = Interrupt(), unbroken[0]
    stored = pj.run(mixed(), mixed_start(), ROUNDS, key=KEY, checkpoint=folder, checkpoint_every=5, progress=meter)
    assert_identical(stored, unbroken[1])
    assert meter.told == [12]


@pytest.mark.parametrize(
    ("save", "every"),
    [("final", 5), ("density", 3), (lambda s, i: (s.log_p.max(), None, {"f": i.objective}), 3), (lambda s, i: None, 1)],
)
def test_save_policies(tmp_path, save, every):
    process = density()
    start = process.init()
    kwargs = {"save": save, "every": every}
    whole = pj.run(process, start, ROUNDS, checkpoint=tmp_path / "whole", **kwargs)
    interrupted(tmp_path / "run", 6, process, start, **kwargs)
    assert_identical(pj.run(process, start, ROUNDS, checkpoint=tmp_path / "run", **kwargs), whole)
    plain = pj.run(process, start, ROUNDS, **kwargs)
    assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), whole, plain)


@ignore_unraisable
@pytest.mark.parametrize(
    "ruin",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: bytes(len(b))],
    ids=["truncated", "empty", "zeros"],
)
def test_damaged_checkpoint(tmp_path, unbroken, ruin):
    folder, whole = tmp_path / "run", unbroken[1]
    settings = {"key": KEY, "checkpoint": folder, "checkpoint_every": 5}
    shutil.copytree(unbroken[0], folder)
    damage(folder, 12, ruin)
    meter = Interrupt()
    with pytest.warns(UserWarning, match="what was saved after round 12 cannot be read"):
        assert_identical(pj.run(mixed(), mixed_start(), ROUNDS, progress=meter, **settings), whole)
    assert meter.told == [10, 2] and rounds_in(folder) == [10, 12]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_identical(pj.run(mixed(), mixed_start(), ROUNDS, **settings), whole)


@ignore_unraisable
def test_both_checkpoints_damaged(tmp_path, unbroken):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    for finished in (10, 12):
        damage(folder, finished, lambda b: b[:9])
    meter = Interrupt()
    with pytest.warns(UserWarning, match="after round (10|12) cannot be read") as warned:
        result = pj.run(mixed(), mixed_start(), ROUNDS, key=KEY, checkpoint=folder, checkpoint_every=5, progress=meter)
    assert_identical(result, unbroken[1])
    assert len(warned) == 2 and meter.told == [5, 5, 2] and rounds_in(folder) == [10, 12]


def test_one_changed_number_is_noticed(tmp_path, unbroken):
    """Bytes that Orbax reads without complaint, as from a checkpoint of another run."""
    import orbax.checkpoint as ocp

    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    with ocp.CheckpointManager(folder / "rounds") as manager:
        saved = manager.restore(12, args=ocp.args.StandardRestore())
        saved["state"]["0"] = saved["state"]["0"] + 1e-16 * np.array([0, 1, 0])
        manager.delete(12)
        manager.save(12, args=ocp.args.StandardSave(saved))
    with pytest.warns(UserWarning, match="contents have changed"):
        result = pj.run(mixed(), mixed_start(), ROUNDS, key=KEY, checkpoint=folder, checkpoint_every=5)
    assert_identical(result, unbroken[1])


def test_killed_while_setting_up_or_writing(tmp_path, unbroken):
    """What a kill can leave behind: half a `run.json`, no checkpoint yet, a checkpoint under its temporary name."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json.partial").write_text('{"kind": "plu')
    settings = {"key": KEY, "checkpoint_every": 5}
    interrupted(folder, 5, mixed(), mixed_start(), **settings)
    shutil.rmtree(folder / "rounds")
    interrupted(folder, 5, mixed(), mixed_start(), **settings)
    half = folder / "rounds" / "10.orbax-checkpoint-tmp"
    (half / "default").mkdir(parents=True)
    (half / "default" / "manifest.ocdbt").write_bytes(b"half")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_identical(pj.run(mixed(), mixed_start(), ROUNDS, checkpoint=folder, **settings), unbroken[1])
    assert rounds_in(folder) == [10, 12]


def other_step(scale, key, state):
    return mixed_step(scale, key, state)


def info_of(state, info):
    return info


def closing_over(number):
    def step(key, state):
        return state + number, {"x": state}

    return pj.Process(init=lambda: jnp.zeros(2), step=step)


def closing_over_deeper(numbers):
    @jax.jit
    def inner(state):
        return state + numbers

    return pj.Process(init=lambda: jnp.zeros(2), step=lambda key, state: (inner(state), {"x": state}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_steps": 14, "checkpoint_every": 5}, r"\(num_steps is 12 there and 14 now\)"),
        ({"key": jax.random.key(6)}, r"\(key is threefry2x32 \[0, 5\] there and threefry2x32 \[0, 6\] now\)"),
        ({"save": info_of}, r"\(save is summary there and tests.test_checkpoints.info_of now\)"),
        ({"save": "final"}, r"\(save is summary there and final now; every is 1 there and not used now\)"),
        ({"every": 2, "checkpoint_every": 6}, r"\(every is 1 there and 2 now; checkpoint_every is 5 there and 6 now\)"),
        ({"checkpoint_every": 4}, r"\(checkpoint_every is 5 there and 4 now\)"),
        ({"process": mixed(0.4)}, r"\(process has other numbers in \.step\[0\]\[0\]\)"),
        (
            {"process": mixed()._replace(step=jax.tree_util.Partial(other_step, jnp.asarray(0.3)))},
            r"\(process has tests\.test_checkpoints\.mixed_step there and tests\.test_checkpoints\.other_step now\)",
        ),
        ({"state": mixed_start()._replace(count=jnp.asarray(1, jnp.int32))}, r"\(state has other numbers in \.count\)"),
        (
            {"state": mixed_start()._replace(coarse=jnp.ones(2, jnp.float32))},
            r"\(state has other arrays: \.coarse float32\[\] there and float32\[2\] now\)",
        ),
        (
            {"state": mixed_start()._replace(keys=jax.random.split(jax.random.key(2, impl="rbg"), 2))},
            r"\(state has other numbers in \.keys\)",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses_another_run(unbroken, changed, message):
    folder, _ = unbroken
    arguments = {"process": mixed(), "state": mixed_start(), "num_steps": ROUNDS, "key": KEY, "checkpoint_every": 5}
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(ValueError, match=f"holds another run .*{message}; choose another folder or delete it"):
        pj.run(**{**arguments, **changed}, checkpoint=folder)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("make", [closing_over, closing_over_deeper])
def test_refuses_a_number_inside_a_function(tmp_path, make):
    def start(number, folder):
        process = make(number)
        return pj.run(process, process.init(), 2, checkpoint=folder)

    first, second = np.array([1.0, 2.0]), np.array([1.0, 2.5])
    start(first, tmp_path / "run")
    with pytest.raises(ValueError, match=r"the program of process or save is another one"):
        start(second, tmp_path / "run")
    start(first.copy(), tmp_path / "run")


def test_refuses_other_versions(tmp_path, unbroken):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    settings = json.loads((folder / "run.json").read_text())
    settings["versions"]["jax"] = "0.1"
    (folder / "run.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"versions is \{'jax': '0.1'"):
        pj.run(mixed(), mixed_start(), ROUNDS, key=KEY, checkpoint=folder, checkpoint_every=5)


def test_refuses_what_is_not_a_run(tmp_path):
    walk = closing_over(1.0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "run.json").write_text("[1]")
    for name in ("mine", "file", "json"):
        with pytest.raises(ValueError, match=f"checkpoint='.*{name}' exists and is not a run"):
            pj.run(walk, walk.init(), 2, checkpoint=tmp_path / name)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"every": 2, "checkpoint_every": 3},
            r"checkpoint_every must be a multiple of every, got checkpoint_every=3 and every=2\.",
        ),
        ({"checkpoint_every": 0}, "checkpoint_every must be a whole number of at least 1, got 0"),
        ({"checkpoint_every": 2, "checkpoint": None}, "checkpoint_every needs checkpoint"),
    ],
)
def test_refuses_pieces(tmp_path, kwargs, message):
    walk = closing_over(1.0)
    with pytest.raises(ValueError, match=message):
        pj.run(walk, walk.init(), 4, **{"checkpoint": tmp_path / "run", **kwargs})
    assert not list(tmp_path.iterdir())


def test_refuses_tracers(tmp_path):
    walk = closing_over(1.0)

    def traced(state):
        return pj.run(walk, state, 2, checkpoint=tmp_path / "run")[0]

    for function in (jax.jit(traced), jax.vmap(traced), jax.jit(lambda _: traced(np.zeros(2)))):
        with pytest.raises(ValueError, match="checkpoint cannot be given inside jit"):
            function(jnp.zeros((2, 2)))
    assert not list(tmp_path.iterdir())


def test_orbax_is_imported_late_and_says_nothing(tmp_path):
    script = f"""
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
import jax, jax.numpy as jnp, plural_jax as pj
assert not any(name.split(".")[0] == "orbax" for name in sys.modules)
process = pj.Process(init=lambda: jnp.zeros(2), step=lambda key, state: (state + 1, state))
for _ in range(2):
    pj.run(process, process.init(), 2, checkpoint={str(tmp_path / "run")!r})
logging.getLogger("absl").info("as before")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=_root())
    assert not result.stderr
    assert [line for line in result.stdout.splitlines() if "absl" in line] == ["INFO:absl:as before"]


_CHILD = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import plural_jax as pj
from tests.test_checkpoints import KEY, mixed, mixed_start

class Told:
    def start(self, total, description): print("started", flush=True)
    def advance(self, amount): print(amount, flush=True)
    def stop(self): pass

pj.run(mixed(), mixed_start(), int(sys.argv[2]), key=KEY, checkpoint=sys.argv[1], checkpoint_every=5, progress=Told())
print("done", flush=True)
"""


def _root():
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.end_to_end
def test_killed_run_goes_on(tmp_path):
    """SIGKILL at a random moment, computing or writing; the rest is computed here, by another process."""
    num_steps, folder = 120, tmp_path / "run"
    wait = secrets.randbelow(500) / 1000
    words = [sys.executable, "-c", _CHILD, str(folder), str(num_steps)]
    environment = {**os.environ, "PYTHONPATH": _root(), "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, cwd=_root())
    assert child.stdout.readline().strip() == "started"
    assert child.stdout.readline().strip() == "5"
    time.sleep(wait)
    child.send_signal(signal.SIGKILL)
    told = child.communicate()[0]
    meter = Interrupt()
    kwargs = {"key": KEY, "checkpoint_every": 5}
    resumed = pj.run(mixed(), mixed_start(), num_steps, checkpoint=folder, progress=meter, **kwargs)
    assert "done" not in told
    # The checkpoint of a piece is complete before the meter hears of it; one more may have been written since.
    assert meter.told[0] - 5 * len(told.split()) in (5, 10), f"killed after {wait} s"
    whole = pj.run(mixed(), mixed_start(), num_steps, checkpoint=tmp_path / "whole", **kwargs)
    assert_identical(resumed, whole)
    assert rounds_in(folder) == [115, 120]


def test_interrupted_retraining_goes_on(tmp_path):
    """A Gaussian mixture retrained on its own curated samples; every run makes its process anew, as a new program does."""

    def retrained():
        reward = pj.rewards.quadratic([[-2.0, 0.0], [2.0, 0.0]], 0.5)
        model = pj.models.gaussian_mixture(one_component_rounds=5)
        return pj.retraining.loop(model, reward, [0.5, 0.5], num_candidates=200, num_curated=100)

    start, settings = retrained().init(KEY), {"num_steps": 10, "key": KEY, "checkpoint_every": 5}
    interrupted(tmp_path / "run", 5, retrained(), start, **settings)
    meter = Interrupt()
    resumed = pj.run(retrained(), start, checkpoint=tmp_path / "run", progress=meter, **settings)
    assert meter.told == [5, 5]
    assert_identical(resumed, pj.run(retrained(), start, checkpoint=tmp_path / "whole", **settings))
