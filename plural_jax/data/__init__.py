"""Real data: a local copy first, a download with a checksum where there is none."""

from plural_jax.data.cifar10 import CLASSES, ImageData, cifar10, to_bytes, to_signed
from plural_jax.data.files import DATA_VARIABLE, cache_folder, download, locate

__all__ = [
    "CLASSES",
    "DATA_VARIABLE",
    "ImageData",
    "cache_folder",
    "cifar10",
    "download",
    "locate",
    "to_bytes",
    "to_signed",
]
