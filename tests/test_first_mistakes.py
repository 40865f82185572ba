"""The mistakes that a newcomer makes first: the message names what is wrong and says what to do.

Found by trying, with nothing read but the README and the pages of the documentation. Each row is one mistake and the words that
its message must hold.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax import checkpoints, cli, commands, store

GRID = pj.Grid.uniform(-5.0, 5.0, 20)
REWARD = pj.rewards.quadratic([-2.0, 2.0], gamma=0.5)
MEASURED = np.random.default_rng(0).normal(size=(30, 2))  # a row for each sample


def landscape():
    return pj.Landscape(rewards=MEASURED.T)


def process():
    return pj.density.large_pool(landscape(), phi=[0.3, 0.7])


def init(key):
    return jnp.zeros(1)


def sample(key, params, num):
    return params + jax.random.normal(key, (num, 1))


def fit(key, params, samples, weights):
    return samples.mean(axis=0)


def loop(reward=REWARD, phi=(0.3, 0.7), **changed):
    functions = {name: changed.pop(name, own) for name, own in (("init", init), ("sample", sample), ("fit", fit))}
    sizes = {"num_candidates": 8, "num_curated": 8}
    return pj.retraining.loop(pj.models.Model(**functions), reward, phi, **{**sizes, **changed})


def one_round(made):
    return made.step(jax.random.key(1), made.init(jax.random.key(0)))


def sweep(make, **axes):
    return pj.sweep(make, num_steps=2, **(axes or {"phi": [0.2, 0.5]}))


def made(phi):
    return pj.density.large_pool(landscape(), phi=phi)


def choosing(phi):
    return made(jnp.stack([phi, 1 - phi]) if phi < 0.3 else [0.5, 0.5])


def not_returned(x):
    jnp.stack([x[:, 0], -x[:, 0]], axis=-1)


def flat_on_the_host(x):
    return np.asarray(x)[:, 0]


def failing_on_the_host(x):
    return np.asarray(x)[:, 7]


PYTHON = {
    "a row for each sample": (
        lambda: pj.density.solve_limit(pj.Landscape(rewards=MEASURED), phi=[0.3, 0.7]),
        ["each of the 30 preferences", "rewards [m, n] have shape (30, 2): Landscape(rewards=table.T)"],
    ),
    "an array for a landscape": (
        lambda: pj.density.large_pool(MEASURED.T, phi=[0.3, 0.7]),
        ["landscape must be a Landscape, got an array of shape (2, 30)", "Landscape(rewards=table)"],
    ),
    "a reward for a landscape": (
        lambda: pj.density.large_pool(REWARD, phi=[0.3, 0.7]),
        ["landscape must be a Landscape, got Quadratic", "Landscape.on(grid, reward)"],
    ),
    "a grid for a table": (lambda: pj.Landscape(GRID, REWARD), ["rewards must be an array", "got Grid"]),
    "reward before grid": (
        lambda: pj.Landscape.on(REWARD, GRID),
        ["grid must be a Grid", "got Quadratic", "the order is Landscape.on(grid, reward)"],
    ),
    "a table for a function": (
        lambda: pj.Landscape.on(GRID, MEASURED),
        ["reward must be a function of points", "got an array of shape (30, 2)", "Landscape(rewards=table)"],
    ),
    "an array for the axes of a grid": (lambda: pj.Grid(np.linspace(0, 1, 5)), ["Grid.uniform(low, high, num) makes"]),
    "one weight of two": (lambda: made(0.3), ["got shape ()", "give both, such as phi=[0.3, 0.7]", "[phi, 1 - phi]"]),
    "weights rounded": (
        lambda: pj.density.solve_limit(pj.Landscape(rewards=np.eye(3)), phi=[0.333, 0.333, 0.333]),
        ["phi must sum to 1", "0.999; dividing by the sum makes it 1"],
    ),
    "no pool size": (
        lambda: pj.density.finite_pool(landscape(), [0.3, 0.7], pool_size=None),
        ["pool_size must be a number of at least 2, got None", "float('inf')"],
    ),
    "infinity as a word": (
        lambda: pj.density.finite_pool(landscape(), [0.3, 0.7], pool_size="inf"),
        ["pool_size must be", "got 'inf'"],
    ),
    "infinite pool of samples": (lambda: loop(pool_size=float("inf")), ["got inf", "None lets every draw look at all"]),
    "probabilities for log-masses": (
        lambda: process().init(np.full(30, 1 / 30)),
        ["log_p holds probabilities", "jnp.log"],
    ),
    "a key for a density": (lambda: process().init(jax.random.key(0)), ["got a PRNG key", "process.init()"]),
    "run of a landscape": (
        lambda: pj.run(landscape(), process().init(), 2),
        ["process must be a Process, such as pj.density.large_pool(...)", "got Landscape"],
    ),
    "init not called": (lambda: pj.run(process(), process().init, 2), ["state must be what process.init() returned"]),
    "log-masses for a state": (
        lambda: pj.run(process(), landscape().uniform(), 2),
        ["state must be what process.init() returned, got an array of shape (30,)", "process.init(log_p)"],
    ),
    "traced number of rounds": (
        lambda: jax.jit(lambda n: pj.run(process(), process().init(), n))(3),
        ["num_steps must be a whole number", "a Python int and not an array"],
    ),
    "start without a key": (lambda: loop().init(), ["needs a PRNG key", "process.init(jax.random.key(0))"]),
    "a seed for a key": (
        lambda: pj.run(process(), process().init(), 2, key=0),
        ["key must be a PRNG key, got 0; give jax.random.key(0)"],
    ),
    "a seed to start with": (lambda: loop().init(0), ["key must be a PRNG key", "got 0; give jax.random.key(0)"]),
    "many keys": (
        lambda: loop().init(jax.random.split(jax.random.key(0), 3)),
        ["got an array of PRNG keys of shape (3,)"],
    ),
    "rounds without a key": (
        lambda: pj.run(loop(), loop().init(jax.random.key(0)), 2),
        ["because candidates and choices are drawn at random", "got None; give jax.random.key(0)"],
    ),
    "reward of one sample": (
        lambda: pj.Landscape.on(GRID, lambda x: jnp.stack([-((x[0] - 1) ** 2), -((x[0] + 1) ** 2)])),
        ["to rewards [n, m], got shape (2, 1)", "all samples at once", "jax.vmap"],
    ),
    "reward without preferences": (
        lambda: loop(lambda x: -(x[:, 0] ** 2)),
        ["shape (8, 2) for 8 samples and 2 weights phi, got shape (8,)", "jnp.stack([first, second], axis=-1)"],
    ),
    "reward the wrong way round": (
        lambda: loop(lambda x: jnp.stack([x[:, 0], -x[:, 0]])),
        ["got shape (2, 8)", "jnp.stack([first, second], axis=-1)"],
    ),
    "reward as a list": (
        lambda: loop(lambda x: [x[:, 0], -x[:, 0]]),
        ["got shape", "jnp.stack([first, second], axis=-1)"],
    ),
    "reward without return": (lambda: pj.Landscape.on(GRID, not_returned), ["is its return missing?"]),
    "reward on the host of the wrong shape": (
        lambda: loop(flat_on_the_host).init(jax.random.key(0)),
        ["called on the host", "shape (8, 2), got shape (8,)", "axis=-1"],
    ),
    "reward on the host that fails": (
        lambda: loop(failing_on_the_host).init(jax.random.key(0)),
        ["the reward, called on the host with NumPy arrays, failed: IndexError"],
    ),
    "reward before model": (
        lambda: pj.retraining.loop(REWARD, pj.models.gaussian_mixture(), [0.3, 0.7]),
        ["model must be a Model", "got Quadratic; the order is loop(model, reward, phi)"],
    ),
    "model not called": (
        lambda: pj.retraining.loop(pj.models.gaussian_mixture, REWARD, [0.3, 0.7]),
        ["such as pj.models.gaussian_mixture(), got the function gaussian_mixture"],
    ),
    "policy by name": (lambda: loop(policy="greedy"), ["policy must come from pj.curation", "got 'greedy'"]),
    "policy not called": (lambda: loop(policy=pj.curation.no_curation), ["got the function no_curation"]),
    "real data without a weight": (lambda: loop(real=np.zeros((5, 1))), ["real needs real_weight"]),
    "fit without weights": (
        lambda: loop(fit=lambda key, params, samples: params),
        ["model.fit must be a function (key, params, samples, weights), got one of (key, params, samples)"],
    ),
    "sample without a key": (
        lambda: loop(sample=lambda params, num: jnp.zeros((num, 1))),
        ["model.sample must be a function (key, params, num), got one of (params, num)"],
    ),
    "parameters for a function": (
        lambda: loop(init=jnp.zeros(1)),
        ["model.init must be a function (key), got an array"],
    ),
    "samples of another number": (
        lambda: loop(sample=lambda key, params, num: jnp.zeros((1, num))),
        ["model.sample must return samples with a leading axis of num = 8, got shape (1, 8)"],
    ),
    "numpy in fit": (
        lambda: one_round(loop(fit=lambda key, params, samples, weights: np.asarray(samples).mean(axis=0))),
        ["model.fit must be written with jax.numpy", "jnp.where"],
    ),
    "fit returns something else": (
        lambda: one_round(loop(fit=lambda key, params, samples, weights: {"mean": samples.mean(axis=0)})),
        ["model.fit must return parameters like those of model.init", "'mean'"],
    ),
    "numpy in make": (
        lambda: sweep(lambda phi: made(np.array([phi, 1 - phi]))),
        ["asked for the value of an axis (phi)", "jnp.stack([phi, 1 - phi])"],
    ),
    "a list in make": (lambda: sweep(lambda phi: made([phi, 1 - phi])), ["phi must be one array", "jnp.stack([...])"]),
    "if in make": (lambda: sweep(choosing), ["make must work with traced numbers", "jnp.where for `if`"]),
    "a count as an axis": (
        lambda: sweep(lambda m: made(jnp.ones(m) / m), m=[2, 3]),
        ["make failed in the configuration m=2", "needs a sweep for each value"],
    ),
    "cells as an axis": (
        lambda: sweep(lambda num: pj.Grid.uniform(0.0, 1.0, num), num=[10, 20]),
        ["got 10.0; it sets a shape", "in the configuration num=10"],
    ),
    "an axis under another name": (
        lambda: sweep(lambda p: made([0.5, 0.5]), phi=[0.1]),
        ["make must take the axes by name, (phi), but takes (p)", "missing a required argument: 'p'"],
    ),
    "an option misspelt": (
        lambda: sweep(lambda phi: made([0.5, 0.5]), phi=[0.1], stores="x.zarr"),
        ["unexpected keyword argument 'stores'", "no option of sweep (num_steps, save, every, batch_size, store"],
    ),
    "a process for make": (lambda: sweep(process(), phi=[0.1]), ["make must be a function", "got Process"]),
    "vectors as an axis": (
        lambda: sweep(made, phi=[[0.1, 0.9], [0.5, 0.5]]),
        ["got shape (2, 2); an axis is one number for each configuration"],
    ),
    "a sweep without start": (
        lambda: sweep(lambda phi: loop(phi=jnp.stack([phi, 1 - phi]))),
        ["in a sweep, make returns (process, key)", "in the configuration phi=0.2"],
    ),
}


@pytest.mark.parametrize("mistake", PYTHON)
def test_in_python(mistake):
    call, words = PYTHON[mistake]
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_reward_that_failed_is_the_cause():
    with pytest.raises(ValueError, match="IndexError") as caught:
        loop(failing_on_the_host).init(jax.random.key(0))
    assert isinstance(caught.value.__cause__, IndexError)


def test_a_trace_says_what_it_holds():
    info = pj.density.DensityInfo(**dict.fromkeys(pj.density.DensityInfo._fields, 0.0))
    for missing, held in ((info, "basin_mass"), (pj.process.Density(0.0), "only log_p")):
        with pytest.raises(AttributeError, match=r"save= of pj\.run") as caught:
            missing.weight  # noqa: B018
        assert held in str(caught.value) and "\n" not in str(caught.value)
        assert not hasattr(missing, "_repr_html_") and not hasattr(missing, "__array__")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    checkpoints.RunStore("~/run", {}, None, last_only=False)
    assert (tmp_path / "run" / "run.json").is_file() and not Path("~").exists()
    with pytest.raises(ValueError, match="exists and is not a sweep"):
        store.SweepStore.find("~/run", {})


COMMANDS = {
    "--sweep": ["unknown command '--sweep'", "did you mean sweep?"],
    "e2": ["unknown command 'e2'", "did you mean run e2?"],
    "run E2": ["unknown experiment 'E2'", "did you mean e2?"],
    "run e5_mixtures": ["did you mean e5-mixtures?"],
    "run sweep": ["it is a command: plural-jax sweep"],
    "sweep --phi 0.1,0.3": ["'0.1,0.3' is neither a number nor START:STOP:NUM", "spaces separate values"],
    "sweep --phi 0.1:0.9": ["'0.1:0.9' is neither", "0.1:0.9:9, nine values"],
    "sweep --phis 0.1": ["Unrecognized options: --phis", "Perhaps you meant", "--phi"],
    "limit --phi 0.3": ["give both, such as phi=[0.3, 0.7]"],
    "limit --phi 30 70": ["phi must sum to 1", "dividing by the sum"],
    "limit --rewards semicolons.csv": ["'semicolons.csv' is not a table of numbers", "separated by commas"],
    "limit --rewards empty.csv": ["'empty.csv' must hold a table of samples x preferences"],
    "limit --rewards turned.csv": ["rewards [m, n] have shape (4, 2)"],
    "report nowhere": ["run 'nowhere' does not exist"],
}


@pytest.mark.parametrize("typed", COMMANDS)
def test_on_the_command_line(typed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")  # else words are wrapped
    Path("semicolons.csv").write_text("1;2\n3;4\n")
    Path("empty.csv").write_text("first,second\n")
    Path("turned.csv").write_text("0,1,2,3\n3,2,1,0\n")
    try:
        status = cli.main(typed.split())
    except SystemExit as stop:  # from the parser
        status = stop.code
    told = capsys.readouterr().err
    assert status == 2 and "Traceback" not in told
    for word in COMMANDS[typed]:
        assert word in told
    assert {path.name for path in tmp_path.iterdir()} == {"semicolons.csv", "empty.csv", "turned.csv"}


def test_the_answer_makes_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "limit", lambda case, land: ("found", {}))
    assert commands.answer(commands.Limit(num=3, out=tmp_path / "new" / "limit.json")) == "found"
    assert (tmp_path / "new" / "limit.json").is_file()
