"""Word counts on the device are those of `str.split()`, whatever the tokens; rewards and bins of lengths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plural_jax.data.byte_pairs import byte_pairs, small_byte_pairs
from plural_jax.rewards.text_length import WordCounter, length_reward, nearest_target, word_counter
from tests.real_data import find_real_data, real_data

SPACES = [character for character in map(chr, range(0x110000)) if character.isspace()]
#: First bytes, beginnings and ends of white spaces, their neighbours, and bytes that begin or continue other characters or none.
TELLING = bytes.fromhex("20 09 1c 85 a0 41 c2 c3 e0 e1 e2 e3 ed f0 ff 80 81 8a 8b 9a 9f a8 af bf")
LENGTH = 40


@pytest.fixture(scope="module")
def codes():
    """Bytes, pairs of them, and what there is of white spaces in longer tokens."""
    mixed = ["it rains and it pours", *[f"it{space}{space} rains{space}" for space in SPACES]]
    return small_byte_pairs(mixed * 2, num_tokens=320)


@pytest.fixture(scope="module")
def counter(codes):
    return word_counter(codes)


@pytest.fixture(scope="module")
def gpt2():
    return byte_pairs(real_data("gpt2_bpe"))


def split(codes, rows):
    return [len(text.split()) for text in codes.decode(rows)]


def test_every_short_sequence_of_telling_bytes(codes, counter):
    """All sequences of four, among them all of up to three that end there: 390,625 texts."""
    of_byte = {piece: token for token, piece in enumerate(codes.pieces()) if len(piece) == 1}
    symbols = [of_byte[bytes([byte])] for byte in TELLING] + [codes.end_of_text]
    rows = np.array(list(itertools.product(symbols, repeat=4)), np.int32)
    np.testing.assert_array_equal(counter(rows), split(codes, rows))


def test_every_white_space(codes, counter):
    texts = [
        f"{a}x{space}{b}" for space in SPACES for a in ("", "y ", space) for b in ("", "x", "\u2014", space, "é z")
    ]
    rows = codes.encode(texts, LENGTH)
    np.testing.assert_array_equal(counter(rows), [len(text.split()) for text in texts])
    assert len(SPACES) > 25 and {"\x1c", "\x85", "\u2003", "\u3000"} < set(SPACES)


def test_any_tokens(codes, counter, rng):
    rows = rng.integers(0, codes.num_tokens - 1, (20000, LENGTH))
    rows[rng.random(rows.shape) < 0.02] = codes.end_of_text
    found = counter(rows)
    assert found.dtype == jnp.int32 and found.shape == (20000,)
    np.testing.assert_array_equal(found, split(codes, rows))


def adversarial(codes):
    """Tokens of nothing but bytes that occur in white spaces of several bytes, or that are white space."""
    allowed = set(b"".join(space.encode() for space in SPACES))
    return [token for token, piece in enumerate(codes.pieces()) if piece and set(piece) <= allowed]


def test_any_tokens_of_gpt2(gpt2, rng):
    counter = word_counter(gpt2)
    any_token = rng.integers(0, 50257, (3000, LENGTH))
    spaces = rng.choice(adversarial(gpt2), (12000, LENGTH))
    mixed = np.where(rng.random((5000, LENGTH)) < 0.5, rng.choice(adversarial(gpt2), (5000, LENGTH)), any_token[:1])
    for rows in (any_token, spaces, mixed):
        rows[rng.random(rows.shape) < 0.02] = gpt2.end_of_text
        np.testing.assert_array_equal(counter(rows), split(gpt2, rows))
    # Every token by itself and before a word.
    every = np.arange(50257)
    x = gpt2.encode(["x"], 1)[0, 0]
    rows = np.stack([every, np.full_like(every, x), np.full_like(every, gpt2.end_of_text)], axis=1)
    np.testing.assert_array_equal(counter(rows), split(gpt2, rows))


def test_words_of_real_sentences(gpt2):
    texts = real_data("wikitext2", "test.txt").read_text(encoding="utf-8").split("\n")[:400]
    rows = gpt2.encode(texts, 600)
    assert (rows[:, -1] == gpt2.end_of_text).all()
    np.testing.assert_array_equal(word_counter(gpt2)(rows), [len(text.split()) for text in texts])


_kept = {}


def _kept_codes():
    """As the fixtures, which hypothesis would make anew; of GPT-2 where its files are."""
    if not _kept:
        real = find_real_data("gpt2_bpe")
        _kept["codes"] = (
            small_byte_pairs(["it rains\u2003", "it\u3000\u00a0"] * 2, 265) if real is None else byte_pairs(real)
        )
        _kept["counter"] = word_counter(_kept["codes"])
        _kept["adversarial"] = adversarial(_kept["codes"])
    return _kept["codes"], _kept["counter"], _kept["adversarial"]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_tokens_by_hypothesis(data):
    codes, counter, spaces = _kept_codes()
    token = st.sampled_from(spaces) | st.integers(0, codes.num_tokens - 1)
    tokens = data.draw(st.lists(token, max_size=LENGTH))
    row = np.full(LENGTH, codes.end_of_text)
    row[: len(tokens)] = tokens
    assert counter(row) == len(codes.decode(row)[0].split())


def test_shapes_and_transformations(codes, counter, rng):
    rows = rng.integers(0, codes.num_tokens, (6, 4, 10)).astype(np.int32)
    flat = split(codes, rows.reshape(24, 10))
    np.testing.assert_array_equal(counter(rows), np.reshape(flat, (6, 4)))
    np.testing.assert_array_equal(jax.vmap(counter)(jnp.asarray(rows)), np.reshape(flat, (6, 4)))
    np.testing.assert_array_equal(jax.vmap(counter, in_axes=1)(jnp.asarray(rows)), np.reshape(flat, (6, 4)).T)
    np.testing.assert_array_equal(jax.jit(lambda c, t: c(t))(counter, rows[0]), flat[:4])
    for kind in (np.int64, np.uint16, np.int16):
        np.testing.assert_array_equal(counter(rows[0].astype(kind)), flat[:4])
    assert counter(rows[0, 0]).shape == () and counter(np.zeros((3, 0), int)).tolist() == [0, 0, 0]
    leaves, structure = jax.tree.flatten(counter)
    assert [leaf.dtype for leaf in leaves] == [jnp.int8, jnp.int16]
    assert isinstance(jax.tree.unflatten(structure, leaves), WordCounter)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rewards(codes, counter, rng, dtype):
    """C.6, in the type of the targets."""
    rows = rng.integers(0, codes.num_tokens, (50, 12))
    lengths = np.array(split(codes, rows))
    targets, scale = rng.uniform(0, 9, 3), rng.uniform(0, 2, 3)
    for given_scale in (1.0, scale[0], scale):
        reward = length_reward(counter, jnp.asarray(targets, dtype), given_scale)
        wanted = -given_scale * np.abs(lengths[:, None] - targets)
        assert reward(rows).dtype == dtype
        np.testing.assert_allclose(reward(rows), wanted, rtol=1e-5 if dtype == "float32" else 1e-14, atol=1e-6)
    assert length_reward(counter, [10, 15])(rows).dtype == jnp.result_type(float)


def test_bins(codes, counter, rng):
    lengths = rng.permutation(17)
    rows = codes.encode(["a " * length for length in lengths], LENGTH)
    targets = [2, 5, 12, 6]
    for width in (0, 1, 2.0, 1.5):
        wanted = []
        for length in lengths:
            best = min(range(4), key=lambda i: (abs(length - targets[i]), i))
            wanted.append(best if abs(length - targets[best]) <= width else -1)
        found = nearest_target(counter, targets, width)(rows)
        assert found.dtype == jnp.int32 and -1 in wanted and set(wanted) == {-1, 0, 1, 2, 3}
        np.testing.assert_array_equal(found, wanted)
    # Between two targets, both as near, the first counts.
    row = codes.encode(["a b c d"], 24)
    assert [int(nearest_target(counter, t)(row)[0]) for t in ([3, 5], [5, 3])] == [0, 0]


def test_new_targets_compile_nothing(codes, counter, rng):
    rows = jnp.asarray(rng.integers(0, codes.num_tokens, (8, 12)))
    traces = []

    @jax.jit
    def both(reward, basin, tokens):
        traces.append(1)
        return reward(tokens), basin(tokens)

    for _ in range(3):
        targets, width = rng.uniform(0, 9, 2), rng.uniform(0, 3)
        reward, basin = both(length_reward(counter, targets, width), nearest_target(counter, targets, width), rows)
        np.testing.assert_allclose(reward, length_reward(counter, targets, width)(rows))
        np.testing.assert_array_equal(basin, nearest_target(counter, targets, width)(rows))
    assert len(traces) == 1
    # Arms with targets of their own in one call.
    many = jnp.asarray(rng.uniform(0, 9, (5, 2)))
    found = jax.vmap(lambda t: length_reward(counter, t)(rows))(many)
    bins = jax.jit(jax.vmap(lambda t: nearest_target(counter, t, 1.0)(rows)))(many)
    for i in range(5):
        np.testing.assert_allclose(found[i], length_reward(counter, many[i])(rows))
        np.testing.assert_array_equal(bins[i], nearest_target(counter, many[i], 1.0)(rows))


def test_what_is_refused(codes, counter):
    with pytest.raises(ValueError, match=r"tokens must be integers \[n, length\], got float"):
        counter(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="tokens must be integers"):
        counter(3)
    for make in (length_reward, nearest_target):
        with pytest.raises(ValueError, match="counter must be made by word_counter, got <built-in function len>"):
            make(len, [1, 2])
        with pytest.raises(ValueError, match=r"targets must hold one number of words for each preference, \[m\]"):
            make(counter, 3.0)
        with pytest.raises(ValueError, match=r"targets must be finite, got nan at index \(1,\)"):
            make(counter, [1.0, np.nan])
    with pytest.raises(ValueError, match="scale must not be negative, got"):
        length_reward(counter, [1, 2], [1.0, -2.0])
    with pytest.raises(ValueError, match=r"scale must be a number or one for each of 2 targets, got shape \(3,\)"):
        length_reward(counter, [1, 2], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="width must not be negative, got -1"):
        nearest_target(counter, [1, 2], -1)
    with pytest.raises(ValueError, match=r"width must be a number, got shape \(2,\)"):
        nearest_target(counter, [1, 2], [1, 2])

    class Long:
        end_of_text = 1

        @staticmethod
        def pieces():
            return [b"a " * 32768, b""]

    with pytest.raises(ValueError, match="must not have tokens of more than 32767 words, got one of 32768"):
        word_counter(Long())
