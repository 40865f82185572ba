"""Features of images from the Inception-v3 network of the Fréchet Inception distance (FID), with weights from a local file.

The weights are the ones that pytorch-fid and torch-fidelity use, `pt_inception-2015-12-05-6726825d.pth`: converted from the
network that the distance was defined with. Any other weights, and the Inception-v3 of torchvision, give other numbers.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, static_field
from plural_jax._typing import ArrayLike
from plural_jax.models import inception_blocks
from plural_jax.models.classifiers.state_dict import read_state_dict

#: Names in the weight file and in the network; kernels change the order of their axes too.
_NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")
_NUM_OUTPUTS = 1008


@pytree_dataclass
class FeatureExtractor:
    """Inception features of images, `extractor(images) -> [n, 2048]`; made by `load_inception`.

    Attributes:
        params: nested dictionary of float32 arrays.
        batch_size: images that the network sees at once, which bounds the memory (about 25 MB an image).
    """

    params: dict[str, Any]
    batch_size: int = static_field(default=50)

    def __call__(self, images: ArrayLike) -> Array:
        """Features after the last average.

        Args:
            images: [n, height, width, 3] in [-1, 1], of any size; resized to 299 x 299, bilinearly.

        Returns:
            float32 [n, 2048]. The number of images and their size are static.
        """
        check_images(images)
        return _features(self, jnp.asarray(images))


@jax.jit
def _features(extractor: FeatureExtractor, images: Array) -> Array:
    n = images.shape[0]
    size = min(n, extractor.batch_size)
    # Filled up to whole batches: `lax.map` would compile the network once more for the rest.
    fill = -n % size
    padded = jnp.concatenate([images, jnp.zeros((fill, *images.shape[1:]), images.dtype)]) if fill else images
    batches = padded.reshape(-1, size, *images.shape[1:])
    features = jax.lax.map(lambda batch: inception_blocks.apply(extractor.params, batch), batches)
    return features.reshape(-1, features.shape[-1])[:n]


def check_images(images: ArrayLike, name: str = "images") -> None:
    """Refuse what is not a batch of colour images."""
    shape = np.shape(images)
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"{name} must have shape [n, height, width, 3], got {shape}.")
    if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        raise ValueError(f"{name} must be floating-point numbers in [-1, 1], got {jnp.result_type(images)}.")


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in PyTorch's layout, without those of the classifier, which features do not need.

    Example:
        >>> shapes = weight_shapes()
        >>> shapes["Conv2d_1a_3x3.conv.weight"], len(shapes)
        ((32, 3, 3, 3), 470)
    """
    return {entry: _torch_shape(leaf.shape) for entry, _, leaf in _entries()}


def _entries() -> Iterator[tuple[str, tuple[str, ...], jax.ShapeDtypeStruct]]:
    """Of every array: its name in a file, its path in the network, its shape there."""
    names = {ours: theirs for theirs, ours in _NAMES.items()} | {"kernel": "weight"}
    shapes = nnx.to_pure_dict(inception_blocks.structure()[1])
    for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = tuple(key.key for key in keys)
        yield ".".join((*path[:-1], names[path[-1]])), path, leaf


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width, inputs, outputs become outputs, inputs, height, width."""
    return tuple(shape[axis] for axis in (3, 2, 0, 1)) if len(shape) == 4 else tuple(shape)


def inception_from_state_dict(weights: Mapping[str, ArrayLike], batch_size: int = 50) -> FeatureExtractor:
    """The extractor with weights that are already in memory.

    Args:
        weights: arrays by PyTorch's names, as `weight_shapes` lists them; a classifier's (`fc`) and counters are left out.
        batch_size: images that the network sees at once.

    Raises:
        ValueError: a name that is missing, a shape that does not fit, NaN or infinity; the weights of another Inception-v3.
    """
    batch_size = _validate.positive_integer(batch_size, "batch_size")
    outputs = np.shape(weights["fc.weight"])[0] if "fc.weight" in weights else _NUM_OUTPUTS
    if outputs != _NUM_OUTPUTS or any(name.startswith("AuxLogits.") for name in weights):
        raise ValueError(
            f"weights must be those of FID's Inception-v3 (2015-12-05, {_NUM_OUTPUTS} outputs), got another Inception-v3, "
            f"with {outputs} outputs: its distances would not be FID."
        )
    params: dict[str, Any] = {}
    missing = [entry for entry, _, _ in _entries() if entry not in weights]
    if missing:
        raise ValueError(f"weights must hold {missing[0]!r}, which is missing ({len(missing)} names are).")
    for entry, path, leaf in _entries():
        value = np.asarray(weights[entry], np.float32)
        if value.shape != _torch_shape(leaf.shape):
            raise ValueError(f"weights[{entry!r}] must have shape {_torch_shape(leaf.shape)}, got {value.shape}.")
        if not np.isfinite(value).all():
            raise ValueError(f"weights[{entry!r}] must be finite.")
        place = params
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
    return FeatureExtractor(params, batch_size)


def load_inception(path: str | os.PathLike[str], batch_size: int = 50) -> FeatureExtractor:
    """The extractor with weights from a file; `find_inception` looks for one.

    Args:
        path: a PyTorch state dict, or the same arrays as `.safetensors` or `.npz`. Where the name ends in eight hexadecimal
            digits, as `pt_inception-2015-12-05-6726825d.pth`, they are the beginning of the file's SHA-256 and are checked.
        batch_size: images that the network sees at once.

    Returns:
        A pure function of images [n, height, width, 3] in [-1, 1], usable inside `jit`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is damaged or holds other weights.

    Source: https://github.com/mseitzer/pytorch-fid (its releases hold the weights).
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path must be a file with Inception-v3 weights, got {str(path)!r}.")
    expected = re.search(r"-([0-9a-f]{8})$", file.stem)
    if expected:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if not found.startswith(expected[1]):
            raise ValueError(f"path {str(path)!r} is damaged: its SHA-256 begins with {found[:8]}, not {expected[1]}.")
    return inception_from_state_dict(read_state_dict(file), batch_size)


def find_inception(path: str | os.PathLike[str] | None = None) -> Path | None:
    """Where weights of the Inception-v3 network lie, or None: then FID is not computed.

    Looked for in this order: the argument; files whose names begin with `inception` or `pt_inception` in the folder that the
    environment variable `PLURAL_JAX_DATA` names, or in its subfolder `inception`; the same in `~/.cache/plural_jax`; the file
    that pytorch-fid or torch-fidelity has downloaded into PyTorch's cache. Nothing is downloaded.

    Args:
        path: the file; None to look elsewhere.

    Raises:
        FileNotFoundError: a path was given and is not there.
    """
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"path must be a file with Inception-v3 weights, got {str(path)!r}.")
        return Path(path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    data = os.environ.get("PLURAL_JAX_DATA")
    for folder in ([Path(data)] if data else []) + [cache / "plural_jax"]:
        for place in (folder, folder / "inception"):
            for pattern in ("inception*", "pt_inception*"):
                for file in sorted(place.glob(pattern)):
                    if file.is_file() and file.suffix in _SUFFIXES:
                        return file
    torch_cache = Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"
    return next(iter(sorted(torch_cache.glob("*inception-2015-12-05-*.pth"))), None)
