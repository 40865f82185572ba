"""Where data lies on this machine, and how it gets here: found, or downloaded and checked.

Every loader looks in the same order: its argument, the folder that the environment variable `PLURAL_JAX_DATA` names, the cache
folder, and then the data set's home on the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from plural_jax.process import Meter
from plural_jax.progress import meter

#: Names a folder that holds data sets, each in a subfolder or directly.
DATA_VARIABLE = "PLURAL_JAX_DATA"
_CHUNK = 1 << 18
_MEGABYTE = 10**6
#: Seconds without a byte after which a server is given up.
_PATIENCE = 30.0
_RANGE_NOT_SATISFIABLE = 416

T = TypeVar("T")


def cache_folder() -> Path:
    """The folder for downloads, which need not exist: `plural_jax` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plural_jax"


def locate(
    name: str, wanted: str, path: str | os.PathLike[str] | None, recognize: Callable[[Path], T | None]
) -> T | None:
    """Find data on this machine: the argument, else the folder of `PLURAL_JAX_DATA`, else the cache folder.

    Args:
        name: of the data set; each place is tried itself and then its subfolder of this name.
        wanted: what is looked for, in words, for the error message.
        path: the argument of the loader, a file or folder. When it is given, nothing else is tried.
        recognize: `place -> how to read it`, or None where the data is not there.

    Returns:
        What `recognize` said about the first place that it knew, or None.

    Raises:
        FileNotFoundError: `path` is given and does not hold the data; `PLURAL_JAX_DATA` names no folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "numbers").mkdir()
        ...     print(locate("numbers", "numbers", folder, lambda place: place.name if place.name == "numbers" else None))
        numbers
    """
    variable = os.environ.get(DATA_VARIABLE)
    if path is not None:
        places = [Path(path).expanduser()]
        if not places[0].exists():
            raise FileNotFoundError(f"path={str(path)!r} does not exist.")
    else:
        places = [Path(variable)] if variable else []
        # Going on would download what the user believes to have given.
        if variable and not places[0].is_dir():
            raise FileNotFoundError(f"the environment variable {DATA_VARIABLE}={variable!r} is not a folder.")
        places.append(cache_folder())
    for base in places:
        for place in (base, base / name):
            if place.exists() and (found := recognize(place)) is not None:
                return found
    if path is not None:
        raise FileNotFoundError(f"path={str(path)!r} holds no {wanted}.")
    return None


def check_digest(
    content: bytes | Path,
    told: str,
    *,
    md5: str | Sequence[str] | None = None,
    sha256: str | Sequence[str] | None = None,
) -> None:
    """Refuse a file, or what was read from one, that has another checksum.

    Args:
        content: the bytes or the file.
        told: how the error message calls it.
        md5, sha256: hexadecimal digest, or several of which it must be one; those that are given are compared.

    Raises:
        ValueError: another digest.
    """
    for algorithm, expected in (("md5", md5), ("sha256", sha256)):
        if expected is None:
            continue
        if isinstance(content, Path):
            with content.open("rb") as file:
                found = hashlib.file_digest(file, partial(_new, algorithm)).hexdigest()
        else:
            hashed = _new(algorithm)
            hashed.update(content)
            found = hashed.hexdigest()
        known = [expected] if isinstance(expected, str) else expected
        if found not in [digest.lower() for digest in known]:
            label = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
            raise ValueError(f"{told} is damaged or another file: its {label} is {found}, not {' or '.join(known)}.")


def _new(algorithm: str) -> Any:
    # Damage is what is looked for; some systems refuse MD5 that is not declared as such.
    return hashlib.new(algorithm, usedforsecurity=False)


def download(
    url: str,
    to: str | os.PathLike[str],
    *,
    md5: str | None = None,
    sha256: str | None = None,
    progress: bool | Meter = True,
    instead: str = "",
) -> Path:
    """Download a file whose checksum is known; under its name there is a whole and checked file or none.

    The bytes collect in a file with the suffix `.part`, and a later call goes on where an interrupted one stopped. Of several
    processes that want the same file, one downloads and the others wait for it.

    Args:
        url: of the file.
        to: where to put it; folders are made. A file that is already there is returned as it is.
        md5, sha256: at least one of them, hexadecimal.
        progress: True for a bar in megabytes on standard error, False for none, or a `Meter`. Other functions here are silent by
            default; waiting for minutes without a word is worse.
        instead: end of the error message, what the user can do without a network.

    Returns:
        The path of the file.

    Raises:
        ConnectionError: no network, no such file, or an interruption.
        ValueError: neither checksum given; a file with another checksum, which is then removed.
    """
    if md5 is None and sha256 is None:
        raise ValueError("md5 or sha256 must be given: a download is never used unchecked.")
    to = Path(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(to.with_name(f"{to.name}.lock")):
        if to.exists():
            return to
        part = to.with_name(f"{to.name}.part")
        try:
            _fetch(url, part, to.name, meter(progress))
        except _NoNetworkError as error:
            raise ConnectionError(f"{url} could not be downloaded ({error}){instead and '; ' + instead}.") from None
        try:
            check_digest(part, f"what came from {url}", md5=md5, sha256=sha256)
        except ValueError:
            part.unlink()
            raise
        part.replace(to)
    return to


class _NoNetworkError(Exception):
    """What went wrong on the other side of the wire."""


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Tell what the network did wrong from what the disk did."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise _NoNetworkError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _NoNetworkError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _NoNetworkError(str(error) or type(error).__name__) from error


def _fetch(url: str, part: Path, name: str, shown: Meter) -> None:
    """Bring `part` up to the length that the server says."""
    done = part.stat().st_size if part.exists() else 0
    # Some servers refuse the name that urllib gives itself.
    headers = {"User-Agent": "plural_jax", **({"Range": f"bytes={done}-"} if done else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        with _network():
            response = urllib.request.urlopen(request, timeout=_PATIENCE)
    except _NoNetworkError as error:
        # A process may have ended after the last byte and before the checksum, which now decides.
        if done and getattr(error.__cause__, "code", None) == _RANGE_NOT_SATISFIABLE:
            return
        raise
    with response:
        if response.status != http.client.PARTIAL_CONTENT:  # the server does not go on but begins again
            done = 0
        length = response.headers.get("Content-Length")
        with part.open("ab" if done else "wb") as file:
            _copy(response, file, done, None if length is None else done + int(length), name, shown)


def _copy(response: Any, file: IO[bytes], done: int, total: int | None, name: str, shown: Meter) -> None:
    """The rest of a download, told to a meter in megabytes (all at once when the server does not say how many)."""
    size = 1 if total is None else -(-total // _MEGABYTE)
    told = 0

    def tell(amount: int) -> None:
        nonlocal told
        if amount > told:
            shown.advance(amount - told)
            told = amount

    shown.start(size, f"{name}, MB")
    try:
        tell(0 if total is None else done // _MEGABYTE)
        while True:
            with _network():
                chunk = response.read(_CHUNK)
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            if total is not None:
                tell(min(done // _MEGABYTE, size))
        # A connection that ends early looks like the end of the file.
        if total is not None and done < total:
            raise _NoNetworkError(f"it ended after {done} of {total} bytes; the next call goes on from there")
        tell(size)
    finally:
        shown.stop()


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait until no other process is here; on systems without such locks, only the checksum protects."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("wb") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
