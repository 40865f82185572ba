"""`plural-jax train-classifier`: the classifier whose probabilities are the rewards of the image experiments."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

from plural_jax import data, labels
from plural_jax.progress import meter


@dataclasses.dataclass(frozen=True)
class TrainClassifier:
    """Train VGG11 with batch normalization on CIFAR-10 and keep it where the image experiments look for a classifier."""

    data: Path | None = None
    """Folder or archive of CIFAR-10; default: where PLURAL_JAX_DATA points, the cache, or a download."""
    out: Path | None = None
    """Folder for the classifier, its history and its checkpoints; default: cifar10_vgg11 in the cache."""
    epochs: int = 200
    """Passes over the 50,000 training images."""
    batch_size: int = 256
    """Images in a step."""
    learning_rate: float = 0.1
    """The highest; it rises in the first epoch and falls along a cosine."""
    weight_decay: float = 5e-4
    """Of kernels."""
    label_smoothing: float = 0.0
    """Probability that the target spreads evenly over all classes; it makes probabilities, and so rewards, less extreme."""
    cutout: int = 0
    """Side of a square, in pixels, that each training image loses at a random place."""
    hidden: tuple[int, ...] = ()
    """Widths of linear layers before the last one, such as 512 512."""
    dropout: float = 0.0
    """Share of the numbers of hidden linear layers that are dropped at random in training."""
    average: float | None = None
    """Decay of a moving average of the network over steps, which then is the classifier."""
    width: float = 1.0
    """Factor on the number of channels, for a smaller network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which the network computes; bfloat16 is faster on a GPU or TPU."""
    checkpoint_every: int = 1
    """Epochs between checkpoints, which are what an interruption loses at most; on a GPU an epoch takes about a second."""
    seed: int = 0
    """Seed of the start, the order of images and their augmentation."""
    progress: bool = True
    """Show a progress bar."""


def train(command: TrainClassifier) -> str:
    """Train, save, and say what came out; an interrupted training goes on where it was, with the same command."""
    import jax

    from plural_jax.models import classifiers

    out = command.out or data.cache_folder() / "cifar10_vgg11"
    config = classifiers.TrainingConfig(
        network=classifiers.VGG(hidden=command.hidden, width=command.width),
        epochs=command.epochs,
        batch_size=command.batch_size,
        learning_rate=command.learning_rate,
        weight_decay=command.weight_decay,
        label_smoothing=command.label_smoothing,
        cutout=command.cutout,
        dropout=command.dropout,
        average=command.average,
        dtype=command.dtype,
    )
    shown = meter(command.progress)
    images, known = (data.cifar10(command.data, split="train"), data.cifar10(command.data, split="test"))
    classifier, history = classifiers.train_classifier(
        *images, config, key=jax.random.key(command.seed), test=known, checkpoint=out / "run",
        checkpoint_every=command.checkpoint_every, progress=shown,
    )  # fmt: skip
    reached = float(history.test_accuracy[-1])
    classifier = dataclasses.replace(
        classifier, name=f"{config.network.name}, {100 * reached:.2f} % of test images, {command.epochs} epochs"
    )
    classifiers.save_classifier(out / "vgg11.npz", classifier)
    told = {**dataclasses.asdict(command), **labels.versions(), "test_accuracy": history.test_accuracy.tolist()}
    (out / "training.json").write_text(json.dumps(told, indent=2, default=str) + "\n")
    return (
        f"{100 * reached:.2f} % of the test images after {command.epochs} epochs (the paper's VGG11: 92.39 %).\n"
        f"The classifier is {out / 'vgg11.npz'}, its history {out / 'training.json'}.\n"
    )
