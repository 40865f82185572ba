"""`plural-jax train-classifier`, on a handful of images."""

import json

import jax
import numpy as np
import pytest

from plural_jax import cli
from plural_jax.experiments import images
from plural_jax.models.classifiers import load_classifier
from tests.test_data import TRAIN, write_packed

pytestmark = pytest.mark.end_to_end


def test_train_and_find_the_classifier(tmp_path, rng, monkeypatch, capsys):
    """It ends where the image experiments look for it; the same command once more trains nothing."""
    kinds = {name: 8 for name in TRAIN} | {"test_batch": 6}
    batches = {
        name: (rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, 10, n).astype(np.uint8))
        for name, n in kinds.items()
    }
    write_packed(tmp_path / "cifar10", batches)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PLURAL_JAX_DATA", raising=False)
    words = [
        "train-classifier",
        "--data",
        str(tmp_path / "cifar10"),
        "--epochs",
        "2",
        "--batch-size",
        "20",
        "--width",
        "0.05",
        "--cutout",
        "8",
        "--hidden",
        "6",
        "5",
        "--dropout",
        "0.3",
        "--average",
        "0.9",
        "--checkpoint-every",
        "2",
    ]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert cli.main([*words, "--no-progress"]) == 0
    assert "% of the test images after 2 epochs" in capsys.readouterr().out
    folder = tmp_path / "cache" / "plural_jax" / "cifar10_vgg11"
    told = json.loads((folder / "training.json").read_text())
    assert len(told["test_accuracy"]) == 2 and told["epochs"] == 2 and told["cutout"] == 8
    assert told["hidden"] == [6, 5]
    found = images.find_classifier()
    assert "2 epochs" in found.name and found.network == load_classifier(folder / "vgg11.npz").network


def test_no_classifier_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PLURAL_JAX_DATA", raising=False)
    try:
        images.find_classifier()
    except ValueError as error:
        assert "none lies in" in str(error) and "train-classifier" in str(error)
    else:
        raise AssertionError("a classifier was found where there is none")
