"""Linear maps between images and the smaller ones that a flow models, against SciPy's cosine transform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from jax.tree_util import Partial

import plural_jax as pj
from plural_jax.models.network import Network


def test_encoding_keeps_the_lowest_frequencies(rng):
    images = rng.normal(size=(3, 12, 12, 2))
    codec = pj.models.band_limited(12, 8)
    z = np.asarray(codec.encode(jnp.asarray(images, jnp.float32)))
    waves = scipy.fft.dctn(images, axes=(1, 2), norm="ortho")[:, :8, :8]
    # The factor of each axis is sqrt(small / size), so that a constant image keeps its value.
    np.testing.assert_allclose(z, scipy.fft.idctn(waves, axes=(1, 2), norm="ortho") * 8 / 12, atol=1e-5)


def test_what_was_decoded_comes_back(rng):
    codec = pj.models.band_limited(12, 8)
    z = jnp.asarray(rng.normal(size=(3, 8, 8, 2)), jnp.float32)
    x = codec.decode(z)
    assert x.shape == (3, 12, 12, 2)
    np.testing.assert_allclose(codec.encode(x), z, atol=1e-5)
    # An isometry up to a factor: the squared norm grows with the number of pixels.
    np.testing.assert_allclose(jnp.sum(x**2), jnp.sum(z**2) * (12 / 8) ** 2, rtol=1e-5)


@pytest.mark.end_to_end
def test_a_flow_works_on_what_is_encoded():
    """Samples have the images' size, and a refit sees them as the network does: training on its own samples changes little."""
    codec = pj.models.band_limited(8, 4)
    # A velocity that depends on time and on all pixels, quicker to compile than a U-Net.
    velocity = lambda params, time, x, key: (  # noqa: E731
        jnp.tanh(jnp.concatenate([x.reshape(-1, 48), time[:, None]], axis=1) @ params).reshape(x.shape)
    )
    start = lambda key: 0.1 * jax.random.normal(key, (49, 48), jnp.float32)  # noqa: E731
    network = Network(Partial(start), Partial(velocity), (4, 4, 3))
    training = pj.models.FlowTraining(num_steps=1, batch_size=4)
    euler = pj.models.Integrator("euler", num_steps=2)
    model = pj.models.flow(network, training, integrator=euler, codec=codec, bounds=(-2.0, 2.0))
    params = model.init(jax.random.key(0))
    samples = jax.jit(model.sample, static_argnums=2)(jax.random.key(1), params, 6)
    assert samples.shape == (6, 8, 8, 3) and float(jnp.abs(samples).max()) <= 2.0
    bare = pj.models.flow(network, training, integrator=euler)
    refit = jax.jit(model.fit)(jax.random.key(2), params, samples, None)
    same = jax.jit(bare.fit)(jax.random.key(2), params, codec.encode(samples), None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), refit, same)


@pytest.mark.parametrize("sizes", [(8, 9), (0, 0), (8, 0), (8.5, 4)])
def test_refusals(sizes):
    with pytest.raises(ValueError, match=r"size|small"):
        pj.models.band_limited(*sizes)
