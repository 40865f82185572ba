"""Image classifiers whose probabilities are rewards and whose features measure distances between sets of images."""

from plural_jax.models.classifiers.base import CIFAR, CIFAR_WITHIN, IMAGENET, Classifier, accuracy, new_classifier
from plural_jax.models.classifiers.loading import load_classifier, save_classifier
from plural_jax.models.classifiers.resnet import ResNet
from plural_jax.models.classifiers.state_dict import read_state_dict
from plural_jax.models.classifiers.training import (
    EpochInfo,
    TrainingConfig,
    TrainingState,
    train_classifier,
    trained,
    training_process,
)
from plural_jax.models.classifiers.vgg import VGG

__all__ = [
    "CIFAR",
    "CIFAR_WITHIN",
    "IMAGENET",
    "VGG",
    "Classifier",
    "EpochInfo",
    "ResNet",
    "TrainingConfig",
    "TrainingState",
    "accuracy",
    "load_classifier",
    "new_classifier",
    "read_state_dict",
    "save_classifier",
    "train_classifier",
    "trained",
    "training_process",
]
