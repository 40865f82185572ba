"""E3 and E9 on synthetic images: folders, an interrupted run, and the predictions beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from jax.tree_util import Partial

from plural_jax import metrics
from plural_jax.data import CLASSES
from plural_jax.experiments import base, e3, image_arms, image_theory, images, synthetic_images
from tests.interrupted import kill_in_round

pytestmark = pytest.mark.end_to_end

SMALL = {"preset": "tiny", "arms": ("single", "two"), "num_steps": 3}


def command(out, cache):
    """E3 at its smallest; the code that users run, since plain code would take longer to run than this takes to compile."""
    words = ["run", "e3", "--preset", "tiny", "--arms", *SMALL["arms"], "--num-steps", "3"]
    words += ["--cache", str(cache), "--out", str(out)]
    options = ["--devices", "1", "--no-show", "--no-progress"]
    return [sys.executable, "-m", "plural_jax.cli", *words, *options], {**os.environ, "XLA_FLAGS": ""}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


class Finished(NamedTuple):
    """A run's folder and its dataset."""

    folder: Path
    dataset: xr.Dataset


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run that nobody interrupted."""
    out = tmp_path_factory.mktemp("runs") / "e3"
    words, environment = command(out, cache)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-800:]
    return Finished(out, xr.open_zarr(out / "dataset.zarr", consolidated=False).load())


@pytest.mark.slow  # a minute; `tests/test_checkpoints.py` kills shorter runs of the same loop
def test_a_killed_run_has_the_numbers_of_an_unbroken_one(finished, tmp_path, cache):
    """SIGKILL in the rounds of the first arm; the same command with --resume."""
    out = tmp_path / "e3"
    words, environment = command(out, cache)
    kill_in_round(words, environment, out / "arms" / "single" / "rounds", first=1)
    assert not (out / "dataset.zarr").exists()
    done = subprocess.run([*words, "--resume"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-800:]
    resumed = xr.open_zarr(out / "dataset.zarr", consolidated=False).load()
    xr.testing.assert_identical(resumed, finished.dataset)


def test_a_run_leaves_a_complete_folder(finished):
    files = {path.name for path in finished.folder.iterdir()}
    assert files == {
        "dataset.zarr", "config.json", "versions.json", "table.txt", "table1.csv", "leakage.csv",
        "figure4.png", "figure4.pdf", "samples.png", "samples.pdf", "arms",
    }  # fmt: skip
    assert json.loads((finished.folder / "config.json").read_text())["num_steps"] is not None
    text = (finished.folder / "table.txt").read_text()
    assert "FID not computed" in text and "nearest color" in text
    for name in ("figure4", "samples"):
        assert matplotlib.image.imread(finished.folder / f"{name}.png")[..., :3].std() > 0.02


def test_rounds_are_what_they_say(finished):
    ds = finished.dataset
    assert ds.sizes["step"] == 4 and json.loads(ds.attrs["classes"]) == list(CLASSES)
    np.testing.assert_allclose(ds.class_shares.sum("class"), 1, rtol=1e-5)
    np.testing.assert_allclose(ds.class_entropy, base.entropy(ds.class_shares), atol=1e-5)
    np.testing.assert_allclose(ds.class_entropy + ds.kl_to_uniform, np.log(10), rtol=1e-5)
    assert np.isnan(ds.fid).all()  # there are no Inception weights
    assert (ds.classifier_frechet > 0).all() and (ds.feature_variance > 0).all()
    # Before the first round nothing was drawn, and both arms hold the same images.
    assert np.isnan(ds.drawn.isel(step=0)).all()
    np.testing.assert_array_equal(ds.shown.isel(arm=0, step=0), ds.shown.isel(arm=1, step=0))
    # Every arm has its own weights: the draws follow them, and preferences without weight are never active.
    draws, drawn = 3 * 64, ds.drawn.isel(step=slice(1, None)).mean("step")
    for number, name in enumerate(SMALL["arms"]):
        phi = np.asarray(image_arms.get(name).phi)
        np.testing.assert_allclose(ds.phi.isel(arm=number), phi)
        assert (abs(drawn.isel(arm=number) - phi) <= 5 * np.sqrt(phi * (1 - phi) / draws)).all()
    assert {path.name for path in (finished.folder / "arms").iterdir()} == {f"{name}.zarr" for name in SMALL["arms"]}


def test_curation_moves_the_flow(finished):
    """The single preference's class and reward rise; under two both do."""
    ds = finished.dataset
    start, end = ds.isel(step=0), ds.isel(step=-1)
    assert float(end.class_shares.isel(arm=0)[0]) > float(start.class_shares.isel(arm=0)[0]) + 0.1
    assert float(end.reward_mean.isel(arm=0)[0]) > float(start.reward_mean.isel(arm=0)[0]) + 0.5
    both = end.class_shares.isel(arm=1)[:2] - start.class_shares.isel(arm=1)[:2]
    assert (both > 0.03).all()
    # The prediction rises too, and faster: the exact density is refit exactly.
    assert float(end.predicted_share_samples.isel(arm=0)[0]) > 0.6


def test_prediction_against_a_hand_made_round(rng):
    """K = 2, one preference, three images: P(win) pairwise, and classes by their mean rewards."""
    probabilities = rng.dirichlet(np.ones(3), size=4)
    gamma = 3.0
    found = image_theory.predict(probabilities, [0, 2], np.array([1.0, 0.0]), gamma, 1.0, 2, 1)
    reward = np.exp(gamma * probabilities[:, 0])
    p = np.full(4, 0.25)
    after = p * 2 * (p[None, :] * reward[:, None] / (reward[:, None] + reward[None, :])).sum(1)
    predicted = probabilities.argmax(1)
    np.testing.assert_allclose(found.samples[0], np.bincount(predicted, minlength=3) / 4, atol=1e-12)
    np.testing.assert_allclose(found.samples[1], np.bincount(predicted, after, minlength=3), rtol=1e-8)
    members = [probabilities[predicted == c, 0].mean() if (predicted == c).any() else 0.0 for c in range(3)]
    share = np.bincount(predicted, minlength=3) / 4
    reward = np.exp(gamma * np.array(members))
    expected = share * 2 * (share[None, :] * reward[:, None] / (reward[:, None] + reward[None, :])).sum(1)
    np.testing.assert_allclose(found.classes[1], expected, rtol=1e-8, atol=1e-12)


def test_small_pools_lose_a_class():
    """Ten classes, a classifier that is right 92 % of the time: phi K < 1 loses the second class, a larger pool keeps it."""
    confusion = np.full((10, 10), 0.08 / 9)
    np.fill_diagonal(confusion, 0.92)
    phi = np.asarray(image_arms.get("phi-0.2").phi)
    for pool_size, low, high in ((4, 0.0, 0.02), (20, 0.45, 0.5)):
        found = image_theory.predict(confusion, range(5), phi, 5.0, 1.0, pool_size, 25)
        assert low <= base.entropy(found.classes[-1]) <= high
        assert found.classes[-1, :2].sum() > 0.999


def test_preferences_are_for_the_classes_that_were_chosen():
    """Another choice of classes: rewards, basins and the prediction go with it."""
    chosen = ("truck", "cat", "airplane", "dog", "deer")
    preset = images.sized(e3.Config(**SMALL, classes=chosen))
    assert images.classes_of(preset) == (9, 3, 0, 5, 4)
    found = images._predicted_preference(images._preferred(preset), lambda x: (jnp.eye(10)[x], None), jnp.arange(10))
    assert found.tolist() == [2, 5, 5, 1, 4, 3, 5, 5, 5, 0]
    sure = np.eye(10) * 0.9 + 0.01
    shares = image_theory.predict(sure, (9, 3), np.array([0.5, 0.5]), 5.0, 1.0, 4, 20).classes[-1]
    assert shares[9] == pytest.approx(0.5, abs=1e-3) and shares[3] == pytest.approx(0.5, abs=1e-3)


def test_table_1_has_the_papers_rows():
    """Entropy and KL to the uniform distribution of ten classes add up to ln 10 in every printed row."""
    assert len(image_arms.TABLE_1) == 9
    for arm in image_arms.TABLE_1.values():
        assert sum(arm.phi) == pytest.approx(1)
        assert arm.printed[1] + arm.printed[2] == pytest.approx(np.log(10), abs=2e-3)


def test_baselines_are_processes():
    """Every baseline of E9 makes a state of the same images; their rounds are tested with the loop itself."""
    config = e3.Config(**SMALL)
    preset = images.sized(config)
    network = images.network_of(preset)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(network.init, jax.random.key(0)))
    real, _ = synthetic_images.labelled(32, preset.synthetic, 0)
    one = jnp.ones((), jnp.float32)
    of_real = metrics.ImageMetrics(jnp.full(10, 0.1, jnp.float32), one, one, one, one)
    reference = metrics.Moments(32, np.zeros(12), np.eye(12))
    setup = images.Setup(
        preset,
        network,
        params,
        Partial(synthetic_images.NearestColor()),
        "nearest color",
        real,
        of_real,
        reference,
        None,
    )
    for name in image_arms.BASELINES:
        process = images.process_of(config, setup, image_arms.get(name))
        state = jax.eval_shape(process.init, jax.random.key(0))
        state, info = jax.eval_shape(process.step, jax.random.key(1), state)
        assert state.candidates.shape == (256, 8, 8, 3) and info.measured.class_shares.shape == (10,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"arms": ("seven",)}, "arms must be among two, three"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"classes": ("cat", "dog")}, "classes must be 5 different ones of airplane, .*, got cat dog"),
        ({"classes": ("cat", "dog", "cow", "ship", "deer")}, "got cat dog cow ship deer"),
        ({"preset": "cpu", "classifier": "nowhere.npz", "data": "/nonexistent"}, "path"),
    ],
)
def test_refusals(options, says):
    with pytest.raises((ValueError, OSError), match=says):
        e3.run(e3.Config(**{**SMALL, **options}))
