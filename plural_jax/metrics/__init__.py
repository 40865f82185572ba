"""What the samples of a round are like: class coverage, variances and Fréchet distances of images, lengths of texts."""

from plural_jax.metrics.classes import (
    ImageMetrics,
    class_entropy,
    class_shares,
    feature_variance,
    image_metrics,
    intra_class_variance,
    kl_to_uniform,
)
from plural_jax.metrics.frechet import (
    Moments,
    classifier_frechet_distance,
    fid,
    frechet_distance,
    inception_moments,
    merge,
    moments,
)
from plural_jax.metrics.text import distinct_n, length_entropy, length_shares

__all__ = [
    "ImageMetrics",
    "Moments",
    "class_entropy",
    "class_shares",
    "classifier_frechet_distance",
    "distinct_n",
    "feature_variance",
    "fid",
    "frechet_distance",
    "image_metrics",
    "inception_moments",
    "intra_class_variance",
    "kl_to_uniform",
    "length_entropy",
    "length_shares",
    "merge",
    "moments",
]
