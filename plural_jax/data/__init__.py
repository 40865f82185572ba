"""Real data: a local copy first, a download with a checksum where there is none."""

from plural_jax.data.byte_pairs import BytePairs, byte_pairs, small_byte_pairs
from plural_jax.data.cifar10 import CLASSES, ImageData, cifar10, to_bytes, to_signed
from plural_jax.data.files import DATA_VARIABLE, cache_folder, download, locate
from plural_jax.data.wikitext2 import WikiText, paragraphs, sentences, wikitext2

__all__ = [
    "CLASSES",
    "DATA_VARIABLE",
    "BytePairs",
    "ImageData",
    "WikiText",
    "byte_pairs",
    "cache_folder",
    "cifar10",
    "download",
    "locate",
    "paragraphs",
    "sentences",
    "small_byte_pairs",
    "to_bytes",
    "to_signed",
    "wikitext2",
]
