"""Classifiers from and to files: networks of PyTorch that are recognized by their names, and our own format."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plural_jax.models.classifiers import layers, resnet, vgg
from plural_jax.models.classifiers.base import CIFAR, CIFAR_WITHIN, IMAGENET, Classifier
from plural_jax.models.classifiers.layers import Arrays, Network
from plural_jax.models.classifiers.resnet import ResNet
from plural_jax.models.classifiers.state_dict import read_state_dict
from plural_jax.models.classifiers.vgg import VGG

_KIND = "plural_jax classifier"
_HEADER = "classifier.json"
_NETWORKS: dict[str, type[Any]] = {"VGG": VGG, "ResNet": ResNet}


def load_classifier(
    path: str | Path,
    network: Network | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
) -> Classifier:
    """A classifier from a file of `save_classifier`, or from the state dict of a well-known network for CIFAR-10.

    Recognized by the names of the arrays: the residual networks of akamaster/pytorch_resnet_cifar10 (any depth), and VGG networks
    with batch normalization with one linear layer (kuangliu/pytorch-cifar) or three (chenyaofo/pytorch-cifar-models,
    huyvnphan/PyTorch_CIFAR10, torchvision). Formats of files: see `read_state_dict`.

    Args:
        path: of the file.
        network: what must be in it; default: whatever is.
        mean, std: of the channels of images in [0, 1], by which the network's input is normalized; default: the numbers that were
            published with networks of that layout, or that the file says.
        name: what results say that they used; default: the network's name, its layout and the name of the file.

    Raises:
        ValueError: what `read_state_dict` refuses; arrays of no network known here, or of another than `network`.

    Source: C.5 of the paper, whose VGG11 has the accuracy of huyvnphan's (92.39 %).
    """
    arrays = read_state_dict(path)
    if _HEADER in arrays:
        found = _own(arrays, path)
    elif resnet.is_resnet(arrays):
        found = _published(path, resnet.from_state_dict(arrays), "akamaster's layout", IMAGENET)
    elif vgg.is_vgg(arrays):
        parts = vgg.from_state_dict(arrays)
        if parts[0].hidden == (4096, 4096):
            found = _published(path, parts, "huyvnphan's layout", CIFAR)
        else:
            found = _published(path, parts, f"{'chenyaofo' if parts[0].hidden else 'kuangliu'}'s layout", CIFAR_WITHIN)
    else:
        names = ", ".join(list(arrays)[:3])
        raise ValueError(
            f"path={str(path)!r} holds no network that is known here (a ResNet or VGG for CIFAR-10); it begins with {names}."
        )
    if network is not None and found.network != network:
        raise ValueError(f"path={str(path)!r} holds {found.network}, but network={network}.")
    given: dict[str, Any] = {"mean": mean, "std": std, "name": name}
    return dataclasses.replace(found, **{key: value for key, value in given.items() if value is not None})


def save_classifier(path: str | Path, classifier: Classifier) -> None:
    """Write a classifier to one `.npz` file, from which `load_classifier` gives the same one.

    The file appears whole or not at all. It can be read by anything that reads NumPy's format.

    Args:
        path: of the file; it is overwritten.
        classifier: its network is a `VGG` or a `ResNet`.

    Raises:
        ValueError: another network.

    Example:
        >>> import jax, os, tempfile
        >>> from plural_jax.models import classifiers
        >>> classifier = classifiers.new_classifier(classifiers.ResNet(depth=8, width=2), jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "classifier.npz")
        ...     classifiers.save_classifier(path, classifier)
        ...     classifiers.load_classifier(path).name
        'resnet8 (untrained)'
    """
    network, path = classifier.network, Path(path)
    if type(network) not in _NETWORKS.values():
        raise ValueError(f"network must be a VGG or a ResNet to be saved, got {network!r}.")
    header = {
        "kind": _KIND,
        "network": type(network).__name__,
        "config": dataclasses.asdict(network),  # type: ignore[call-overload]
        **{name: getattr(classifier, name) for name in ("name", "mean", "std", "batch_size")},
    }
    arrays: dict[str, Any] = {_HEADER: np.array(json.dumps(header))}
    for part in ("params", "statistics"):
        arrays |= {f"{part}/{name}": np.asarray(leaf) for name, leaf in _named(getattr(classifier, part))}
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def _named(tree: Arrays) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield "/".join(str(key.key) for key in path), leaf


def _published(path: str | Path, parts: tuple[Network, Arrays, Arrays], layout: str, by: tuple[Any, Any]) -> Classifier:
    network, *trees = parts
    params, statistics = (jax.tree.map(jax.numpy.asarray, tree) for tree in trees)
    return Classifier(params, statistics, network, f"{network.name} ({layout}, {Path(path).name})", *by)


def _own(arrays: dict[str, np.ndarray], path: str | Path) -> Classifier:
    """What `save_classifier` wrote."""
    try:
        header = json.loads(str(arrays[_HEADER]))
        config = {name: _tuples(value) for name, value in header["config"].items()}
        network = _NETWORKS[header["network"]](**config)
        fields = {name: _tuples(header[name]) for name in ("name", "mean", "std", "batch_size")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path={str(path)!r} is no classifier that this version can read ({error!r}).") from None
    trees = []
    for part, tree in zip(("params", "statistics"), layers.shapes(network), strict=True):
        leaves = []
        for name, described in _named(tree):
            array = arrays.get(f"{part}/{name}")
            if array is None or array.shape != described.shape:
                raise ValueError(f"path={str(path)!r} is damaged: {part}/{name} is missing or has another shape.")
            leaves.append(jax.numpy.asarray(array, described.dtype))
        trees.append(jax.tree.unflatten(jax.tree.structure(tree), leaves))
    return Classifier(trees[0], trees[1], network, **fields)


def _tuples(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
