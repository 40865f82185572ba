"""WikiText-2: every form gives the same lines, other files are refused, and sentences are cut where they were joined."""

import hashlib
import importlib
import zipfile

import pytest

from plural_jax.data import files
from plural_jax.data.wikitext2 import paragraphs, sentences, wikitext2
from tests.real_data import real_data

module = importlib.import_module("plural_jax.data.wikitext2")
SPLITS = ("train", "valid", "test")
#: Separators of lines for Unicode and for `str.splitlines`, but not for the files.
TEXTS = {
    "train": " \n = Rain = \n \n It rains\u2028 . \n\n It\x85pours\x0c . \n",
    "valid": " It <unk> . \n \n",
    "test": " no break at the end",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A machine without data, as far as the environment says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home_cache"))
    monkeypatch.delenv(files.DATA_VARIABLE, raising=False)
    return tmp_path / "home_cache" / "plural_jax"


def expected(split, form="tokens"):
    lines = (form + TEXTS[split]).split("\n")
    return tuple(lines if lines[-1] else lines[:-1])


def write(folder, form="tokens", name="wiki.{}.{}"):
    folder.mkdir(parents=True)
    for split in SPLITS:
        (folder / name.format(split, form)).write_bytes((form + TEXTS[split]).encode())


def write_archive(path, folder):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"{folder.name}/{file.name}")


def test_every_form_gives_the_same_lines(tmp_path, cache):
    tokens, raw = tmp_path / "a" / "wikitext-2", tmp_path / "b" / "wikitext-2-raw"
    write(tokens)
    write(raw, "raw")
    write(tmp_path / "c" / "wikitext2", name="{}.txt")
    write_archive(tmp_path / "d" / "wikitext-2-v1.zip", tokens)
    write_archive(tmp_path / "d" / "wikitext-2-raw-v1.zip", raw)
    write_archive(tmp_path / "e" / "wikitext2" / "mine.zip", tokens)
    places = {
        "tokens": [tokens, tokens.parent, tmp_path / "c", tmp_path / "c" / "wikitext2", tmp_path / "d"],
        "raw": [raw, raw.parent, tmp_path / "d", tmp_path / "d" / "wikitext-2-raw-v1.zip"],
    }
    places["tokens"].append(tmp_path / "e" / "wikitext2" / "mine.zip")
    for form, found in places.items():
        for place in found:
            for split in SPLITS:
                text = wikitext2(str(place) if split == "test" else place, split=split, form=form, verify=False)
                assert text.lines == expected(split, form) and text.form == form, (place, split)
    assert not cache.exists()


def test_order_of_places(tmp_path, cache, monkeypatch):
    for place, words in ((tmp_path / "argument", "a"), (tmp_path / "variable" / "wikitext2", "b"), (cache, "c")):
        place.mkdir(parents=True)
        (place / "test.txt").write_text(words)
    monkeypatch.setenv(files.DATA_VARIABLE, str(tmp_path / "variable"))
    found = [wikitext2(tmp_path / "argument", split="test", verify=False), wikitext2(split="test", verify=False)]
    (tmp_path / "variable" / "wikitext2" / "test.txt").unlink()
    found.append(wikitext2(split="test", verify=False))
    assert [text.lines for text in found] == [("a",), ("b",), ("c",)]


def test_another_checksum_is_an_error(tmp_path, monkeypatch):
    write(tmp_path / "wikitext-2")
    archive = tmp_path / "elsewhere" / "mine.zip"
    write_archive(archive, tmp_path / "wikitext-2")
    for place, named in ((tmp_path, "wiki.train.tokens'"), (archive, "mine.zip'")):
        with pytest.raises(ValueError, match=rf"{named} is damaged or another file: its SHA-256 is [0-9a-f]+, not"):
            wikitext2(place)
    digest = hashlib.sha256((tmp_path / "wikitext-2" / "wiki.train.tokens").read_bytes()).hexdigest()
    monkeypatch.setitem(module._FORMS["tokens"].sha256, "train", digest)
    assert wikitext2(tmp_path).lines == expected("train")
    with pytest.raises(ValueError, match="damaged"):
        wikitext2(tmp_path, split="valid")


def test_what_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.md").write_text("no data")
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    write(tmp_path / "tokens")
    write_archive(tmp_path / "tokens.zip", tmp_path / "tokens")
    whole = (tmp_path / "tokens.zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "train.txt").write_bytes(b"caf\xe9")
    cases = [
        ("nowhere", "tokens", FileNotFoundError, "path='.*nowhere' does not exist"),
        ("empty", "tokens", FileNotFoundError, "path='.*empty' holds no WikiText-2 train text in its token form"),
        ("text.md", "tokens", FileNotFoundError, "holds no WikiText-2 train text"),
        ("tokens", "raw", FileNotFoundError, "holds no WikiText-2 train text in its raw form"),
        ("tokens.zip", "raw", FileNotFoundError, "tokens.zip' holds no wiki.train.raw, the train text in its raw form"),
        ("broken.zip", "tokens", ValueError, "broken.zip' cannot be read as an archive"),
        ("short.zip", "tokens", ValueError, "short.zip' cannot be read as an archive"),
        ("latin", "tokens", ValueError, "train.txt' must be text in UTF-8"),
    ]
    for name, form, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            wikitext2(tmp_path / name, form=form, verify=False)
    with pytest.raises(ValueError, match="split must be 'train', 'valid' or 'test', got 'validation'"):
        wikitext2(tmp_path, split="validation")
    with pytest.raises(ValueError, match="form must be 'tokens' or 'raw', got 'words'"):
        wikitext2(tmp_path, form="words")


def test_download(tmp_path, cache, monkeypatch):
    """What is asked of the network, and what is said where there is none."""
    asked = []

    def download(url, to, *, sha256, progress, instead):
        asked.append((url, sha256, progress))
        write_archive(to, tmp_path / "wikitext-2-raw")
        return to

    write(tmp_path / "wikitext-2-raw", "raw")
    with monkeypatch.context() as patched:
        patched.setattr(module, "download", download)
        assert wikitext2(split="valid", form="raw", verify=False, progress=False).lines == expected("valid", "raw")
    digest = "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"
    assert asked == [("https://wikitext.smerity.com/wikitext-2-raw-v1.zip", digest, False)]
    # The next call finds it.
    assert wikitext2(split="test", form="raw", verify=False).lines == expected("test", "raw")
    monkeypatch.setattr(module, "_HOME", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"wikitext-2-v1\.zip could not be downloaded .* give its path as path"):
        wikitext2(progress=False)


@pytest.mark.parametrize(
    ("paragraph", "expected_sentences"),
    [
        (" It rains . It pours . ", ["It rains .", "It pours ."]),
        ("Is it ? It is ! Good", ["Is it ?", "It is !", "Good"]),
        ("No end mark :", ["No end mark :"]),
        ("Mr. Smith paid $ 3 @.@ 50 .", ["Mr. Smith paid $ 3 @.@ 50 ."]),
        ("See Vol . 2 of c . 1550 , fl . here .", ["See Vol . 2 of c . 1550 , fl . here ."]),
        ('He said : " Go . " She went .', ['He said : " Go . "', "She went ."]),
        ('" Go . Run . " She went .', ['" Go .', 'Run . "', "She went ."]),
        ('They came . " Go , " she said .', ["They came .", '" Go , " she said .']),
        ('" What ? " he asked . " Why ! " , too .', ['" What ? " he asked .', '" Why ! " , too .']),
        ("( A . B . ) C ( d . ) e .", ["( A .", "B . )", "C ( d . ) e ."]),
        ("“ A ! ” “ B . ’ ” [ C ]", ["“ A ! ”", "“ B . ’ ”", "[ C ]"]),
        ("A . <unk> b ! ! ? . C", ["A .", "<unk> b ! ! ? .", "C"]),
        ("\" I want ! ' \" . She went . ' No", ['" I want ! \' " .', "She went . '", "No"]),
        ("A . Ælfric . 漢字 . ¿ Qué ? ünder", ["A .", "Ælfric .", "漢字 .", "¿ Qué ? ünder"]),
        ("A .  B\u00a0. C\u2003", ["A .", "B\u00a0.", "C"]),
        (" = Heading . A = ", []),
        (" = = A . B = = ", []),
        (" = = A = ", ["= = A ="]),
        (" = 1 = 2 = 2 = ", []),
        (" = ", ["="]),
        (" = = ", ["= ="]),
        ("  \u3000", []),
    ],
)
def test_sentences_by_hand(paragraph, expected_sentences):
    assert sentences([paragraph]) == expected_sentences


def test_sentences_are_cut_where_they_were_joined(rng):
    """Sentences of random words, each of which could only be cut at its end."""
    first = ["It", "<unk>", "Élan", "( Once", "[ Sic", "“ Now", "雨", '" They']
    inner = [
        "rains",
        "and",
        ",",
        "3",
        "@-@",
        "<unk>",
        "U.S.",
        "2nd",
        "( see",
        "Vol . 2",
        ";",
        "'s",
        "–",
        "Paris",
        "etc . and",
    ]
    ends = [".", "!", "?", "! !", "? !", ". )", ". ]", "! ”", ". ’", ". '", ". ) )"]
    made = []
    for _ in range(2000):
        start = str(rng.choice(first))
        end = str(rng.choice(ends)) + (' "' if start.startswith('"') else "")
        made.append(" ".join([start, *map(str, rng.choice(inner, rng.integers(0, 9))), end]))
    lines, at = [], 0
    while at < len(made):
        size = int(rng.integers(1, 7))
        lines += [f" {' '.join(made[at : at + size])} ", " ", f" = {rng.choice(inner)} = "]
        at += size
    assert sentences(lines) == made
    assert sentences(paragraphs(lines)) == made


@pytest.mark.parametrize(
    ("split", "num_lines", "num_tokens"),
    [("train", 36718, 2088628), ("valid", 3760, 217646), ("test", 4358, 245569)],
)
def test_the_real_files(split, num_lines, num_tokens):
    """The numbers of tokens are those of the data set's paper, which counts an end for each line."""
    lines = wikitext2(real_data("wikitext2").parent, split=split).lines
    assert len(lines) == num_lines
    assert sum(len(line.split()) for line in lines) + num_lines == num_tokens
    texts = paragraphs(lines)
    found = sentences(lines)
    assert " ".join(found).split() == " ".join(texts).split()
    assert all(sentence and sentence == sentence.strip() for sentence in found)
    assert not any(text.startswith("= ") and text.endswith(" =") for text in texts)
    assert 20 < sum(map(len, map(str.split, found))) / len(found) < 30
