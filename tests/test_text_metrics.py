"""Entropy of lengths against SciPy, distinct phrases against sets of tuples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from plural_jax.metrics.text import distinct_n, length_entropy, length_shares


@pytest.mark.parametrize("width", [1, 3])
def test_lengths_against_scipy(rng, width):
    lengths = rng.integers(0, 26, 200)
    counts = np.bincount(lengths // width, minlength=25 // width + 1)
    shares = length_shares(lengths, 25, width)
    assert shares.dtype == jnp.result_type(float) and shares.shape == (25 // width + 1,)
    np.testing.assert_allclose(shares, counts / 200, rtol=1e-14)
    np.testing.assert_allclose(length_entropy(lengths, 25, width), stats.entropy(counts), rtol=1e-12)
    # More room changes nothing.
    np.testing.assert_allclose(length_entropy(lengths, 100, width), stats.entropy(counts), rtol=1e-12)


def test_extremes():
    assert length_entropy([7] * 9, 7) == 0
    np.testing.assert_allclose(length_entropy(np.arange(8), 7), np.log(8), rtol=1e-14)
    assert length_entropy([0], 5) == 0


def test_inside_of_transformations(rng):
    lengths = rng.integers(0, 10, (4, 30)).astype(np.int32)
    each = [float(length_entropy(row, 9)) for row in lengths]
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda row: length_entropy(row, 9)))(lengths), each, rtol=1e-14)
    # Where they cannot be read, lengths outside count for the first and last bin.
    shares = jax.jit(lambda row: length_shares(row, 4, 2))(jnp.array([-3, 0, 4, 90]))
    np.testing.assert_array_equal(shares, [0.5, 0, 0.5])
    with jax.enable_x64(False):
        assert length_entropy(jnp.array([1, 2]), 3).dtype == jnp.float32


def test_distinct_n(rng):
    rows = rng.integers(0, 5, (40, 12))
    rows[:, :3][rng.random((40, 3)) < 0.1] = 9
    rows[rng.random((40, 12)) < 0.1] = 9
    for n in (1, 2, 3, 7):
        phrases = []
        for row in rows.tolist():
            own = row[: row.index(9)] if 9 in row else row
            phrases += [tuple(own[i : i + n]) for i in range(len(own) - n + 1)]
        assert distinct_n(rows, 9, n) == len(set(phrases)) / len(phrases)
        assert distinct_n(jnp.asarray(rows), 9, n) == distinct_n(rows, 9, n)
    assert np.isnan(distinct_n(rows, 9, 13)) and np.isnan(distinct_n(np.full((3, 4), 9), 9, 1))
    assert distinct_n(np.zeros((5, 20), int), 9, 2) == 1 / 95


def test_what_is_refused():
    cases = [
        (lambda: length_shares([], 5), r"lengths must hold .* at least one text, \[n\], got shape \(0,\)"),
        (lambda: length_shares([[1]], 5), "lengths must hold"),
        (lambda: length_shares([1.5], 5), "lengths must be whole numbers, got float"),
        (lambda: length_entropy([1, 6], 5), r"lengths must lie between 0 and max_length=5, got \[1, 6\]"),
        (lambda: length_entropy([-1], 5), "lengths must lie between 0 and"),
        (lambda: length_entropy([1], 5, width=0), "width must be a whole number of at least 1, got 0"),
        (lambda: length_entropy([1], 0), "max_length must be a whole number"),
        (lambda: distinct_n([1, 2], 0, 1), r"tokens must be integers \[texts, length\], got int"),
        (lambda: distinct_n([[0.5]], 0, 1), "tokens must be integers"),
        (lambda: distinct_n([[1]], 0, 0), "n must be a whole number of at least 1, got 0"),
        (lambda: jax.jit(lambda t: distinct_n(t, 0, 1))(jnp.zeros((2, 2), int)), "counted on the host"),
    ]
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()
