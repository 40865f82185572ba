"""Byte-pair encoding: tokens of an implementation of its own, texts that come back, files in every form."""

import hashlib
import importlib
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from plural_jax.data import files
from plural_jax.data.byte_pairs import BytePairs, byte_pairs, small_byte_pairs
from tests.real_data import real_data

module = importlib.import_module("plural_jax.data.byte_pairs")
CORPUS = [
    "The rain in Spain stays mainly in the plain .",
    "It rains , it pours ; the old man 's snoring . He 'll stay in bed , it 's raining .",
    "Élan vital — 漢字 漢字 漢字 , déjà vu déjà vu 2016 2016 2017",
] * 3
#: GPT-2's cut of texts; for the characters of these tests, \w without digits and "_" is what Unicode calls a letter.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


@pytest.fixture(scope="module")
def small():
    return small_byte_pairs(CORPUS, num_tokens=320)


@pytest.fixture(scope="module")
def gpt2():
    return byte_pairs(real_data("gpt2_bpe"))


def by_hand(text, merges, numbers):
    """Byte-pair encoding from its definition: of all pairs in a word, the one that was learned first is merged, everywhere."""
    rank = {pair: i for i, pair in enumerate(merges)}
    tokens = []
    for word in WORDS.findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while pairs := [pair for pair in itertools.pairwise(parts) if pair in rank]:
            first, second = min(pairs, key=rank.__getitem__)
            merged, i = [], 0
            while i < len(parts):
                if parts[i : i + 2] == [first, second]:
                    merged.append(first + second)
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        tokens += [numbers[part] for part in parts]
    return tokens


def learned(codes):
    """Merges as pairs of bytes, and the number of each sequence of bytes."""
    pieces = codes.pieces()
    pairs = [tuple(pieces[codes._vocabulary[token]] for token in pair) for pair in codes._merges]
    return pairs, {piece: i for i, piece in enumerate(pieces) if i != codes.end_of_text}


def rows_of(codes, texts, length):
    merges, numbers = learned(codes)
    rows = np.full((len(texts), length), codes.end_of_text, np.int32)
    for row, text in zip(rows, texts, strict=True):
        tokens = by_hand(text, merges, numbers)[:length]
        row[: len(tokens)] = tokens
    return rows


def random_texts(rng, num):
    odd = [" ", "  ", "\n", "\t\n ", "rain's", "''", "____", "x_y", "€5", "Ω", "'ll", "<|endoftext|>"]
    words = [*" ".join(CORPUS).split(), *odd]
    return [" ".join(map(str, rng.choice(words, rng.integers(0, 12)))) for _ in range(num)]


def test_tokens_are_those_of_the_definition(small, rng):
    texts = random_texts(rng, 200)
    for length in (1, 17, 100):
        found = small.encode(texts, length)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, rows_of(small, texts, length))


def test_gpt2(gpt2, rng):
    assert (gpt2.num_tokens, gpt2.end_of_text) == (50257, 50256)
    np.testing.assert_array_equal(
        gpt2.encode(["Hello world", "", " Hello"], 4), [[15496, 995, 50256, 50256], [50256] * 4, [18435] + [50256] * 3]
    )
    texts = random_texts(rng, 100)
    np.testing.assert_array_equal(gpt2.encode(texts, 80), rows_of(gpt2, texts, 80))
    tokens = rng.integers(0, 50257, (50, 40))
    theirs = Tokenizer(models.BPE(gpt2._vocabulary, gpt2._merges))
    theirs.decoder = importlib.import_module("tokenizers").decoders.ByteLevel()
    cut = [row[: row.index(50256)] if 50256 in row else row for row in tokens.tolist()]
    assert gpt2.decode(tokens) == theirs.decode_batch(cut)


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(texts):
    codes = _small()
    rows = codes.encode(texts, 1 + max((len(text.encode()) for text in texts), default=0))
    assert codes.decode(rows) == texts
    assert (rows[:, -1] == codes.end_of_text).all()
    if texts:
        assert codes.decode(rows[0]) == codes.decode(jnp.asarray(rows[:1])) == texts[:1]


_kept: list[BytePairs] = []


def _small():
    """As the fixture, which hypothesis would make anew."""
    if not _kept:
        _kept.append(small_byte_pairs(CORPUS, num_tokens=300))
    return _kept[0]


def test_rows_are_cut_and_filled(small):
    text = "It rains , it pours ;"
    whole = small.encode([text], 50)[0]
    size = int((whole != small.end_of_text).sum())
    for length in range(1, size + 3):
        row = small.encode([text], length)[0]
        np.testing.assert_array_equal(row, whole[:length])
        # Up to its size it is cut: no end can be seen.
        assert (small.end_of_text in row) == (length > size)
    assert small.encode([], 3).shape == (0, 3)
    assert small.decode(np.zeros((0, 3), int)) == []
    assert small.decode(np.zeros((2, 0), int)) == ["", ""]


def test_decoding_stops_at_the_first_end(small, rng):
    pieces, end = small.pieces(), small.end_of_text
    assert pieces[end] == b"" and len(pieces) == small.num_tokens == 320
    rows = rng.integers(0, small.num_tokens, (300, 20))
    rows[:150][rng.random((150, 20)) < 0.1] = end
    for row, text in zip(rows, small.decode(rows), strict=True):
        content = b""
        for token in row:
            if token == end:
                break
            content += pieces[token]
        assert text == content.decode("utf-8", errors="replace")
    assert any("\ufffd" in text for text in small.decode(rows))


def test_learning_takes_the_most_frequent_pair(small):
    """Each merge was one of the most frequent pairs within words, given those before it; ties may go either way."""
    words = Counter(word for text in CORPUS for word in WORDS.findall(text))
    parts = {word: [bytes([byte]) for byte in word.encode()] for word in words}
    merges, numbers = learned(small)
    assert len(merges) == 320 - 257
    for i, (first, second) in enumerate(merges):
        counts = Counter()
        for word, found in parts.items():
            for pair in itertools.pairwise(found):
                counts[pair] += words[word]
        assert counts[first, second] == max(counts.values()) >= 2
        assert numbers[first + second] == 256 + i
        for word in parts:
            joined, at = [], 0
            while at < len(parts[word]):
                both = parts[word][at : at + 2] == [first, second]
                joined.append(first + second if both else parts[word][at])
                at += 2 if both else 1
            parts[word] = joined
    assert small.pieces()[:256] != sorted(small.pieces()[:256])  # the bytes in GPT-2's order, the printable ones first
    assert {bytes([byte]) for byte in range(256)} == set(small.pieces()[:256]) and small.pieces()[0] == b"!"


def test_learning_is_the_same_in_every_process(small):
    code = (
        "import sys; from plural_jax.data.byte_pairs import small_byte_pairs\n"
        "codes = small_byte_pairs(eval(sys.argv[1]), num_tokens=320)\n"
        "print(repr(codes.pieces()), codes._merges)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, repr(CORPUS)],
        env={**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == f"{small.pieces()!r} {small._merges}"
    again = small_byte_pairs(iter(CORPUS), num_tokens=320)
    assert (again._vocabulary, again._merges) == (small._vocabulary, small._merges)
    copy = pickle.loads(pickle.dumps(small))
    np.testing.assert_array_equal(copy.encode(CORPUS, 30), small.encode(CORPUS, 30))


def write_pair(folder, codes, names):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(json.dumps(codes._vocabulary))
    lines = ["#version: 0.2", *map(" ".join, codes._merges), ""]
    (folder / names[1]).write_text("\n".join(lines), encoding="utf-8")


def tokenizer_of(codes):
    """As Hugging Face's file of GPT-2: end-of-text is an added token."""
    tokenizer = Tokenizer(models.BPE(codes._vocabulary, codes._merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return json.loads(tokenizer.to_str())


def test_every_form_gives_the_same_encoding(small, rng, tmp_path):
    write_pair(tmp_path / "a" / "gpt2_bpe", small, ("encoder.json", "vocab.bpe"))
    write_pair(tmp_path / "b", small, ("vocab.json", "merges.txt"))
    content = tokenizer_of(small)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "tokenizer.json").write_text(json.dumps(content))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    del content["model"]["vocab"]["<|endoftext|>"]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "tokenizer.json").write_text(json.dumps(content))
    texts = random_texts(rng, 50)
    wanted = small.encode(texts, 60)
    places = ["a", "a/gpt2_bpe", "a/gpt2_bpe/encoder.json", "b", "b/merges.txt", "c", "d", "d/tokenizer.json"]
    for place in places:
        codes = byte_pairs(tmp_path / place, verify=False)
        np.testing.assert_array_equal(codes.encode(texts, 60), wanted)
        assert codes.pieces() == small.pieces() and codes.end_of_text == small.end_of_text


def test_checksums_and_downloads(small, tmp_path, monkeypatch):
    write_pair(tmp_path / "mine", small, ("encoder.json", "vocab.bpe"))
    with pytest.raises(
        ValueError, match=r"encoder.json' is damaged or another file: its SHA-256 is [0-9a-f]+, not 19613"
    ):
        byte_pairs(tmp_path / "mine")
    # Other names may hold any encoding.
    write_pair(tmp_path / "other", small, ("vocab.json", "merges.txt"))
    assert byte_pairs(tmp_path / "other").num_tokens == 320
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(files.DATA_VARIABLE, raising=False)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_HOME", "http://127.0.0.1:9")
        with pytest.raises(ConnectionError, match=r"encoder\.json could not be downloaded .* their folder as path"):
            byte_pairs(progress=False)
    asked = []

    def download(url, to, *, sha256, progress, instead):
        asked.append(url)
        write_pair(to.parent, small, ("encoder.json", "vocab.bpe"))

    monkeypatch.setattr(module, "download", download)
    for name in ("encoder.json", "vocab.bpe"):
        content = (tmp_path / "mine" / name).read_bytes()
        monkeypatch.setitem(module._OFFICIAL, name, hashlib.sha256(content).hexdigest())
    assert byte_pairs().pieces() == byte_pairs().pieces() == small.pieces()
    home = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
    assert asked == [f"{home}/encoder.json", f"{home}/vocab.bpe"]


def test_files_that_are_refused(small, tmp_path):
    def changed(**changes):
        content = tokenizer_of(small)
        for where, value in changes.items():
            part, _, name = where.partition("__")
            if name:
                content[part][name] = value
            else:
                content[part] = value
        return json.dumps(content)

    splitter = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    cases = [
        ({}, FileNotFoundError, "holds no byte-pair encoding"),
        ({"encoder.json": "{}"}, FileNotFoundError, "holds no byte-pair encoding"),
        ({"encoder.json": "{", "vocab.bpe": ""}, ValueError, "encoder.json' cannot be read as JSON"),
        ({"encoder.json": "[1]", "vocab.bpe": ""}, ValueError, "encoder.json' must hold the number of each token"),
        ({"encoder.json": '{"a": "b"}', "vocab.bpe": ""}, ValueError, "must hold the number of each token"),
        ({"encoder.json": '{"a": 0}', "vocab.bpe": ""}, ValueError, "must hold the token '<|endoftext|>'"),
        ({"encoder.json": '{"a": 0}', "vocab.bpe": "a b c"}, ValueError, "vocab.bpe' must hold pairs of tokens"),
        ({"tokenizer.json": "{}"}, ValueError, "must hold a model with vocab and merges"),
        ({"tokenizer.json": changed(pre_tokenizer=splitter)}, ValueError, "must be an encoding of GPT-2's kind"),
        ({"tokenizer.json": changed(pre_tokenizer=None)}, ValueError, "must be an encoding of GPT-2's kind"),
        ({"tokenizer.json": changed(normalizer={"type": "NFC"})}, ValueError, "must be an encoding of GPT-2's kind"),
        ({"tokenizer.json": changed(model__type="WordPiece")}, ValueError, "must be an encoding of GPT-2's kind"),
        ({"tokenizer.json": changed(model__dropout=0.1)}, ValueError, "must be an encoding of GPT-2's kind"),
    ]
    for i, (contents, kind, sentence) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_text(content)
        with pytest.raises(kind, match=re.escape(sentence)):
            byte_pairs(folder, verify=False)
    with pytest.raises(FileNotFoundError, match=r"only a part of a byte-pair encoding: vocab\.bpe is missing"):
        byte_pairs(tmp_path / "1" / "encoder.json", verify=False)


def test_what_is_refused(small):
    for texts in ("one text", [b"bytes"], [1]):
        with pytest.raises(ValueError, match="texts must be a sequence of texts, got"):
            small.encode(texts, 5)
    with pytest.raises(ValueError, match="length must be a whole number of at least 1, got 0"):
        small.encode(["text"], 0)
    for tokens in ([[0.5]], 3, np.zeros((1, 1, 1), int)):
        with pytest.raises(ValueError, match=r"tokens must be integers \[n, length\] or \[length\], got"):
            small.decode(tokens)
    for tokens in ([0, 320], [[-1]]):
        with pytest.raises(ValueError, match="tokens must be from 0 to 319, got numbers from"):
            small.decode(tokens)
    with pytest.raises(ValueError, match=r"num_tokens must be at least 257, .* got 256"):
        small_byte_pairs(CORPUS, 256)
    with pytest.raises(ValueError, match="num_tokens=400 needs more texts: these give 258 tokens at most"):
        small_byte_pairs(["an an"], 400)
    good = small._vocabulary
    with pytest.raises(ValueError, match="from 0 on, without gaps"):
        BytePairs({**good, "Ġqq": 999}, [])
    with pytest.raises(ValueError, match="1 of 256 are missing"):
        BytePairs({token if token != "!" else "!!": number for token, number in good.items()}, [])
    with pytest.raises(ValueError, match="GPT-2's alphabet of bytes, got 'a b'"):
        BytePairs({**good, "a b": 320}, [])
    with pytest.raises(ValueError, match="but 'zq' is none of it"):
        BytePairs(good, [("z", "q")])
