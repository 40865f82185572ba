"""Models that are refit in every round: each is a `Model` of pure functions `init`, `sample`, `fit` and `log_prob`."""

from plural_jax.model import Model
from plural_jax.models import classifiers
from plural_jax.models.clustering import KMeansResult, kmeans
from plural_jax.models.codec import Codec, band_limited
from plural_jax.models.counting import histogram
from plural_jax.models.dense import dense_field
from plural_jax.models.flow import Integrator, flow, integrate, log_density
from plural_jax.models.flow_training import FlowTraining, pretraining
from plural_jax.models.gpt2 import GPT2S, Decoder, GPT2Config, gpt2
from plural_jax.models.gpt2_files import load_gpt2, save_gpt2
from plural_jax.models.inception import find_inception, load_inception
from plural_jax.models.language_model import language_model, mean_loss
from plural_jax.models.maximization import EMResult, MixtureParams, em
from plural_jax.models.mixture import gaussian_mixture
from plural_jax.models.network import Network, load_params, num_params, save_params
from plural_jax.models.text_sampling import generate, nucleus_sample
from plural_jax.models.text_training import TextTraining, text_pretraining, token_losses
from plural_jax.models.unet import UNETS, UNetConfig, unet

__all__ = [
    "GPT2S",
    "UNETS",
    "Codec",
    "Decoder",
    "EMResult",
    "FlowTraining",
    "GPT2Config",
    "Integrator",
    "KMeansResult",
    "MixtureParams",
    "Model",
    "Network",
    "TextTraining",
    "UNetConfig",
    "band_limited",
    "classifiers",
    "dense_field",
    "em",
    "find_inception",
    "flow",
    "gaussian_mixture",
    "generate",
    "gpt2",
    "histogram",
    "integrate",
    "kmeans",
    "language_model",
    "load_gpt2",
    "load_inception",
    "load_params",
    "log_density",
    "mean_loss",
    "nucleus_sample",
    "num_params",
    "pretraining",
    "save_gpt2",
    "save_params",
    "text_pretraining",
    "token_losses",
    "unet",
]
