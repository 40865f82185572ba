"""The experiments on finite curated sets and on baselines: the folder that a run leaves, and what its numbers must be."""

import dataclasses
import json

import jax
import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import plural_jax as pj
from plural_jax.experiments import EXPERIMENTS, e9, execute, survival
from tests import oracles

pytestmark = pytest.mark.end_to_end

_CONFIGS = {
    "survival": survival.Config(
        phi=(0.1, 0.3),
        leakage=(0.0, 0.05),
        pool_size=(2.0, float("inf")),
        num_steps=15,
        largest=200,
        simulated_phi=(0.1, 0.3),
        set_size=(8.0, 25.0),
        num_replicas=400,
        num=20,
    ),
    "e9": e9.Config(num_steps=12, num=40, num_replicas=6),
}
_FIGURES = {"survival": {"survival", "required"}, "e9": {"baselines", "densities"}}
_TABLES = {"survival": {"required", "simulated"}, "e9": {"baselines"}}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Each experiment, run once for all tests here that look at it."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = execute(EXPERIMENTS[name], _CONFIGS[name], tmp_path_factory.mktemp("runs") / name)
        return done[name]

    return run


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_run_leaves_a_complete_folder(run_of, name):
    run = run_of(name)
    files = {path.name for path in run.folder.iterdir()}
    assert files == {
        "dataset.zarr",
        "config.json",
        "versions.json",
        "table.txt",
        *(f"{table}.csv" for table in _TABLES[name]),
        *(f"{figure}.{suffix}" for figure in _FIGURES[name] for suffix in ("png", "pdf")),
    }
    assert json.loads((run.folder / "config.json").read_text())["experiment"] == name
    text = (run.folder / "table.txt").read_text()
    for table in run.tables.values():
        assert table.attrs["title"] in text
    for path in run.figures:
        if path.suffix == ".png":
            pixels = matplotlib.image.imread(path)[..., :3]
            assert pixels.std() > 0.02, f"{path.name} is blank"
            for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
                assert (edge == 1).all(), f"{path.name} is clipped"


@pytest.mark.parametrize("name", _CONFIGS)
def test_the_dataset_alone_gives_the_same_tables(run_of, name):
    run = run_of(name)
    opened = xr.open_zarr(run.folder / "dataset.zarr", consolidated=False).load()
    xr.testing.assert_identical(opened.drop_attrs(), run.dataset.drop_attrs())
    for table, values in EXPERIMENTS[name].tables(opened).items():
        assert values.equals(run.tables[table])


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_folder_in_use_is_refused_and_a_finished_run_is_kept(run_of, name):
    run, experiment, config = run_of(name), EXPERIMENTS[name], _CONFIGS[name]
    with pytest.raises(ValueError, match="not empty"):
        execute(experiment, config, run.folder)
    with pytest.raises(ValueError, match="another"):
        execute(experiment, dataclasses.replace(config, num_steps=5), run.folder, resume=True)
    again = experiment.run(config, run.folder / "dataset.zarr", False).load()
    xr.testing.assert_identical(again, run.dataset)


def test_the_seed_decides(run_of):
    """For the baseline that is random by itself; the simulations of `survival` are one sweep with such a key."""
    name, config = "one reward per round", _CONFIGS["e9"]
    i = list(e9.processes(config)).index(name)
    key = jax.random.fold_in(jax.random.key(config.seed), i)
    again = e9._trajectories(e9.processes(config)[name], config, key)
    np.testing.assert_array_equal(again.reward_mean, run_of("e9").dataset.reward_mean.isel(baseline=i))
    # Another key, another run: replicas differ in nothing else.
    assert float(again.reward_mean.std("replica").max()) > 0.1


def test_simulated_plateaus_agree_with_the_chain(run_of):
    table = run_of("survival").tables["simulated"]
    replicas = _CONFIGS["survival"].num_replicas
    counts = np.round(table["plateaus"] * replicas)
    assert (oracles.binomial_chance(counts, replicas, table["chain"]) > 1e-8).all()
    assert table["chain"].between(0.05, 0.95).any()
    # Whoever is in the basin is nearer to its optimum.
    assert (table["bumps, S_1"] <= table["bumps"]).all()


def test_required_samples_are_those_of_the_theory(run_of):
    table = run_of("survival").tables["required"].set_index(["leakage", "phi"])
    closed = np.ceil(np.log(-np.expm1(np.log(0.95) / 15)) / np.log1p(-0.3))
    assert table.loc[(0.0, 0.3), "K = ∞"] == f"{closed:.0f}"
    assert table.loc[(0.0, 0.1), "K = 2"] == ">200"


def test_baselines_follow_their_processes(run_of):
    run, config = run_of("e9"), _CONFIGS["e9"]
    land = e9.landscape(config.distance, config.height, config.width, config.num)
    large = pj.density.large_pool(land, [config.phi, 1 - config.phi])
    _, objective = pj.run(large, large.init(), config.num_steps, save=lambda state, info: info.objective)
    named = dict(zip(json.loads(run.dataset.attrs["baselines"]), run.dataset.baseline.values, strict=True))
    several = run.dataset.sel(baseline=named["several preferences"])
    np.testing.assert_allclose(several.objective.isel(replica=3, step=slice(1, None)), objective, rtol=1e-5)
    # Every baseline starts from the same density, which no curation never leaves.
    start = run.dataset.objective.isel(step=0)
    np.testing.assert_allclose(start, float(start[0, 0]), rtol=1e-6)
    none = run.dataset.objective.sel(baseline=named["no curation"])
    np.testing.assert_allclose(none, float(start[0, 0]), rtol=1e-5)
    # What is random differs between replicas, and nothing else does.
    spread = run.dataset.objective.std("replica").max("step")
    assert {name for name, i in named.items() if spread.sel(baseline=i) > 1e-6} == {"one reward per round"}
    # Real data keep at least their share of every cell, accumulation its initial set.
    p = np.exp(run.dataset.log_p.isel(step=-1, replica=0))
    assert float(p.sel(baseline=named["real data mixed in"]).min()) >= 0.1 / config.num - 1e-9
    assert float(p.sel(baseline=named["accumulated data"]).min()) >= 1 / 13 / config.num - 1e-9


def test_finite_sets_make_every_baseline_random():
    exact, finite = (e9.processes(e9.Config(num=20, set_size=size)) for size in (float("inf"), 30.0))
    assert [name for name, make in exact.items() if e9._is_random(make())] == ["one reward per round"]
    assert all(e9._is_random(make()) for make in finite.values())


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="num_replicas must be at least 1, got 0"):
        e9.run(e9.Config(num_replicas=0))
    with pytest.raises(ValueError, match="num must be even"):
        survival.run(survival.Config(num=21))
    with pytest.raises(ValueError, match="leakage must lie between 0 and 1, got 2"):
        survival.run(survival.Config(leakage=(2.0,)))
    with pytest.raises(ValueError, match="survival must lie between 0 and 1"):
        survival.run(survival.Config(survival=1.5))
