"""Image classifiers whose probabilities are rewards and whose features measure distances between sets of images."""

from plural_jax.models.classifiers.state_dict import read_state_dict

__all__ = ["read_state_dict"]
