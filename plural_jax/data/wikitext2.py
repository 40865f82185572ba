"""WikiText-2 from any form that it comes in: its lines, its paragraphs and its sentences.

Good and featured articles of the English Wikipedia in three parts: 600 articles to train on, 60 to validate and 60 to test with.
Words and punctuation stand apart, separated by spaces. In the token form, words that are rare in the training part read `<unk>`;
in the raw form every word is as it was. Known: the official files of either form, unpacked or as the archive, and the token form
as `train.txt`, `valid.txt`, `test.txt`.
"""

from __future__ import annotations

import os
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from plural_jax.data.files import DATA_VARIABLE, cache_folder, check_digest, download, locate
from plural_jax.process import Meter

Split = Literal["train", "valid", "test"]
Form = Literal["tokens", "raw"]
#: The home that the data set's first author gives it; the first one answers no longer.
_HOME = "https://wikitext.smerity.com"
_SPLITS = ("train", "valid", "test")
_END_MARKS = frozenset(".!?")


class WikiText(NamedTuple):
    """A part of WikiText-2.

    Attributes:
        lines: as in the file, without the line breaks: headings (" = Title = "), paragraphs, and blank lines in between.
        form: "tokens" or "raw".
    """

    lines: tuple[str, ...]
    form: Form


def wikitext2(
    path: str | os.PathLike[str] | None = None,
    *,
    split: Split = "train",
    form: Form = "tokens",
    verify: bool = True,
    progress: bool | Meter = True,
) -> WikiText:
    r"""WikiText-2 in its original order, from this machine or else from the network.

    Looked for in this order: `path`; the folder that the environment variable `PLURAL_JAX_DATA` names; the cache folder
    (`plural_jax` in `$XDG_CACHE_HOME` or `~/.cache`); each itself and its subfolder `wikitext2`. Where none of them has it, the
    archive of the form (5 MB) is downloaded into the cache folder.

    Args:
        path: a folder or an archive (`.zip`); when given, nothing else is tried. A folder holds `wiki.train.tokens` and so on (or
            `wikitext-2` with them), for the raw form `wiki.train.raw` (or `wikitext-2-raw`), an archive under its own name
            (`wikitext-2-v1.zip`, `wikitext-2-raw-v1.zip`), or, for the token form, `train.txt`, `valid.txt`, `test.txt`.
        split: "train", "valid" or "test".
        form: "tokens", where rare words are `<unk>`, or "raw", where they are not.
        verify: compare files and archives with their SHA-256.
        progress: of a download: True for a bar on standard error, False for none, or a `Meter`.

    Returns:
        36,718, 3,760 or 4,358 lines.

    Raises:
        FileNotFoundError: `path` without this part in this form; `PLURAL_JAX_DATA` that names no folder.
        ConnectionError: found nowhere, and the download failed.
        ValueError: an unknown split or form; another checksum, or content that is not of the form.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:  # in place of the real files, two lines
        ...     written = (pathlib.Path(folder) / "test.txt").write_text(" = Rain = \n It rains . It pours . \n")
        ...     text = wikitext2(folder, split="test", verify=False)
        >>> text.lines
        (' = Rain = ', ' It rains . It pours . ')
        >>> sentences(text.lines)
        ['It rains .', 'It pours .']

    Source: S. Merity, C. Xiong, J. Bradbury, R. Socher, Pointer Sentinel Mixture Models (2016); CC BY-SA.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be 'train', 'valid' or 'test', got {split!r}.")
    if form not in _FORMS:
        raise ValueError(f"form must be 'tokens' or 'raw', got {form!r}.")
    known = _FORMS[form]
    wanted = f"WikiText-2 {split} text in its {known.told} form"
    read = locate("wikitext2", wanted, path, partial(_recognize, known, split))
    if read is None:
        folder = cache_folder() / "wikitext2"
        archive = download(
            f"{_HOME}/{known.archive}",
            folder / known.archive,
            sha256=known.archive_sha256,
            progress=progress,
            instead=f"fetch it on another machine and give its path as path, or put it into {folder} or the folder that the "
            f"environment variable {DATA_VARIABLE} names",
        )
        read = partial(_read_archive, known, archive, split)
    content, told = read(verify)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{told} must be text in UTF-8 ({error}).") from None
    # Only this one ends a line: the text itself holds others of Unicode's line separators.
    lines = text.split("\n")
    return WikiText(tuple(lines[:-1] if not lines[-1] else lines), form)


def paragraphs(lines: Iterable[str]) -> list[str]:
    """The paragraphs among WikiText's lines, without headings and blank lines, stripped at both ends.

    A heading is a line that begins and ends with as many equality signs, each between white space.

    Args:
        lines: of either form, such as `wikitext2().lines`.

    Example:
        >>> paragraphs([" = Rain = ", " ", " It rains . It pours . "])
        ['It rains . It pours .']
    """
    return [stripped for line in lines if (stripped := line.strip()) and not _is_heading(stripped)]


def sentences(lines: Iterable[str]) -> list[str]:
    """The sentences of WikiText's paragraphs, with WikiText's own spacing, so that their words are `sentence.split()`.

    A paragraph is cut behind an end mark that stands alone (`.`, `!` or `?`), if what follows begins a sentence. To the end mark
    belong all further end marks and closing marks behind it: brackets and quotation marks that close, apostrophes, and a straight
    double quotation mark if it is the second of a pair, counted from the paragraph's beginning. A sentence begins with `<unk>`,
    a letter that is not small (one of a script without small letters, too), an opening bracket or quotation mark, a straight
    double one if it is the first of a pair, or one of the Spanish opening marks. A digit begins none, since most marks before
    one belong to an abbreviation ("Vol . 2", "c . 1550"). What stands behind the last cut is a sentence too, with an end mark or
    not. Nothing is lost: the sentences of a paragraph in order, with spaces between them, are the paragraph.

    Args:
        lines: lines or paragraphs of either form; headings and blank lines are skipped.

    Example:
        >>> sentences([' " Stay ! " , she said . " It is late ( see Vol . 2 ) . " They stayed '])
        ['" Stay ! " , she said .', '" It is late ( see Vol . 2 ) . "', 'They stayed']
    """
    return [sentence for paragraph in paragraphs(lines) for sentence in _cut(paragraph)]


def _cut(paragraph: str) -> Iterator[str]:
    start = 0
    end = 0  # behind the last word; meaningful while `ending`
    ending = False
    inside = False  # an odd number of straight double quotation marks so far
    for word in re.finditer(r"\S+", paragraph):
        text = word.group()
        if ending and not (text in _END_MARKS or _closes(text, inside)):
            if _begins(text):
                yield paragraph[start:end]
                start = word.start()
            ending = False
        ending = ending or text in _END_MARKS
        end = word.end()
        inside ^= text.count('"') % 2 == 1
    if paragraph:
        yield paragraph[start:]


def _closes(word: str, inside: bool) -> bool:
    if word == '"':
        return inside
    return all(mark == "'" or unicodedata.category(mark) in ("Pe", "Pf") for mark in word)


def _begins(word: str) -> bool:
    first = word[0]
    if first.isalpha():
        return not first.islower()
    return word == "<unk>" or first in '"¿¡' or unicodedata.category(first) in ("Ps", "Pi")


def _is_heading(stripped: str) -> bool:
    words = stripped.split()
    depth = 0
    while depth < len(words) and words[depth] == "=":
        depth += 1
    return 0 < depth < len(words) - depth and words[-depth:] == ["="] * depth


@dataclass(frozen=True)
class _Official:
    """One of the official forms: names and SHA-256 of its files."""

    told: str
    folder: str
    suffix: str
    archive: str
    archive_sha256: str
    sha256: dict[str, str]


_FORMS = {
    "tokens": _Official(
        told="token",
        folder="wikitext-2",
        suffix="tokens",
        archive="wikitext-2-v1.zip",
        archive_sha256="92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
        sha256={
            "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
    ),
    "raw": _Official(
        told="raw",
        folder="wikitext-2-raw",
        suffix="raw",
        archive="wikitext-2-raw-v1.zip",
        archive_sha256="ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        sha256={
            "train": "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
            "valid": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
            "test": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
        },
    ),
}
#: Whether to verify -> the content and how an error message calls it.
_Read = Callable[[bool], tuple[bytes, str]]


def _recognize(form: _Official, split: Split, place: Path) -> _Read | None:
    """How to read the part at a place, or None where it does not lie."""
    if place.is_file():
        return partial(_read_archive, form, place, split) if place.suffix == ".zip" else None
    name = f"wiki.{split}.{form.suffix}"
    files = [place / name, place / form.folder / name]
    if form.suffix == "tokens":
        files.append(place / f"{split}.txt")
    for file in files:
        if file.is_file():
            return partial(_read_file, file, form.sha256[split])
    archive = place / form.archive
    return partial(_read_archive, form, archive, split) if archive.is_file() else None


def _read_file(file: Path, sha256: str, verify: bool) -> tuple[bytes, str]:
    content, told = file.read_bytes(), f"{str(file)!r}"
    if verify:
        check_digest(content, told, sha256=sha256)
    return content, told


def _read_archive(form: _Official, archive: Path, split: Split, verify: bool) -> tuple[bytes, str]:
    """A part out of a `.zip`; nothing is unpacked to the disk."""
    told = f"{str(archive)!r}"
    if verify:
        check_digest(archive, told, sha256=[known.archive_sha256 for known in _FORMS.values()])
    name = f"wiki.{split}.{form.suffix}"
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.namelist():
                if Path(member).name == name:
                    return members.read(member), f"{told}, {name},"
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{told} cannot be read as an archive ({error}).") from None
    raise FileNotFoundError(f"{told} holds no {name}, the {split} text in its {form.told} form.")
