"""Experiments: the folder that a run leaves, and what its numbers must be."""

import dataclasses
import json
import math
import shutil

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import tyro
import xarray as xr
import zarr

import plural_jax as pj
from plural_jax.experiments import EXPERIMENTS, c9, e2, e5, e6, execute, get, plane

pytestmark = pytest.mark.end_to_end

_COARSE = {"num_steps": 6, "spacing": 0.25, "reach": 4.5}
_CONFIGS = {
    "c9": c9.Config(),
    "e2": e2.Config(distance=(0.0, 1.0, 2.0, 3.0, 5.0), **_COARSE),
    "e5": e5.Config(phi=(0.2, 0.5, 0.8), **_COARSE),
    "e6": e6.Config(phi=(0.5,), pool_size=(2.0, 5.0, 25.0, 100.0, 400.0), **_COARSE),
}
_TABLES = {
    "c9": {"table3", "table4", "table5"},
    "e2": {"distances", "transition"},
    "e5": {"weights"},
    "e6": {"pools", "decay"},
}
_FIGURES = {
    "c9": {"figure12", "figure13", "figure14", "densities"},
    "e2": {"figure3", "transition", "figure15"},
    "e5": {"figure6", "figure7", "figure10", "figure10_densities"},
    "e6": {"figure11", "decay"},
}


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
    config = json.loads((run.folder / "config.json").read_text())
    assert config["experiment"] == name
    assert config["num_steps"] == _CONFIGS[name].num_steps
    assert json.loads((run.folder / "versions.json").read_text())["jax"]
    text = (run.folder / "table.txt").read_text()
    for table in run.tables.values():
        assert table.attrs["title"] in text
    for path in run.figures:
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
        else:
            pixels = matplotlib.image.imread(path)[..., :3]
            assert pixels.std() > 0.02, f"{path.name} is blank"
            # Nothing may be cut off: the outermost pixels are background.
            for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
                assert (edge == 1).all(), f"{path.name} is clipped"


@pytest.mark.parametrize("name", _CONFIGS)
def test_the_dataset_alone_gives_the_same_tables_and_figures(run_of, name):
    run = run_of(name)
    opened = xr.open_zarr(run.folder / "dataset.zarr", consolidated=False).load()
    xr.testing.assert_identical(opened.drop_attrs(), run.dataset.drop_attrs())
    for table, values in EXPERIMENTS[name].tables(opened).items():
        assert values.equals(run.tables[table])


@pytest.mark.parametrize(("name", "phi"), [("c9", 0.25), ("e2", 0.5), ("e6", 0.5)])
def test_what_an_animation_shows_is_what_was_run(run_of, name, phi):
    found = run_of(name).dataset
    movie = EXPERIMENTS[name].movie(found)
    distance = np.ptp(np.asarray(movie.optima))
    assert abs(distance - 4) == np.abs(found.distance - 4).min()
    rest = {dim: 0 for dim in ("gamma", "pool_size") if dim in found.dims}
    entropy = found.entropy.sel(phi=phi, distance=distance).isel(rest).values
    assert movie.steps.tolist() == [0, *found.step.values]
    p = np.exp(np.asarray(movie.log_p, np.float64))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(scipy.stats.entropy(p[1:], axis=1), entropy, rtol=1e-4)
    assert f"distance {'D = ' if name == 'c9' else ''}{distance:g}" in movie.caption.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("name", ["c9", "e6"])
def test_a_folder_in_use_is_refused_and_an_interrupted_run_is_resumed(run_of, name, tmp_path):
    run = run_of(name)
    folder = shutil.copytree(run.folder, tmp_path / "run")
    experiment, config = EXPERIMENTS[name], _CONFIGS[name]
    with pytest.raises(ValueError, match="not empty"):
        execute(experiment, config, folder)
    with pytest.raises(ValueError):
        execute(experiment, dataclasses.replace(config, num_steps=5), folder, resume=True)

    # As if the run had been killed before its first batch was complete.
    store = zarr.open_group(folder / "dataset.zarr", mode="r+")
    flags = store["_finished/batches"][...]
    flags.flat[0] = False
    store["_finished/batches"][...] = flags
    first = tuple(slice(0, size) for size in store["reward_mean"].chunks)
    store["reward_mean"][first] = np.full(store["reward_mean"].chunks, np.nan)
    (folder / "table.txt").unlink()

    # Figures would only be drawn once more.
    again = execute(experiment._replace(plot=lambda dataset: {}), config, folder, resume=True)
    xr.testing.assert_identical(again.dataset, run.dataset)
    assert (folder / "table.txt").read_text() == (run.folder / "table.txt").read_text()


def test_an_unknown_experiment_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown experiment 'e99'; choose one of"):
        get("e99")


def test_axes_of_an_experiment_are_options_of_the_command_line():
    words = ["--distance", "0", "2:4:3", "--pool-size", "2", "inf", "--num-steps", "7"]
    config = tyro.cli(e2.Config, args=words)
    assert config == e2.Config(distance=(0.0, 2.0, 3.0, 4.0), pool_size=(2.0, math.inf), num_steps=7)


def test_table_3_has_the_printed_digits_except_for_the_misprinted_distance(run_of):
    # Lower bound, mass, upper bound for phi = 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, copied from the paper.
    printed = {
        2.0: [
            [0.082, 0.090, 0.102],
            [0.235, 0.244, 0.255],
            [0.388, 0.397, 0.408],
            [0.592, 0.603, 0.612],
            [0.745, 0.756, 0.765],
            [0.898, 0.910, 0.918],
        ],
        6.0: [
            [0.093, 0.095, 0.101],
            [0.244, 0.247, 0.252],
            [0.395, 0.399, 0.403],
            [0.597, 0.601, 0.605],
            [0.748, 0.753, 0.756],
            [0.899, 0.905, 0.907],
        ],
    }
    table = run_of("c9").tables["table3"]
    ours = {d: rows[["lower bound", "a/(a+b)", "upper bound"]].to_numpy(float) for d, rows in table.groupby("D")}
    for d, rows in printed.items():
        np.testing.assert_allclose(ours[d], rows, atol=0.001 + 1e-9)
    # What is printed for D = 4 is the rows of D = 2; ours are near those of D = 6.
    bounds = [0, 2]
    assert (abs(ours[4.0] - printed[6.0])[:, bounds] < abs(ours[4.0] - printed[2.0])[:, bounds]).all()
    assert abs(ours[4.0] - printed[6.0]).mean() < 0.5 * abs(ours[4.0] - printed[2.0]).mean()
    assert table.within.all()


def _simulate(distance, gamma, phi, num_steps, temperature=1.0):
    """Reward means and variances by round: large-K rounds as plain sums on another grid, and nothing of the package."""
    axis = np.linspace(-8, 8, 193)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    reward = np.stack([-gamma * ((x - c) ** 2 + y**2) for c in (-distance / 2, distance / 2)])
    p = np.exp(-(x**2 + y**2) / 2)
    p /= p.sum()
    means, variances = [], []
    for _ in range(num_steps):
        tilt = np.exp(reward / temperature)
        z = (p * tilt).sum(axis=(1, 2), keepdims=True)
        p = p * (np.array([phi, 1 - phi])[:, None, None] * tilt / z).sum(axis=0)
        p /= p.sum()
        mean = (p * reward).sum(axis=(1, 2))
        means.append(mean)
        variances.append((p * (reward - mean[:, None, None]) ** 2).sum(axis=(1, 2)))
    return np.array(means), np.array(variances)


@pytest.mark.parametrize(("name", "distance", "phi"), [("e2", 0.0, 0.5), ("e2", 3.0, 0.5), ("e5", 4.0, 0.2)])
def test_rewards_by_round_match_plain_sums_on_another_grid(run_of, name, distance, phi):
    ds = run_of(name).dataset.sel(distance=distance, phi=phi).isel(gamma=0, pool_size=0)
    mean, variance = _simulate(distance, 0.5, phi, _COARSE["num_steps"])
    np.testing.assert_allclose(ds.reward_mean, mean, rtol=1e-7)
    np.testing.assert_allclose(ds.reward_variance, variance, rtol=1e-6)


def test_e2_matches_the_gaussian_closed_form_and_halving_the_spacing_changes_nothing(run_of):
    ds = run_of("e2").dataset
    last = ds.isel(phi=0, gamma=0, pool_size=0)
    closed = plane.closed_form(ds, 0.5, 0.5, ds.distance.values)
    np.testing.assert_allclose(last.reward_mean, closed.reward_mean, rtol=1e-6)
    np.testing.assert_allclose(last.reward_variance, closed.reward_variance, rtol=1e-5)
    np.testing.assert_allclose(last.mean_along, closed["mean"][..., 0], atol=1e-7)
    np.testing.assert_allclose(last.variance_along, closed.covariance[..., 0, 0], rtol=1e-6)
    np.testing.assert_allclose(last.variance_across, closed.covariance[..., 1, 1], rtol=1e-6)
    fine = plane.run("e2", dataclasses.replace(_CONFIGS["e2"], spacing=_COARSE["spacing"] / 2)).isel(step=-1)
    for name in ("reward_mean", "reward_variance", "variance_along", "modes"):
        np.testing.assert_allclose(ds[name].isel(step=-1), fine[name], rtol=1e-5)
    np.testing.assert_allclose(
        plane.differential_entropy(ds.isel(step=-1)), plane.differential_entropy(fine), rtol=0, atol=1e-5
    )


def test_e2_has_one_mode_below_the_transition_and_two_above(run_of):
    ds = run_of("e2").dataset.isel(phi=0, gamma=0, pool_size=0, step=-1)
    assert ds.modes.values.tolist() == [1, 1, 1, 2, 2]
    assert (np.diff(plane.spread(ds).values[1:]) > 0).all()
    assert (abs(ds.weight - 0.5) < 1e-12).all()
    table = run_of("e2").tables["transition"]
    assert table["one point stable up to"].item() == 2.0
    # After six rounds the second mode needs a little more distance than in the limit.
    assert 2.0 < table["two modes from, closed form"].item() < 2.3


def test_e5_is_symmetric_in_the_two_preferences(run_of):
    ds = run_of("e5").dataset.isel(distance=0, gamma=0, pool_size=0)
    np.testing.assert_allclose(ds.weight + ds.weight.values[::-1], 1, atol=1e-12)
    np.testing.assert_allclose(ds.reward_mean.values[..., 0], ds.reward_mean.values[::-1, :, 1], rtol=1e-10)
    np.testing.assert_allclose(ds.reward_variance.values[..., 0], ds.reward_variance.values[::-1, :, 1], rtol=1e-10)
    np.testing.assert_allclose(ds.weight.isel(step=-1), ds.phi, atol=0.01)
    # Against the paper: the reward with the smaller weight has the larger variance.
    variance = ds.reward_variance.sel(phi=0.2)
    assert (variance[:, 0] > variance[:, 1]).all()


def test_round_zero_is_the_start(run_of):
    ds = run_of("e5").dataset
    rounds = plane.with_start(ds, {"phi": 0.2, "distance": 4.0, "gamma": 0.5, "pool_size": math.inf})
    assert rounds.step.values.tolist() == list(range(_COARSE["num_steps"] + 1))
    start = rounds.sel(step=0)
    # Moments of -gamma ||x - mu||^2 under N(0, I) in two dimensions.
    np.testing.assert_allclose(start.reward_mean, -0.5 * (2 + 4), rtol=1e-3)
    np.testing.assert_allclose(start.reward_variance, 0.25 * (4 + 16), rtol=1e-3)
    np.testing.assert_allclose(plane.differential_entropy(rounds)[0], np.log(2 * np.pi * np.e), rtol=1e-3)
    assert abs(start.weight - 0.5) < 1e-12


def test_e6_approaches_the_infinite_pool_like_one_over_k(run_of):
    run = run_of("e6")
    assert run.dataset.pool_size.values.tolist() == [2.0, 5.0, 25.0, 100.0, 400.0, math.inf]
    pools = run.tables["pools"].set_index("K")
    for name in ("sup mean", "sup variance"):
        assert (np.diff(pools[name]) < 0).all()
    for name in ("mean", "variance", "entropy"):
        assert -1.15 < run.tables["decay"][name].item() < -0.9
    assert pools.modes[math.inf] == 2
    assert pools.modes[2.0] == 1  # a contest of pairs is won by the compromise
    assert (run.dataset.modes.sel(pool_size=2.0) == 1).all()


def test_pairs_never_take_mass_from_the_midpoint():
    land = pj.Landscape.on(pj.Grid.uniform(-6.0, 6.0, 121), pj.rewards.quadratic([-4.0, 4.0], gamma=0.5))
    process = pj.density.finite_pool(land, [0.5, 0.5], pool_size=2.0)
    _, trace = pj.run(process, process.init(land.gaussian(0.0, 2.0)), 60, save="density")
    assert (np.diff(np.asarray(trace.log_p)[:, 60]) > 0).all()


@pytest.mark.parametrize(("pool_size", "phi"), [(5.0, 0.5), (5.0, 0.7), (10.0, 0.3), (math.inf, 0.5), (math.inf, 0.8)])
def test_mass_in_one_point_is_stable_up_to_the_stated_distance(pool_size, phi):
    config = {"temperature": 0.8}
    threshold = float(
        pj.theory.transition_distance(0.5, phi=phi, temperature=config["temperature"], pool_size=pool_size)
    )
    for factor, grows in ((0.97, False), (1.03, True)):
        d = factor * threshold
        mean = (1 - 2 * phi) * d / 2
        land = pj.Landscape.on(
            pj.Grid.uniform(mean - 1e-3, mean + 1e-3, 3), pj.rewards.quadratic([-d / 2, d / 2], gamma=0.5)
        )
        # Basins that hold everything, because a start in one point is refused otherwise.
        process = pj.density.finite_pool(land, [phi, 1 - phi], pool_size=pool_size, temperature=0.8, eps=10.0)
        state = process.init(jnp.array([-jnp.inf, 0.0, -jnp.inf]))
        away = np.asarray(state.log_w)[[0, 2]]
        assert (away > 0).all() if grows else (away < 0).all()
    assert pj.theory.transition_distance(0.5, phi=phi, temperature=config["temperature"], pool_size=2.0) == math.inf


@pytest.mark.parametrize("phi", [0.1, 0.35, 0.5])
def test_the_limit_is_certified(phi):
    distance, rate = np.array([0.0, 0.7, 1.9, 2.05, 2.5, 4.0, 9.0]), 0.5
    weights, atoms = plane.limit_atoms(phi, distance, rate)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
    centers = distance[:, None] / 2 * np.array([-1, 1])
    utility = np.exp(-rate * (atoms[:, None, :] - centers[:, :, None]) ** 2)  # [distance, preference, atom]
    z = (weights[:, None, :] * utility).sum(axis=-1)
    x = np.linspace(-6, 6, 4001)
    w = (np.array([phi, 1 - phi]) / z * np.exp(-rate * (x[:, None, None] - centers) ** 2)).sum(axis=-1)
    # No density reaches more than log max W above this one.
    assert w.max() <= 1 + 1e-6
    apart = abs(atoms[:, 1] - atoms[:, 0]) > 1e-6
    assert not apart[:3].any()
    assert apart[4:].all()
    if phi == 0.5:
        np.testing.assert_allclose(atoms[4:, 1], centers[4:, 1] * np.tanh(2 * rate * centers[4:, 1] * atoms[4:, 1]))
        mean, variance = plane.limit_rewards({"temperature": 1.0}, phi, distance, rate)
        np.testing.assert_allclose(mean[:, 0], -rate * (atoms[:, 1] ** 2 + centers[:, 1] ** 2), rtol=1e-9)
        np.testing.assert_allclose(variance[:, 1], (2 * rate * atoms[:, 1] * centers[:, 1]) ** 2, rtol=1e-9, atol=1e-25)


def test_figures_and_tables_take_several_settings_and_finite_pools(run_of):
    # The four axes are the same in all three, so each can show what another computed.
    ds = run_of("e6").dataset.sel(pool_size=[5.0, math.inf])
    for module in (e2, e5):
        tables, shown = module.tables(ds), module.plot(ds)
        assert set(shown) == _FIGURES[module.EXPERIMENT.name]
        for table in tables.values():
            assert set(table.K) == {5.0, math.inf}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": 0.5, "num_steps": 40}, "spacing=0.5 cannot resolve the density after 40 rounds"),
        ({"distance": (-1.0,)}, "distance must be finite and not negative"),
        ({"std": 0.0}, "std must be positive"),
        ({"gamma": (-1.0,)}, "gamma must not be negative"),
        ({"phi": (1.5,)}, "phi"),
        ({"pool_size": (1.0,)}, "pool_size must be at least 2"),
    ],
)
def test_input_that_cannot_be_used_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plane.run("e2", dataclasses.replace(e2.Config(distance=(1.0,), **_COARSE), **changes))


def test_e6_needs_a_finite_pool():
    with pytest.raises(ValueError, match="finite"):
        e6.run(e6.Config(pool_size=(math.inf,)))
