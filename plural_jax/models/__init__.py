"""Models that are refit in every round: each is a `Model` of pure functions `init`, `sample`, `fit` and `log_prob`."""

from plural_jax.models.base import Model
from plural_jax.models.clustering import KMeansResult, kmeans
from plural_jax.models.counting import histogram
from plural_jax.models.maximization import EMResult, MixtureParams, em
from plural_jax.models.mixture import gaussian_mixture

__all__ = ["EMResult", "KMeansResult", "MixtureParams", "Model", "em", "gaussian_mixture", "histogram", "kmeans"]
