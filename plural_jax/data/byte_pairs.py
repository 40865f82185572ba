"""Byte-pair encoding as GPT-2 has it: texts as rows of token numbers, and back.

Texts of a batch are int32 [n, length]: a text's own tokens and then, from its end on, the end-of-text token. A row without any
end-of-text was cut at `length`. Merging is the work of the `tokenizers` library; here lie the files and the bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.data.files import DATA_VARIABLE, cache_folder, check_digest, download, locate
from plural_jax.process import Meter

#: The name of GPT-2's end-of-text token.
END_OF_TEXT = "<|endoftext|>"
_HOME = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_OFFICIAL = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
_PAIRS_OF_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
_TOKENIZER = "tokenizer.json"
#: Texts that are encoded at once; more take memory and save no time.
_TEXTS = 4096


class BytePairs:
    """A byte-pair encoding; `byte_pairs` and `small_byte_pairs` make one.

    Args:
        vocabulary: the number of each token, from 0 on without gaps. Tokens are written in GPT-2's alphabet, which has a
            printable character for each byte; every single byte must be a token, so that any text can be encoded.
        merges: pairs of tokens, in the order of merging.
        end_of_text: the token that ends a text; it stands for no bytes and is never the result of encoding.

    Raises:
        ValueError: numbers with gaps; a byte, an end-of-text or a merged token that is missing; a token in another alphabet.

    Example:
        >>> codes = small_byte_pairs(["it rains and it pours"] * 9, num_tokens=270)
        >>> texts = codes.encode(["it rains", "it pours and it pours"], length=12)
        >>> texts.shape, codes.decode(texts)
        ((2, 12), ['it rains', 'it pours and it pours'])
    """

    def __init__(
        self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], end_of_text: str = END_OF_TEXT
    ) -> None:
        self._vocabulary = dict(vocabulary)
        self._merges = [(first, second) for first, second in merges]
        if sorted(self._vocabulary.values()) != list(range(len(self._vocabulary))):
            raise ValueError(f"vocabulary must number its {len(self._vocabulary)} tokens from 0 on, without gaps.")
        if end_of_text not in self._vocabulary:
            raise ValueError(f"vocabulary must hold the token {end_of_text!r}, which ends a text.")
        self._end_of_text = self._vocabulary[end_of_text]
        self._pieces = _pieces(self._vocabulary, end_of_text)
        missing = set(map(_written, range(256))) - self._vocabulary.keys()
        if missing:
            raise ValueError(f"vocabulary must hold every single byte as a token; {len(missing)} of 256 are missing.")
        for first, second in self._merges:
            for token in (first, second, first + second):
                if token not in self._vocabulary:
                    raise ValueError(f"merges must pair tokens of vocabulary into one, but {token!r} is none of it.")
        # No token is declared special, so "<|endoftext|>" within a text is a text like any other.
        self._tokenizer = Tokenizer(models.BPE(vocab=self._vocabulary, merges=self._merges))
        self._tokenizer.pre_tokenizer = _splitter()

    @property
    def num_tokens(self) -> int:
        """Number of tokens, with end-of-text."""
        return len(self._pieces)

    @property
    def end_of_text(self) -> int:
        """Number of the token that ends a text; 50256 for GPT-2."""
        return self._end_of_text

    def pieces(self) -> list[bytes]:
        """The bytes of every token; none for end-of-text."""
        return list(self._pieces)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Texts as rows of tokens.

        Args:
            texts: n texts. A leading space matters: GPT-2 takes it as part of the first word.
            length: of the rows; a longer text is cut. A text that just fills its row cannot be told from one that was cut.

        Returns:
            int32 [n, length].

        Raises:
            ValueError: one text in place of a sequence, a length that is not a whole number of at least 1.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts must be a sequence of texts, got {_short(texts)}.")
        length = _validate.positive_integer(length, "length")
        rows = np.full((len(texts), length), self.end_of_text, np.int32)
        for row, tokens in zip(rows, self._encoded(texts), strict=True):
            rest = tokens[:length]
            row[: len(rest)] = rest
        return rows

    def _encoded(self, texts: Sequence[str]) -> Iterator[list[int]]:
        for start in range(0, len(texts), _TEXTS):
            for found in self._tokenizer.encode_batch_fast(list(texts[start : start + _TEXTS])):
                yield found.ids

    def decode(self, tokens: ArrayLike) -> list[str]:
        """Rows of tokens as texts, each up to its first end-of-text.

        Tokens in any order may be no valid UTF-8. Then, as with GPT-2, every sequence of bytes that cannot be read becomes one
        U+FFFD, as in `bytes.decode(errors="replace")`.

        Args:
            tokens: integers [n, length] or [length] on the host or a device, from 0 to num_tokens - 1.

        Returns:
            n texts; one for a single row.

        Raises:
            ValueError: not integers, another number of dimensions, numbers that are no tokens.
        """
        rows = np.asarray(tokens)
        if rows.ndim not in (1, 2) or rows.dtype.kind not in "iu":
            raise ValueError(f"tokens must be integers [n, length] or [length], got {rows.dtype} {list(rows.shape)}.")
        if rows.size and not 0 <= rows.min() <= rows.max() < self.num_tokens:
            raise ValueError(
                f"tokens must be from 0 to {self.num_tokens - 1}, got numbers from {rows.min()} to {rows.max()}."
            )
        return [self._text(row) for row in np.atleast_2d(rows).tolist()]

    def _text(self, row: list[int]) -> str:
        end = row.index(self._end_of_text) if self._end_of_text in row else len(row)
        return b"".join([self._pieces[token] for token in row[:end]]).decode("utf-8", errors="replace")


def byte_pairs(
    path: str | os.PathLike[str] | None = None, *, verify: bool = True, progress: bool | Meter = True
) -> BytePairs:
    """GPT-2's byte-pair encoding of 50,257 tokens, or another one of its kind, from this machine or else from the network.

    Looked for in this order: `path`; the folder that the environment variable `PLURAL_JAX_DATA` names; the cache folder
    (`plural_jax` in `$XDG_CACHE_HOME` or `~/.cache`); each itself and its subfolder `gpt2_bpe`. Where none of them has it,
    GPT-2's files (1.5 MB) are downloaded into the cache folder.

    Args:
        path: a folder, or one of the files in it; when given, nothing else is tried. A folder holds `encoder.json` and
            `vocab.bpe` (GPT-2's own names), `vocab.json` and `merges.txt`, or `tokenizer.json` (Hugging Face's names).
        verify: compare `encoder.json` and `vocab.bpe` with GPT-2's SHA-256. The other names may hold any encoding of the kind.
        progress: of a download: True for a bar on standard error, False for none, or a `Meter`.

    Raises:
        FileNotFoundError: `path` without these files; `PLURAL_JAX_DATA` that names no folder.
        ConnectionError: found nowhere, and the download failed.
        ValueError: another checksum; content that is not of the form, or an encoding of another kind.

    Source: A. Radford et al., Language Models are Unsupervised Multitask Learners (2019); the files are under the MIT licence.
    """
    read = locate("gpt2_bpe", "byte-pair encoding (encoder.json and vocab.bpe)", path, _recognize)
    if read is None:
        folder = cache_folder() / "gpt2_bpe"
        for name, sha256 in _OFFICIAL.items():
            download(
                f"{_HOME}/{name}",
                folder / name,
                sha256=sha256,
                progress=progress,
                instead=f"fetch {' and '.join(_OFFICIAL)} on another machine and give their folder as path, or put them into "
                f"{folder} or the folder that the environment variable {DATA_VARIABLE} names",
            )
        read = partial(_read_pair, folder, _PAIRS_OF_FILES[0])
    return read(verify)


def small_byte_pairs(texts: Iterable[str], num_tokens: int) -> BytePairs:
    """A byte-pair encoding of a size of choice, learned from texts; for models too small for GPT-2's vocabulary.

    As GPT-2's: 256 tokens for the bytes, then the most frequent pairs of tokens within words, one after another, and end-of-text
    as the last one. The same texts give the same encoding, in every process.

    Args:
        texts: what to learn from.
        num_tokens: with the bytes and end-of-text, at least 257.

    Raises:
        ValueError: fewer than 257 tokens, or more than the pairs that occur at least twice in these texts allow.

    Example:
        >>> small_byte_pairs(["banana bandana"], num_tokens=259).pieces()[256:]
        [b'an', b'ban', b'']
    """
    num_tokens = _validate.positive_integer(num_tokens, "num_tokens")
    if num_tokens < 257:
        raise ValueError(f"num_tokens must be at least 257, 256 bytes and end-of-text, got {num_tokens}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _splitter()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens - 1,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(map(_written, range(256))),
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    if len(learned["vocab"]) != num_tokens - 1:
        raise ValueError(
            f"num_tokens={num_tokens} needs more texts: these give {len(learned['vocab']) + 1} tokens at most."
        )
    return BytePairs({**learned["vocab"], END_OF_TEXT: num_tokens - 1}, _pairs(learned["merges"], "merges"))


def _splitter() -> pre_tokenizers.ByteLevel:
    """GPT-2's cut of texts into words, whose bytes are then merged."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@cache
def _alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet: itself where it is printable, and from U+0100 on for the other 68."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


@cache
def _characters() -> dict[int, str]:
    return {byte: character for character, byte in _alphabet().items()}


def _written(byte: int) -> str:
    return _characters()[byte]


def _pieces(vocabulary: dict[str, int], end_of_text: str) -> list[bytes]:
    alphabet = _alphabet()
    pieces = [b""] * len(vocabulary)
    for token, number in vocabulary.items():
        if token == end_of_text:
            continue
        try:
            pieces[number] = bytes([alphabet[character] for character in token])
        except KeyError:
            raise ValueError(f"vocabulary must be written in GPT-2's alphabet of bytes, got {token!r}.") from None
    return pieces


def _recognize(place: Path) -> Callable[[bool], BytePairs] | None:
    """How to read the encoding at a place, or None where it does not lie."""
    if place.is_file():
        if place.name == _TOKENIZER:
            return partial(_read_tokenizer, place)
        for names in _PAIRS_OF_FILES:
            if place.name in names:
                return partial(_read_pair, place.parent, names)
        return None
    for names in _PAIRS_OF_FILES:
        if all((place / name).is_file() for name in names):
            return partial(_read_pair, place, names)
    return partial(_read_tokenizer, place / _TOKENIZER) if (place / _TOKENIZER).is_file() else None


def _read_pair(folder: Path, names: tuple[str, str], verify: bool) -> BytePairs:
    contents = []
    for name in names:
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds only a part of a byte-pair encoding: {name} is missing.")
        contents.append(file.read_bytes())
        if verify and name in _OFFICIAL:
            check_digest(contents[-1], f"{str(file)!r}", sha256=_OFFICIAL[name])
    vocabulary = _numbered(_parsed(contents[0], folder / names[0]), folder / names[0])
    told = f"{str(folder / names[1])!r}"
    try:
        lines = contents[1].decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{told} must be text in UTF-8 ({error}).") from None
    # The first line names a version; later ones may begin with "#" as well, and they are pairs.
    first = 1 if lines[0].startswith("#version") else 0
    return _made(vocabulary, _pairs([line for line in lines[first:] if line], told), folder)


def _read_tokenizer(file: Path, verify: bool) -> BytePairs:
    told = f"{str(file)!r}"
    content = _parsed(file.read_bytes(), file)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not {"vocab", "merges"} <= model.keys():
        raise ValueError(f"{told} must hold a model with vocab and merges.")
    splitter = content.get("pre_tokenizer") or {}
    usual = model.get("type", "BPE") == "BPE" and splitter.get("type") == "ByteLevel"
    usual = usual and not splitter.get("add_prefix_space", True) and splitter.get("use_regex", True)
    changes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "byte_fallback")
    if not usual or content.get("normalizer") or any(model.get(name) for name in changes):
        raise ValueError(
            f"{told} must be an encoding of GPT-2's kind, with no other way of preparing or cutting texts."
        )
    vocabulary = _numbered(model["vocab"], file)
    for added in content.get("added_tokens") or []:
        vocabulary.setdefault(added["content"], added["id"])
    return _made(vocabulary, _pairs(model["merges"], told), file)


def _made(vocabulary: dict[str, int], merges: list[tuple[str, str]], place: Path) -> BytePairs:
    try:
        return BytePairs(vocabulary, merges)
    except ValueError as error:
        raise ValueError(f"{str(place)!r} holds no byte-pair encoding of GPT-2's kind: {error}") from None


def _parsed(content: bytes, file: Path) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} cannot be read as JSON ({error}).") from None


def _numbered(content: Any, file: Path) -> dict[str, int]:
    if not isinstance(content, dict) or not all(type(number) is int for number in content.values()):
        raise ValueError(f"{str(file)!r} must hold the number of each token.")
    return content


def _pairs(merges: Any, told: str) -> list[tuple[str, str]]:
    """Pairs, which are written as such or with a space between."""
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"{told} must hold pairs of tokens, got {pair!r}.")
    return pairs  # type: ignore[return-value]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
