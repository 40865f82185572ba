"""E4 on made-up texts: what a run says, the prediction beside it, runs that share a device, and an interrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from plural_jax.experiments import base, e4, text_theory, texts
from tests.interrupted import kill_in_round

pytestmark = pytest.mark.end_to_end

SMALL = {"preset": "tiny", "distance": (10.0,), "num_steps": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "dataset.zarr"


@pytest.fixture(scope="module")
def dataset(cache, store):
    """A single preference and two, one after another; as from the command line, in float32 with standard promotion."""
    return e4.run(e4.Config(**SMALL, num_seeds=1, cache=cache), store)


def test_rounds_are_what_they_say(dataset):
    ds = dataset
    assert dict(ds.sizes) | {"step": 3, "words": 25, "arm": 2, "seed": 1, "preference": 2} == dict(ds.sizes)
    np.testing.assert_allclose(ds.length_share.sum("words"), 1, rtol=1e-5)
    np.testing.assert_allclose(ds.length_entropy, base.entropy(ds.length_share), atol=1e-5)
    np.testing.assert_allclose(ds.mean_words, (ds.length_share * ds.words).sum("words"), rtol=1e-5)
    for i in range(2):
        target = ds.target.isel(preference=i, drop=True)
        np.testing.assert_allclose(
            ds.reward_mean.isel(preference=i), -(ds.length_share * abs(ds.words - target)).sum("words"), rtol=1e-5
        )
    near = abs(ds.words - 13.0) <= 2
    np.testing.assert_allclose(
        ds.allocation.isel(arm=1, preference=1, step=slice(1, None)),
        ds.length_share.where(near, 0).sum("words").isel(arm=1, step=slice(1, None)),
        atol=1e-6,
    )
    # Both arms start from the same texts, and nothing was drawn before the first round.
    np.testing.assert_array_equal(ds.shown.isel(arm=0, step=0), ds.shown.isel(arm=1, step=0))
    assert np.isnan(ds.drawn.isel(step=0)).all()
    np.testing.assert_allclose(ds.drawn.isel(arm=0, step=1, seed=0), [1, 0])
    joined = ds.num_joined.isel(step=slice(1, None))
    assert (joined >= 1).all() and (joined <= 64).all()


def test_texts_are_real_and_lengths_are_the_models_own(dataset):
    losses = json.loads(dataset.attrs["losses"])
    assert losses["after"] < losses["before"] - 1.5
    table = e4.tables(dataset)
    shown = table["samples"]
    assert (shown.text.map(lambda text: len(text.split())) == shown.words).all() and shown.words.max() > 3
    assert f"{losses['after']:.3f} nats a token" in table["lengths"].attrs["title"]


def test_one_preference_narrows_the_lengths_and_two_keep_more(dataset):
    entropy = dataset.length_entropy.mean("seed")
    assert float(entropy.isel(arm=0, step=-1)) < float(entropy.isel(arm=0, step=0)) - 0.3
    assert float(entropy.isel(arm=0, step=-1)) < float(entropy.isel(arm=1, step=-1)) - 0.3
    assert float(dataset.reward_mean.isel(arm=0, step=-1, preference=0).mean()) > float(
        dataset.reward_mean.isel(arm=0, step=0, preference=0).mean()
    )


def test_figures(dataset):
    for figure in e4.plot(dataset).values():
        figure.canvas.draw()


def test_finished_runs_are_kept_and_guarded(dataset, cache, store):
    again = e4.run(e4.Config(**SMALL, num_seeds=1, cache=cache), store)
    xr.testing.assert_identical(again, dataset)
    with pytest.raises(ValueError, match="was run with another configuration"):
        e4.run(e4.Config(**SMALL, num_seeds=1, cache=cache, temperature=0.6), store)


@pytest.mark.slow  # another minute of compiling
def test_runs_that_share_a_device_are_the_same_runs(dataset, cache):
    shared = e4.run(e4.Config(**SMALL, num_seeds=1, cache=cache, together=2))
    for name in ("length_share", "reward_mean", "held_out_loss"):
        np.testing.assert_allclose(shared[name], dataset[name], rtol=1e-4, atol=1e-4)


def test_prediction_against_a_hand_made_round(rng):
    share = rng.dirichlet(np.ones(12))
    phi, targets, tau = np.array([0.3, 0.7]), np.array([2.0, 9.0]), 0.7
    found = text_theory.predict(share, phi, targets, tau, None, 2)
    p = share
    for expected in found[1:]:
        tilt = np.exp(-np.abs(np.arange(12)[None] - targets[:, None]) / tau)
        p = p * (phi[:, None] * tilt / (tilt @ p)[:, None]).sum(0)
        np.testing.assert_allclose(expected, p, rtol=1e-9)
    pairs = text_theory.predict(share, phi, targets, tau, 2, 1)[1]
    tilt = np.exp(-np.abs(np.arange(12)[None] - targets[:, None]) / tau)
    wins = tilt[:, :, None] / (tilt[:, :, None] + tilt[:, None, :])
    np.testing.assert_allclose(pairs, share * 2 * np.einsum("i,ijk,k->j", phi, wins, share), rtol=1e-7)


@pytest.mark.slow  # two minutes; `tests/test_checkpoints.py` kills shorter runs of the same loop
def test_a_killed_run_has_the_numbers_of_an_unbroken_one(tmp_path, cache):
    words = [sys.executable, "-m", "plural_jax.cli", "run", "e4", "--preset", "tiny", "--distance", "10", "--no-single"]
    words += [
        "--num-steps",
        "8",
        "--num-seeds",
        "1",
        "--cache",
        str(cache),
        "--no-show",
        "--no-progress",
        "--devices",
        "1",
    ]
    environment = {**os.environ, "XLA_FLAGS": ""}

    def run(out, *more):
        done = subprocess.run(
            [*words, "--out", str(out), *more], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr[-800:]
        return xr.open_zarr(out / "dataset.zarr", consolidated=False).load()

    unbroken = run(tmp_path / "whole")
    out = tmp_path / "broken"
    rounds = out / "arms" / "distance-10-seed-0" / "rounds"
    kill_in_round([*words, "--out", str(out)], environment, rounds, first=2)
    assert not (out / "dataset.zarr").exists()
    xr.testing.assert_identical(run(out, "--resume"), unbroken)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_seeds": 0}, "num_seeds must be at least 1, got 0"),
        ({"phi": 1.0}, "phi must be above 0 and below 1, got 1"),
        ({"distance": ()}, "distance must hold at least one distance where single is False"),
        ({"distance": (30.0,)}, "distance must be positive and end at most at the 24 tokens of a text, got 30"),
        ({"distance": (-1.0,)}, "distance must be positive"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        texts.sized(e4.Config(**{**SMALL, "single": False, **options}))
