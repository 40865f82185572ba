"""The U-Net and its convolutions, against XLA's own derivatives, finite differences and its stated symmetries."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import plural_jax as pj
from plural_jax.models.convolution import (
    _by_images,
    _by_matrix,
    _by_rule,
    _by_xla,
    convolve,
    convolve_doubled,
    convolve_pointwise,
)
from plural_jax.models.network import in_pieces, num_params
from plural_jax.models.unet import _Normalization

SMALL = pj.models.UNetConfig(
    size=8, image_channels=2, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2
)


@pytest.fixture(scope="module")
def small():
    """A network and parameters without its zeros, so that every layer counts."""
    network = pj.models.unet(SMALL)
    params = jax.jit(network.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return network, jax.tree.unflatten(tree, moved), jax.jit(network.apply)


@pytest.fixture(scope="module")
def pull_back(small):
    """From a cotangent of the velocities to those of the parameters and of the images."""
    apply = small[0].apply
    return jax.jit(lambda p, time, x, v: jax.vjp(lambda p, x: apply(p, time, x, None), p, x)[1](v))


@pytest.mark.parametrize(("height", "width"), [(5, 6), (4, 6), (1, 1), (1, 2), (2, 2), (2, 3)])
def test_convolution_is_the_sum_it_says(rng, height, width):
    x, k = rng.normal(size=(2, height, width, 3)), rng.normal(size=(3, 3, 3, 4))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, height, width, 4))
    for a in range(3):
        for b in range(3):
            expected += padded[:, a : a + height, b : b + width] @ k[a, b]
    np.testing.assert_allclose(convolve(jnp.asarray(x), jnp.asarray(k)), expected, rtol=1e-10, atol=1e-10)
    if height % 2 == width % 2 == 0:
        every_other = convolve(jnp.asarray(x), jnp.asarray(k), 2)
        np.testing.assert_allclose(every_other, expected[:, ::2, ::2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs", [2, 4])
@pytest.mark.parametrize(("height", "width", "stride"), [(4, 6, 1), (4, 6, 2), (2, 2, 1), (2, 2, 2), (1, 1, 1)])
def test_both_rules_of_the_derivative_agree(rng, height, width, stride, outputs):
    x, k = jnp.asarray(rng.normal(size=(2, height, width, 3))), jnp.asarray(rng.normal(size=(3, 3, 3, outputs)))
    dy = jnp.asarray(rng.normal(size=(2, height // stride, width // stride, outputs)))
    plain = lambda x, k: _by_xla(x, k, stride)  # noqa: E731
    expected = jax.vjp(plain, x, k)[1](dy)
    for rule in (
        _by_images,
        functools.partial(_by_rule, _by_matrix if max(height, width) <= 2 else _by_xla),
        lambda *given, stride: jax.vjp(lambda x, k: convolve(x, k, stride), x, k)[1](dy),
    ):
        for ours, theirs in zip(rule(x, k, dy, stride=stride), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (3, 5), (3, 1), (1, 4), (2, 2), (1, 1)])
def test_convolution_of_doubled_images(rng, height, width):
    x, k = jnp.asarray(rng.normal(size=(2, height, width, 3))), jnp.asarray(rng.normal(size=(3, 3, 3, 4)))
    dy = jnp.asarray(rng.normal(size=(2, 2 * height, 2 * width, 4)))
    plain = lambda x, k: _by_xla(jnp.kron(x, jnp.ones((1, 2, 2, 1))), k, 1)  # noqa: E731
    expected, pull_back = jax.vjp(plain, x, k)
    np.testing.assert_allclose(convolve_doubled(x, k), expected, rtol=1e-10, atol=1e-12)
    out, ours = jax.vjp(convolve_doubled, x, k)
    np.testing.assert_array_equal(out, convolve_doubled(x, k))
    for mine, theirs in zip(ours(dy), pull_back(dy), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (6, 4), (4,)])
def test_pointwise_convolution(rng, shape):
    x, k, dy = (jnp.asarray(rng.normal(size=s)) for s in (shape, (4, 3), (*shape[:-1], 3)))
    y, ours = jax.vjp(convolve_pointwise, x, k)
    np.testing.assert_allclose(y, np.einsum("...c,co->...o", x, k), rtol=1e-12)
    dx, dk = ours(dy)
    np.testing.assert_allclose(dx, np.einsum("...o,co->...c", dy, k), rtol=1e-12)
    np.testing.assert_allclose(dk, np.reshape(x, (-1, 4)).T @ np.reshape(dy, (-1, 3)), rtol=1e-12)


@pytest.mark.parametrize(("channels", "num_groups"), [(8, 2), (24, 6), (7, 1), (200, 25)])
def test_normalization_is_that_of_flax(rng, channels, num_groups):
    ours = _Normalization(channels, nnx.Rngs(0))
    assert ours.norm.num_groups == num_groups
    x, scale, bias = (
        jnp.asarray(3 + 2 * rng.normal(size=s), jnp.float32) for s in ((2, 4, 6, channels), channels, channels)
    )
    ours.norm.scale[...], ours.norm.bias[...] = scale, bias
    expected = ours.norm(x)
    np.testing.assert_allclose(ours(x), expected, rtol=1e-5, atol=2e-5)
    of_time = jnp.asarray(rng.normal(size=(2, 2 * channels)), jnp.float32)
    factor, shift = of_time[:, None, None, :channels], of_time[:, None, None, channels:]
    np.testing.assert_allclose(ours(x, of_time), expected * (1 + factor) + shift, rtol=1e-5, atol=1e-4)
    half = ours(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=0.02, atol=0.15)


def test_derivative_against_finite_differences(small, pull_back, rng):
    _, params, apply = small
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
    time = jnp.array([0.2, 0.9], jnp.float32)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    loss = lambda p: jnp.mean(jnp.sin(apply(p, time, x, None)))  # noqa: E731
    out = apply(params, time, x, None)
    gradient, _ = pull_back(params, time, x, jnp.cos(out) * np.float32(1 / out.size))
    slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    h = np.float32(1e-3)
    there, back = (
        jax.tree.map(lambda p, d, s=s: p + s * h * d, params, direction) for s in (np.float32(1), np.float32(-1))
    )
    np.testing.assert_allclose(slope, (loss(there) - loss(back)) / (2 * h), rtol=0.05, atol=2e-3)


def test_images_do_not_mix(small, rng):
    _, params, apply = small
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
    time = jnp.array([0.2, 0.9], jnp.float32)
    both = apply(params, time, x, None)
    swapped = apply(params, time[::-1], x[::-1], None)[::-1]
    np.testing.assert_allclose(both, swapped, rtol=1e-4, atol=1e-5)
    changed = apply(params, time.at[0].set(0.7), x, None)
    assert not np.allclose(changed[0], both[0], atol=1e-3)
    np.testing.assert_allclose(changed[1], both[1], rtol=1e-4, atol=1e-5)


def test_every_parameter_and_pixel_counts(small, pull_back, rng):
    _, params, apply = small
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
    time = jnp.array([0.2, 0.9], jnp.float32)
    only = jnp.zeros((2, 8, 8, 2), jnp.float32).at[:, 3, 3].set(2 * apply(params, time, x, None)[:, 3, 3])
    gradient, by_x = pull_back(params, time, x, only)
    flat, _ = jax.tree_util.tree_flatten_with_path(gradient)
    silent = [jax.tree_util.keystr(path) for path, g in flat if not jnp.any(g != 0)]
    assert not silent
    assert jnp.all(jnp.any(by_x != 0, axis=-1))  # attention and the coarse level see the whole image


def test_dropout_needs_a_key(small, rng):
    network, params, _ = small
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
    time = jnp.array([0.2, 0.9], jnp.float32)
    with_key = jax.jit(lambda key: network.apply(params, time, x, key))
    assert not np.allclose(with_key(jax.random.key(0)), with_key(jax.random.key(1)), atol=1e-4)
    np.testing.assert_array_equal(with_key(jax.random.key(0)), with_key(jax.random.key(0)))


@pytest.mark.parametrize("n", [4, 7])
def test_pieces_of_a_large_batch_give_the_same(small, rng, monkeypatch, n):
    network, params, apply = small
    x, time = jnp.asarray(rng.normal(size=(n, 8, 8, 2)), jnp.float32), jnp.asarray(rng.uniform(size=n), jnp.float32)
    calls = []
    counted = network._replace(
        apply=lambda params, time, x, key: calls.append((len(x), key)) or apply(params, time, x, key)
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    cut = in_pieces(counted)
    np.testing.assert_array_equal(cut.apply(params, time, x, None), apply(params, time, x, None))
    assert [length for length, _ in calls] == [n]  # so little is not worth a second compilation
    monkeypatch.setattr("plural_jax.models.network._FEWEST_PRODUCTS", 0)
    calls.clear()
    np.testing.assert_allclose(cut.apply(params, time, x, None), apply(params, time, x, None), rtol=1e-4, atol=1e-5)
    assert [length for length, _ in calls] == [len(piece) for piece in np.array_split(np.arange(n), 4)]
    calls.clear()
    cut.apply(params, time, x, jax.random.key(0))
    assert len({tuple(jax.random.key_data(key).tolist()) for _, key in calls}) == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert in_pieces(network) is network


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("tiny", 1e4, 2e5),
        ("0.5M", 4e5, 7e5),
        ("3M", 2.5e6, 3.5e6),
        ("9M", 7e6, 1.1e7),
        ("19M", 1.8e7, 2e7),
        ("paper", 3.4e7, 4e7),
    ],
)
def test_presets_have_the_size_they_say(name, low, high):
    network = pj.models.unet(name)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert low < num_params(params) < high, num_params(params)
    x = jax.ShapeDtypeStruct((2, *network.shape), jnp.float32)
    out = jax.eval_shape(network.apply, params, jax.ShapeDtypeStruct((2,), jnp.float32), x, None)
    assert out.shape == x.shape and out.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


@pytest.mark.end_to_end
def test_half_precision_is_close(rng):
    full = pj.models.unet(SMALL)
    half = pj.models.unet(pj.models.UNetConfig(**{**SMALL.__dict__, "dtype": "bfloat16"}))
    params = jax.tree.map(lambda p: p + 0.05, full.init(jax.random.key(0)))
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
    time = jnp.array([0.2, 0.9], jnp.float32)
    a, b = full.apply(params, time, x, None), half.apply(params, time, x, None)
    assert b.dtype == jnp.float32
    assert jnp.linalg.norm(a - b) < 0.05 * jnp.linalg.norm(a)
    assert not jnp.array_equal(a, b)


def test_equal_configurations_compile_once():
    count = 0

    @jax.jit
    def apply(network, params, time, x):
        nonlocal count
        count += 1
        return network.apply(params, time, x, None)

    for _ in range(2):
        network = pj.models.unet("tiny")
        apply(
            network, network.init(jax.random.key(0)), jnp.zeros(1, jnp.float32), jnp.zeros((1, 32, 32, 3), jnp.float32)
        )
    assert count == 1
