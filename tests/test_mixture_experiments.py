"""Sampled experiments: retrained Gaussian mixtures beside the exact densities."""

import json

import jax
import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from plural_jax.experiments import EXPERIMENTS, e1, e5_mixtures, e6_mixtures, e7, e8, e9_mixtures, execute, mixtures

pytestmark = pytest.mark.end_to_end

SMALL = e1.Config(num_steps=30, num_seeds=12)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return execute(EXPERIMENTS["e1"], SMALL, tmp_path_factory.mktemp("runs") / "e1")


def test_a_run_leaves_a_complete_folder(finished):
    files = {path.name for path in finished.folder.iterdir()}
    assert files == {
        "dataset.zarr", "config.json", "versions.json", "table.txt", "arms.csv", "figure2.png", "figure2.pdf"
    }  # fmt: skip
    assert json.loads((finished.folder / "config.json").read_text())["num_seeds"] == 12
    pixels = matplotlib.image.imread(finished.folder / "figure2.png")[..., :3]
    assert pixels.std() > 0.02
    assert all((edge == 1).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    assert "Figure 2" in (finished.folder / "table.txt").read_text()


def test_two_preferences_keep_their_variance_and_one_loses_it(finished):
    ds = finished.dataset.isel(distance=0)
    two, one = ds.sel(phi=0.5), ds.sel(phi=1.0)
    late = two.isel(step=slice(15, None))
    assert float(late.reward_variance.min()) > 8  # (gamma distance^2)^2 / 4 = 16 in the limit
    weights = late.component_weight.values
    assert abs(weights.mean() - 0.5) < 0.02 and weights.min() > 0.35 and weights.max() < 0.65
    assert float(one.reward_variance.isel(step=-1, preference=0).max()) < 0.01
    assert float(one.reward_variance.isel(preference=0).median("seed")[0]) > 0.3
    # One component in the first five rounds, then two.
    assert (two.component_weight.isel(step=slice(0, 5), component=0) == 1).all()
    assert (two.component_weight.isel(step=5).min("component") > 0).all()
    # The active preference's share of draws; nobody draws for a preference of weight zero.
    assert (one.drawn.isel(preference=0) == 1).all() and np.isnan(one.leakage.isel(preference=1)).all()
    assert float(two.leakage.isel(step=-1).max()) < 0.02
    assert not ds.fault.any()


def test_late_rounds_follow_the_exact_density(finished):
    ds = finished.dataset
    for phi in (0.5, 1.0):
        at, exact = ds.sel(phi=phi, distance=4.0), mixtures.exact(ds, phi, 4.0)
        late = slice(10, None)
        mean = at.reward_mean.mean("seed").isel(step=late)
        spread = at.reward_mean.std("seed").isel(step=late) / np.sqrt(12)
        off = abs(mean.values - exact.reward_mean.values[late])
        assert (off < 5 * spread.values + 0.25).all()


def test_a_single_gaussian_keeps_the_variance_that_it_should():
    """Refit with one component for ever: v = phi (1 - phi) d^2 - 1 / (2 g), and nothing below the transition."""
    config = mixtures.Config(
        phi=(0.5, 0.3), distance=(1.8, 4.0), num_seeds=6, num_steps=40, one_component_rounds=100, num_candidates=4000,
        num_curated=4000,
    )  # fmt: skip
    ds = mixtures.run("test", config)
    # Along the line: E[r_1] - E[r_2] = -2 gamma d E[x], so the variance of the difference tells that of x.
    for phi in config.phi:
        for distance in config.distance:
            last = ds.sel(phi=phi, distance=distance).isel(step=-1)
            expected = mixtures.one_gaussian({"gamma": 0.5, "temperature": 1.0}, phi, distance)
            # Var[r_i] = Var[-gamma (x - mu)^2 - gamma y^2] for Gaussians: 2 g^2 v^2 + 4 g^2 v (m - mu)^2, y gone.
            m = (1 - 2 * phi) * distance / 2
            for i, mu in enumerate((-distance / 2, distance / 2)):
                wanted = 0.25 * (2 * expected**2 + 4 * expected * (m - mu) ** 2)
                got = float(last.reward_variance.isel(preference=i).mean())
                assert got == pytest.approx(wanted, rel=0.12, abs=0.12)


def test_separations(tmp_path):
    """One mode at distance 0 and 1, two at 4, as for the exact density after as many rounds."""
    # As many of everything as the next test, so that both compile once.
    config = e7.Config(distance=(0.0, 1.0, 4.0), num_seeds=12, num_steps=30)
    done = execute(EXPERIMENTS["e7"], config, tmp_path / "e7")
    assert {path.name for path in done.figures} == {
        f"{n}.{s}" for n in ("separations", "figure15") for s in ("png", "pdf")
    }
    # Densities integrate to one, over any grid that holds them.
    step = 0.05
    axis = np.arange(-5, 5, step)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    for distance in (0.0, 4.0):
        last = done.dataset.sel(phi=0.5, distance=distance).isel(step=-1)
        assert mixtures.mean_density(last, points).sum() * step**2 == pytest.approx(1, abs=0.02)
    table = done.tables["separations"].set_index("distance")
    assert table["spread"].isna()[0.0] and abs(table["spread"][1.0]) < 0.3
    assert table["spread"][4.0] == pytest.approx(table["spread, exact"][4.0], abs=0.1)
    for name in ("mean r_1", "var r_1"):
        np.testing.assert_allclose(table[name], table[f"{name}, exact"], rtol=0.15, atol=0.03)


def test_leakage_against_the_exact_density(tmp_path):
    """The first round has the exact leakage of the start; far apart it vanishes, below the transition it does not."""
    config = e8.Config(distance=(1.0, 3.0, 5.0), num_seeds=12, num_steps=30)
    done = execute(EXPERIMENTS["e8"], config, tmp_path / "e8")
    assert {path.name for path in done.figures} == {"leakage.png", "leakage.pdf"}
    table = done.tables["leakage"].set_index(["distance", "round"])
    for distance in config.distance:
        # N(0, 1) tilted by the reward: mean w d / 2 and variance 1 / 2, w = 1 / 2, on the wrong side of 0.
        expected = stats.norm.cdf(-0.5 * distance / 2 / np.sqrt(0.5))
        assert table["exact"][distance, 1] == pytest.approx(expected, abs=1e-3)
        assert table["leakage"][distance, 1] == pytest.approx(expected, abs=0.03)
    assert table["leakage"][5.0, 30] < 0.01 and table["leakage"][1.0, 30] > 0.2


def test_weights_track_phi_beside_the_exact_density(tmp_path):
    # As many of everything as `SMALL`, so that both compile once.
    config = e5_mixtures.Config(phi=(0.2, 0.5), num_seeds=SMALL.num_seeds, num_steps=SMALL.num_steps)
    done = execute(EXPERIMENTS["e5-mixtures"], config, tmp_path / "e5")
    table = done.tables["weights"]
    np.testing.assert_allclose(table["weight, exact"], table["phi"], atol=0.01)
    np.testing.assert_allclose(table["weight"], table["phi"], atol=0.05)
    np.testing.assert_allclose(table["var r_1"], table["var r_1, exact"], rtol=0.15)
    assert {path.name for path in done.figures} == {"weights.png", "weights.pdf"}


def test_small_pools_lose_pluralism_as_the_exact_density_does(tmp_path):
    config = e6_mixtures.Config(pool_size=(2.0, float("inf")), num_seeds=8, num_steps=20)
    done = execute(EXPERIMENTS["e6-mixtures"], config, tmp_path / "e6")
    table = done.tables["pools"].set_index("K")
    np.testing.assert_allclose(table["mean r_1"], table["mean r_1, exact"], rtol=0.15)
    assert table["var r_1"][2.0] < 0.2 * table["var r_1"][float("inf")]
    assert table["distinct"][2.0] == 500  # pools of two from a thousand candidates share none
    again = execute(EXPERIMENTS["e6-mixtures"], config, tmp_path / "e6", resume=True)
    assert again.tables["pools"].equals(done.tables["pools"])
    with pytest.raises(
        ValueError, match=r"pool_size must hold whole numbers from 2 to num_candidates=1000, or inf, got 2.5"
    ):
        e6_mixtures.run(e6_mixtures.Config(pool_size=(2.5,)))


def test_baselines_beside_their_exact_densities(tmp_path):
    names = ("averaged reward", "greedy", "accumulated data")
    config = e9_mixtures.Config(baselines=names, num_seeds=8, num_steps=15)
    done = execute(EXPERIMENTS["e9-mixtures"], config, tmp_path / "e9")
    assert {path.name for path in done.figures} == {"baselines.png", "baselines.pdf"}
    table = done.tables["baselines"].set_index("baseline")
    assert tuple(table.index) == names
    for name in ("mean r_1", "mean r_2", "var r_1", "var r_2"):
        np.testing.assert_allclose(table[name], table[f"{name}, exact"], rtol=0.25, atol=0.05, err_msg=name)
    # The averaged reward ends at one point, greedy selection keeps both preferences, and takes few candidates.
    assert table["near center 1"]["averaged reward"] < 0.05 < 0.2 < table["near center 1"]["greedy"] < 0.4
    assert table["distinct"]["greedy"] < 0.7 * table["distinct"]["averaged reward"]
    again = execute(EXPERIMENTS["e9-mixtures"], config, tmp_path / "e9", resume=True)
    assert again.tables["baselines"].equals(done.tables["baselines"])
    with pytest.raises(ValueError, match=r"baselines must be among several preferences, .*, got 'nobody'"):
        e9_mixtures.run(e9_mixtures.Config(baselines=("nobody",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": 0.0}, "std must be positive, got 0.0"),
        ({"num_curated": 0}, "num_curated must be at least 1, got 0"),
        ({"phi": (1.5,)}, "phi must lie between 0 and 1, got 1.5"),
        ({"distance": (-1.0,)}, "distance must be finite and not negative, got -1"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        e1.run(e1.Config(**changes))


def test_seeds_differ_and_repeat():
    config = mixtures.Config(num_seeds=2, num_steps=3)
    first, again = mixtures.run("test", config), mixtures.run("test", config)
    np.testing.assert_array_equal(first.reward_mean, again.reward_mean)
    assert (first.reward_mean.isel(seed=0) != first.reward_mean.isel(seed=1)).all()
    other = mixtures.run("test", mixtures.Config(num_seeds=2, num_steps=3, seed=1))
    assert (first.reward_mean.values != other.reward_mean.values).all()
    jax.block_until_ready(other.reward_mean.values)
