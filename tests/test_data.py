"""Data: every form of CIFAR-10 gives the same arrays, downloads are whole or absent, and pickles run nothing."""

import dataclasses
import hashlib
import http.server
import importlib
import io
import os
import pickle
import struct
import tarfile
import threading
import urllib.error
import urllib.request
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plural_jax import data
from plural_jax.data import files, unpickling
from plural_jax.data.unpickling import RefusedError, load_arrays
from tests.real_data import real_data

module = importlib.import_module("plural_jax.data.cifar10")  # its name in the package is the function's
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A machine without data, as far as the environment says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home_cache"))
    monkeypatch.delenv(files.DATA_VARIABLE, raising=False)
    return tmp_path / "home_cache" / "plural_jax"


@pytest.fixture
def batches(rng):
    """Batches of 1, 2, ... images by name, pixels [n, 3072] as the official forms have them."""
    return {
        name: (rng.integers(0, 256, (n, 3072), np.uint8), rng.integers(0, 10, n).astype(np.uint8))
        for n, name in enumerate([*TRAIN, "test_batch"], start=1)
    }


def expected(batches, split):
    """Pixel by pixel from the description of the official forms."""
    names = TRAIN if split == "train" else ["test_batch"]
    rows = np.concatenate([batches[name][0] for name in names])
    images = np.empty((len(rows), 32, 32, 3), np.uint8)
    for c in range(3):
        for y in range(32):
            images[:, y, :, c] = rows[:, 1024 * c + 32 * y : 1024 * c + 32 * (y + 1)]
    return images, np.concatenate([batches[name][1] for name in names])


def python_2_pickle(pixels, labels):
    """What Python 2 and NumPy 1 write with protocol 2, operation by operation, without memo."""

    def text(value):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    kind = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    shape = b"".join(map(number, pixels.shape)) + b"\x86"
    array += b"(" + number(1) + shape + kind + b"\x89" + text(pixels.tobytes()) + b"tb"
    listed = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return (
        b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + text(b"batch_label") + text(b"one") + b"u."
    )


def write_python(folder, batches, write=python_2_pickle):
    folder.mkdir(parents=True)
    for name, batch in batches.items():
        (folder / name).write_bytes(write(*batch))
    (folder / "batches.meta").write_bytes(b"never read")


def write_binary(folder, batches):
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], pixels], axis=1).tobytes())


def write_packed(folder, batches):
    """The filter forwards: green taken from red and blue, then differences along columns and rows, modulo 256."""
    folder.mkdir(parents=True)
    groups = {"train_0": TRAIN[:2], "train_1": TRAIN[2:], "test": ["test_batch"]}
    for name, members in groups.items():
        planes = (
            np.concatenate([batches[m][0] for m in members]).reshape(-1, 3, 32, 32).transpose(1, 0, 2, 3).astype(int)
        )
        planes[0] -= planes[1]
        planes[2] -= planes[1]
        for axis in (3, 2):
            planes = np.diff(planes, axis=axis, prepend=0)
        labels = np.concatenate([batches[m][1] for m in members])
        np.savez_compressed(
            folder / f"{name}.npz",
            residual=(planes % 256).astype(np.uint8),
            labels=labels,
            jpeg_index=np.zeros(0, np.int32),
        )


def write_archive(path, folder):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=folder.name)


def same(found, batches, split):
    images, labels = expected(batches, split)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.images.dtype == found.labels.dtype == np.uint8 and found.images.flags.c_contiguous


def test_every_form_gives_the_same_arrays(tmp_path, batches, cache):
    python, binary = tmp_path / "a" / "cifar-10-batches-py", tmp_path / "b" / "cifar-10-batches-bin"
    write_python(python, batches)
    write_binary(binary, batches)
    write_packed(tmp_path / "c" / "cifar10", batches)
    write_archive(tmp_path / "d" / "cifar-10-python.tar.gz", python)
    write_archive(tmp_path / "e" / "cifar10" / "cifar-10-binary.tar.gz", binary)
    places = [python, python.parent, binary, binary.parent, tmp_path / "c" / "cifar10", tmp_path / "c"]
    places += [tmp_path / "d", tmp_path / "d" / "cifar-10-python.tar.gz", tmp_path / "e"]
    for place in places:
        for split in ("train", "test"):
            same(data.cifar10(str(place) if split == "test" else place, split, verify=False), batches, split)
    # Packed files have no official checksum, so nothing is asked of them.
    same(data.cifar10(tmp_path / "c"), batches, "train")
    assert not cache.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_batches_pickled_today(tmp_path, batches, protocol):
    def write(pixels, labels):
        columns = np.asfortranarray(pixels)
        return pickle.dumps({"data": columns if protocol % 2 else pixels, "labels": labels.tolist()}, protocol)

    write_python(tmp_path / "cifar10", batches, write)
    same(data.cifar10(tmp_path, "train", verify=False), batches, "train")


def test_another_checksum_is_an_error(tmp_path, batches, monkeypatch):
    python, binary = tmp_path / "py", tmp_path / "bin"
    write_python(python, batches)
    write_binary(binary, batches)
    archive = tmp_path / "mine.tgz"
    write_archive(archive, python)
    for place, named in ((python, "data_batch_1'"), (binary, "data_batch_1.bin'"), (archive, "mine.tgz'")):
        with pytest.raises(
            ValueError, match=rf"{named} is damaged or another file: its MD5 is [0-9a-f]+, not [0-9a-f]+"
        ):
            data.cifar10(place)
    # With the right ones, the last of five batches counts as much as the first.
    md5 = {name: hashlib.md5((binary / f"{name}.bin").read_bytes()).hexdigest() for name in TRAIN}
    for name in TRAIN:
        monkeypatch.setitem(module._BINARY.batches["train"], f"{name}.bin", md5[name])
    same(data.cifar10(binary), batches, "train")
    damaged = bytearray((binary / "data_batch_5.bin").read_bytes())
    damaged[1000] ^= 1
    (binary / "data_batch_5.bin").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"data_batch_5\.bin' is damaged"):
        data.cifar10(binary)


def test_order_of_places(tmp_path, rng, cache, monkeypatch):
    """Argument before variable before cache; each place holds labels of its own."""
    for label, place in enumerate([tmp_path / "argument", tmp_path / "variable" / "cifar10", cache / "cifar10"]):
        place.mkdir(parents=True)
        (place / "test_batch.bin").write_bytes(bytes([label]) + bytes(3072))
    monkeypatch.setenv(files.DATA_VARIABLE, str(tmp_path / "variable"))
    found = [data.cifar10(tmp_path / "argument", "test", verify=False), data.cifar10(split="test", verify=False)]
    (tmp_path / "variable" / "cifar10" / "test_batch.bin").unlink()
    found.append(data.cifar10(split="test", verify=False))
    assert [int(f.labels[0]) for f in found] == [0, 1, 2]
    monkeypatch.setenv(files.DATA_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"PLURAL_JAX_DATA='.*nowhere' is not a folder"):
        data.cifar10(split="test")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / ".cache" / "plural_jax"


def test_what_is_refused(tmp_path, batches):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no data")
    (tmp_path / "broken.tar.gz").write_bytes(b"\x1f\x8b no archive")
    write_packed(tmp_path / "packed", batches)
    (tmp_path / "packed" / "train_1.npz").unlink()
    write_binary(tmp_path / "bin", batches)
    write_archive(tmp_path / "bin.tgz", tmp_path / "bin")
    whole = (tmp_path / "bin.tgz").read_bytes()
    (tmp_path / "short.tgz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bin" / "data_batch_3.bin").unlink()
    write_archive(tmp_path / "part.tar.gz", tmp_path / "bin")
    cases = [
        (tmp_path / "nowhere", FileNotFoundError, "path='.*nowhere' does not exist"),
        (tmp_path / "empty", FileNotFoundError, "path='.*empty' holds no CIFAR-10 train images"),
        (tmp_path / "text.txt", FileNotFoundError, "holds no CIFAR-10 train images"),
        (tmp_path / "packed", FileNotFoundError, "only a part of CIFAR-10: train_1.npz is missing"),
        (tmp_path / "bin", FileNotFoundError, "data_batch_3.bin is missing"),
        (tmp_path / "part.tar.gz", FileNotFoundError, "only a part"),
        (tmp_path / "broken.tar.gz", ValueError, "cannot be read as an archive"),
        (tmp_path / "short.tgz", ValueError, "cannot be read as an archive"),
    ]
    for place, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            data.cifar10(place, verify=False)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        data.cifar10(tmp_path, "valid")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("test_batch.bin", bytes(3072), "rows of 3073 bytes"),
        ("test_batch.bin", bytes([10]) + bytes(3072), "labels from 0 to 9, got labels from 10 to 10"),
        ("test_batch", pickle.dumps([1, 2]), r"must hold data, uint8 \[n, 3072\]"),
        ("test_batch", pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]}), "must hold data, uint8"),
        ("test_batch", pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "each of its 2 images"),
        ("test_batch", pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}), "labels from 0 to 9"),
        ("test.npz", b"no zip", "cannot be read as packed"),
        ("test.npz", {"labels": np.zeros(2, np.uint8)}, "cannot be read as packed"),
        ("test.npz", {"residual": np.array([{}]), "labels": np.zeros(1, np.uint8)}, "cannot be read as packed"),
        ("test.npz", {"residual": np.zeros((3, 2, 32, 32)), "labels": np.zeros(2, np.uint8)}, "residual, uint8 .*float64"),
        ("test.npz", {"residual": np.zeros((3, 2, 32, 32), np.uint8), "labels": np.zeros(3, np.uint8)}, "residual, uint8"),
        ("test.npz", {"residual": np.zeros((3, 2, 32, 32), np.uint8), "labels": np.zeros(2, int)}, "labels, uint8 .*int64"),
    ],
)  # fmt: skip
def test_content_of_another_form(tmp_path, name, content, sentence):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.savez(tmp_path / name, **content)
    with pytest.raises(ValueError, match=f"{name}.*{sentence}"):
        data.cifar10(tmp_path, "test", verify=False)


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_runs_nothing(tmp_path, protocol):
    mark = tmp_path / "was_here"
    content = pickle.dumps({"data": Malicious(mark), "labels": [1]}, protocol)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"test_batch' asks for (posix|nt)\.system, and only arrays and plain containers"
    ):
        data.cifar10(tmp_path, "test", verify=False)
    assert not mark.exists()
    pickle.loads(content)  # the pickle is one that would have done it
    assert mark.exists()


def _raw_array(shape, kind=b"cnumpy\ndtype\nU\x02u1\x85R", raw=b"C\x04abcd", owner=b"cnumpy\nndarray\n"):
    start = b"\x80\x03cnumpy._core.multiarray\n_reconstruct\n" + owner + b"K\x00\x85C\x01b\x87R"
    return start + b"(K\x01" + shape + kind + b"\x89" + raw + b"tb."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (_raw_array(b"K\x05\x85"), r"an array of shape \(5,\) has 4 bytes"),
        (_raw_array(b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86"), "is damaged"),
        (_raw_array(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"), "is damaged"),
        (_raw_array(b"K\x04\x85", kind=b"cnumpy\ndtype\nU\x02O8\x85R"), "type 'O8', and only arrays of numbers"),
        (_raw_array(b"K\x04\x85", raw=b"]"), "not made of bytes"),
        (_raw_array(b"K\x04\x85", owner=b"cnumpy\nmatrix\n"), "asks for numpy.matrix"),
        (pickle.dumps(np.array(["text"])), "only arrays of numbers"),
        (pickle.dumps(np.zeros(1, [("a", "u1"), ("b", "u1")])), "only arrays of numbers"),
        (pickle.dumps(np.random.default_rng(0)), "asks for numpy.random"),
        (pickle.dumps(np.dtype("u1")), "holds a type where data belongs"),
        (b"cnumpy\ndtype\n.", "holds a function where data belongs"),
        (b"cbuiltins\neval\n(Vopen\ntR.", "asks for builtins.eval"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10dtype.__subclass\x93.", "asks for numpy.dtype.__subclass"),
        (b"Pfile\n.", "no readable pickle"),
        (b"](K\x01", "no readable pickle"),
        (b"", "no readable pickle"),
    ],
)  # fmt: skip
def test_pickles_that_are_refused(content, sentence):
    with pytest.raises(RefusedError, match=f"the file .*{sentence}"):
        load_arrays(io.BytesIO(content), "the file")


def test_a_pickle_cannot_change_the_reader():
    """Attributes that it sets on what it was given are gone with it."""
    before = dict(vars(unpickling._type)), unpickling._type.__defaults__
    changed = b"\x80\x03cnumpy\ndtype\n}X\x04\x00\x00\x00mark)s}X\x0c\x00\x00\x00__defaults__K\x07\x85s\x86b."
    with pytest.raises(RefusedError, match="holds a function"):
        load_arrays(io.BytesIO(changed), "the file")
    assert (dict(vars(unpickling._type)), unpickling._type.__defaults__) == before


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_come_back(rng, protocol):
    arrays = [
        rng.integers(-9, 9, (2, 3, 4)).astype(kind)
        for kind in ("i1", "u2", ">i4", "<i8", "f2", "f4", ">f8", "c16", "?")
    ]
    arrays += [
        np.zeros((0, 3)),
        np.array(7),
        np.asfortranarray(rng.normal(size=(3, 4))),
        rng.normal(size=(4, 6))[::2, 1:],
    ]
    plain = {"text": "é", b"bytes": b"\xff\x00", "more": [1, 2**70, -2.5, True, None, (3, {4: ()})]}
    found = load_arrays(io.BytesIO(pickle.dumps({"arrays": arrays, **plain}, protocol)), "the file")
    assert found.pop("arrays") is not None and found == plain
    for array in arrays:
        back = load_arrays(io.BytesIO(pickle.dumps(array, protocol)), "the file")
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype and back.shape == array.shape


def test_bytes_and_numbers():
    """Every byte there and back; halves between bytes; what lies outside; NumPy and JAX, compiled too."""
    every = np.arange(256, dtype=np.uint8)
    exact = every.astype(np.float64) / 127.5 - 1
    for make in (np.asarray, jnp.asarray):
        signed = data.to_signed(make(every))
        assert isinstance(signed, np.ndarray if make is np.asarray else jax.Array) and signed.dtype == np.float32
        np.testing.assert_allclose(signed, exact, rtol=0, atol=2e-7)  # the quotient, up to 2, is rounded
        assert signed[0] == -1 and signed[-1] == 1
        np.testing.assert_array_equal(data.to_bytes(signed), every)
        nearly = make((exact[1:-1] + 0.49 / 127.5).astype(np.float32))
        np.testing.assert_array_equal(data.to_bytes(nearly), every[1:-1])
        assert data.to_bytes(make(np.array([-7.0, 7.0]))).tolist() == [0, 255]
        with pytest.raises(ValueError, match="images must be uint8, from 0 to 255, got float32"):
            data.to_signed(signed)
        with pytest.raises(ValueError, match="images must be floating-point, from -1 to 1, got uint8"):
            data.to_bytes(make(every))
    there_and_back = jax.jit(lambda x: data.to_bytes(data.to_signed(x)))
    np.testing.assert_array_equal(there_and_back(jnp.asarray(every)), every)
    assert data.to_bytes(jnp.zeros(2, jnp.bfloat16)).tolist() == [128, 128]
    given = every.copy()
    data.to_signed(given)
    np.testing.assert_array_equal(given, every)


class Meter:
    """Remembers what it was told."""

    def __init__(self):
        self.told = []

    def start(self, total, description):
        self.told.append(("start", total, description))

    def advance(self, amount):
        self.told.append(amount)

    def stop(self):
        self.told.append("stop")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `content`: whole or from a byte on, cut off after `cut` bytes, or without a length."""

    content: ClassVar[bytes] = b""
    cut: ClassVar[int | None] = None
    ranges: ClassVar[bool] = True
    tell_length: ClassVar[bool] = True
    seen: ClassVar[list] = []

    def do_GET(self):
        asked = self.headers.get("Range")
        type(self).seen.append(asked)
        if self.path == "/missing":
            self.send_error(404)
            return
        begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if begin >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if self.tell_length:
            self.send_header("Content-Length", str(len(self.content) - begin))
        self.end_headers()
        self.wfile.write(self.content[begin : self.cut])

    def log_message(self, *unused):
        pass


@pytest.fixture
def server(rng, monkeypatch):
    """A server in this process, and the class that says how it behaves."""
    monkeypatch.setenv("no_proxy", "*")

    class Served(Handler):
        content = rng.bytes(2_500_000)
        seen: ClassVar[list] = []

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served)
    thread = threading.Thread(target=lambda: served.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    Served.url = f"http://127.0.0.1:{served.server_port}/numbers.bin"
    yield Served
    served.shutdown()
    served.server_close()
    thread.join()


def digests(content):
    return {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest().upper()}


def test_download(tmp_path, server):
    meter, to = Meter(), tmp_path / "new" / "folder" / "numbers.bin"
    assert data.download(server.url, to, **digests(server.content), progress=meter) == to
    assert to.read_bytes() == server.content
    assert meter.told == [("start", 3, "numbers.bin, MB"), 1, 1, 1, "stop"]
    assert list(to.parent.iterdir()) == [to]
    # What is there is not fetched again.
    data.download(server.url, to, **digests(server.content), progress=False)
    assert server.seen == [None]
    with pytest.raises(ValueError, match="md5 or sha256 must be given"):
        data.download(server.url, to)


def test_a_server_that_tells_no_length(tmp_path, server):
    server.tell_length = False
    meter = Meter()
    data.download(server.url, tmp_path / "numbers.bin", **digests(server.content), progress=meter)
    assert (tmp_path / "numbers.bin").read_bytes() == server.content
    assert meter.told == [("start", 1, "numbers.bin, MB"), 1, "stop"]


def test_the_bar_writes_to_standard_error(tmp_path, server, capfd):
    data.download(server.url, tmp_path / "numbers.bin", **digests(server.content))
    out, err = capfd.readouterr()
    assert out == "" and "numbers.bin, MB" in err and "3/3" in err


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_wrong_checksum_leaves_no_file(tmp_path, server, algorithm):
    wrong = digests(server.content + b"!")[algorithm]
    with pytest.raises(ValueError, match=f"what came from http.*is damaged or another file: its .* not {wrong}"):
        data.download(server.url, tmp_path / "numbers.bin", **{algorithm: wrong}, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(tmp_path, server, ranges):
    server.cut, server.ranges = 1_200_000, ranges
    to, meter = tmp_path / "numbers.bin", Meter()
    with pytest.raises(ConnectionError, match="ended after 1200000 of 2500000 bytes; the next call goes on from there"):
        data.download(server.url, to, **digests(server.content), progress=meter)
    assert meter.told == [("start", 3, "numbers.bin, MB"), 1, "stop"]
    assert [file.name for file in tmp_path.iterdir()] == ["numbers.bin.part"]
    server.cut, meter = None, Meter()
    data.download(server.url, to, **digests(server.content), progress=meter)
    assert to.read_bytes() == server.content and list(tmp_path.iterdir()) == [to]
    assert server.seen == [None, "bytes=1200000-"]
    assert meter.told == [("start", 3, "numbers.bin, MB"), 1, 1, 1, "stop"]


def test_a_download_that_ended_before_its_checksum(tmp_path, server):
    """Everything has arrived, but nobody has looked: right bytes are taken, wrong ones removed."""
    to, part = tmp_path / "numbers.bin", tmp_path / "numbers.bin.part"
    part.write_bytes(server.content)
    data.download(server.url, to, **digests(server.content), progress=False)
    assert to.read_bytes() == server.content
    to.unlink()
    part.write_bytes(server.content + b"?")
    with pytest.raises(ValueError, match="is damaged"):
        data.download(server.url, to, **digests(server.content), progress=False)
    assert not list(tmp_path.iterdir())


def test_several_want_the_same_file(tmp_path, server):
    """One downloads, the others wait; locks are per opened file, so threads stand for processes."""
    to, failed = tmp_path / "numbers.bin", []

    def want():
        try:
            data.download(server.url, to, **digests(server.content), progress=False)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and server.seen == [None] and to.read_bytes() == server.content


def test_what_the_network_says(tmp_path, server):
    with pytest.raises(ConnectionError, match=r"missing could not be downloaded \(the server answered 404 .*\)\.$"):
        data.download(server.url.replace("numbers.bin", "missing"), tmp_path / "x", md5="0" * 32, progress=False)
    assert not list(tmp_path.iterdir())


def test_cifar10_is_downloaded_once(tmp_path, batches, cache, server, monkeypatch):
    write_python(tmp_path / "cifar-10-batches-py", batches)
    write_archive(tmp_path / "made.tar.gz", tmp_path / "cifar-10-batches-py")
    server.content = (tmp_path / "made.tar.gz").read_bytes()
    form = dataclasses.replace(module._PYTHON, archive_md5=digests(server.content)["md5"])
    monkeypatch.setattr(module, "_URL", server.url)
    monkeypatch.setattr(module, "_PYTHON", form)
    monkeypatch.setattr(module, "_FORMS", (form, module._BINARY))
    meter = Meter()
    same(data.cifar10(progress=meter), batches, "train")
    same(data.cifar10(split="test", progress=meter), batches, "test")
    assert len(server.seen) == 1 and meter.told.count("stop") == 1
    assert (cache / "cifar10" / "cifar-10-python.tar.gz").read_bytes() == server.content


def test_without_a_network_it_says_what_to_do(cache, monkeypatch):
    def fail(*unused, **options):
        assert options["timeout"] > 0
        raise urllib.error.URLError(OSError("Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(ConnectionError) as caught:
        data.cifar10(progress=False)
    sentence = str(caught.value)
    assert sentence.startswith("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz could not be downloaded (Name")
    for part in ("give its path as path", str(cache / "cifar10"), files.DATA_VARIABLE):
        assert part in sentence
    assert "\n" not in sentence and not [f for f in cache.rglob("*") if f.is_file()]


@pytest.mark.end_to_end
def test_real_images():
    """Known facts about CIFAR-10: numbers of images, of each class, and how the original order begins."""
    folder = real_data("cifar10")
    for split, n, first in (("train", 50_000, [6, 9, 9, 4, 1]), ("test", 10_000, [3, 8, 8, 0, 6])):
        images, labels = data.cifar10(folder, split)
        assert images.shape == (n, 32, 32, 3) and images.dtype == labels.dtype == np.uint8
        assert np.bincount(labels).tolist() == [n // 10] * 10 and labels[:5].tolist() == first
        # The well-known means of the channels, for pixels in [0, 1].
        if split == "train":
            counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]
            mean = [count @ np.arange(256) / count.sum() / 255 for count in counts]
            np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)
