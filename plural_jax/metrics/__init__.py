"""What the generated images of a round are like: class coverage and variances, Fréchet distances."""

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

__all__ = [
    "ImageMetrics",
    "Moments",
    "class_entropy",
    "class_shares",
    "classifier_frechet_distance",
    "feature_variance",
    "fid",
    "frechet_distance",
    "image_metrics",
    "inception_moments",
    "intra_class_variance",
    "kl_to_uniform",
    "merge",
    "moments",
]
