"""Published archives, fetched and unpacked: checked, resumed, and kept inside their folder.

Neither a server nor an archive is believed. Of a file on the network, the whole length has to be known or the transfer
has to say where it ends, and a part is only gone on with where the server names the same version of it (RFC 9110,
sections 13.1.5 and 14). Out of an archive come files and folders below one folder, nothing else: links of either kind
are refused altogether, for they are what holes in `tarfile`'s own filters were made of, and no data set needs them.

For a file NAME there may lie beside it: `.NAME.partial`, what came so far; `.NAME.partial.json`, of what it is a part;
`.NAME.lock`, while a process is at it. For a folder NAME likewise, `.NAME.partial` being a folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import ssl
import stat
import string
import struct
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, BinaryIO

TIMEOUT = 30.0  # seconds in which a server has to say something
WAITS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)  # seconds before each further try
SLOWEST = 1000  # bytes a second; what stays below it over two timeouts is taken for broken
VERSION = re.compile(r'"[!#-~]{1,200}"|\w{3}, [\w :]{1,40}', re.ASCII)  # an ETag that is not weak, or a date
BLOCK = 1 << 18  # bytes held at once
REDIRECTS = 10
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that pass

RATIO = 100  # what comes out of an archive may be this much larger than it; wav and text stay far below
FLOOR = 1 << 26  # bytes that may always come out
EACH = 4096  # bytes that a file counts as at least, so that empty ones are bounded, too
BETWEEN = 1 << 22  # bytes of a tar between two contents: headers, long names, the padding at the end
DEPTH, LONGEST = 32, 1024  # folders and bytes of a name

Member = tuple[str, Iterator[bytes] | None]  # name, content; None for a folder


class FetchError(ValueError):
    """A file that cannot be fetched or unpacked; its text says what to do."""


class _Broken(Exception):
    """A try that failed, for a reason that may pass."""


@dataclass(frozen=True)
class Download:
    """A file on the network and how its content is known."""

    url: str
    name: str  # of the file that it is kept as
    sha256: str  # of its bytes; empty where its publisher packs it anew for everybody
    size: int  # bytes, about, for a person who waits; 0 if unknown


@dataclass(frozen=True)
class _Whole:
    """What a partial file is a part of, in the words of its server."""

    url: str
    version: str  # ETag, which may be a weak one, or time of change; empty where the server names none
    size: int | None  # bytes; None where it does not say


def fetch(download: Download, folder: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Has a file lie in a folder: one that is there is verified, else it is fetched, or gone on with.

    Proxies are those of the environment, as urllib reads it. What was interrupted in any way is gone on with by the
    next call, if the server can do that. Memory does not grow with the file.

    Args:
      download: what to fetch, over http or https.
      folder: made when missing. Where the file system has locks, a second process is refused while one is at it.
      progress: called with (bytes so far, bytes in all; about or 0 where the server does not say).

    Returns:
      the path of the file.

    Raises:
      FetchError: it cannot be had or kept, or is not what `download` says. A download with a wrong checksum is
        removed, a file that was there before is not.
    """
    path = Path(folder, download.name)
    if urllib.parse.urlsplit(download.url).scheme not in ("http", "https"):
        raise FetchError(f"{download.url}: only http and https are fetched; fetch it by hand to {path}")
    try:
        if not _is_there(path, download):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path):
                if not _is_there(path, download):  # another process may just have been done
                    _fetch(download, path, progress)
    except OSError as error:
        raise _unwritten(path, error) from error
    return path


def unpack(archive: Path, folder: Path) -> Path:
    """Has the content of a zip, tar or tar.gz lie in a folder of its own, which appears whole or not at all.

    What the file is says its content, not its name. Files are made anew with the permissions of any new file; times,
    owners and permissions of the archive are left. Memory does not grow with the sizes of files; a zip's table of
    contents is held whole.

    Args:
      archive: the file.
      folder: one that is there and not empty was unpacked before and is left as it is. Where the file system has
        locks, a second process is refused while one is at it.

    Returns:
      `folder`.

    Raises:
      FetchError: the archive is missing or damaged; or holds links, devices, encrypted or sparse files, a name twice,
        or one that leads out; or more comes out of it than the disk has room for or than 100 times its size; or the
        folder cannot be written. Then nothing stays of what was unpacked.
    """
    place = Path(os.path.realpath(folder))  # what a link leads to may be an empty folder on another disk
    try:
        if not _is_full(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            with _alone(place):
                if not _is_full(place):
                    _unpack(archive, place)
    except OSError as error:
        raise _unwritten(folder, error) from error
    return folder


# Fetching


def _is_there(path: Path, download: Download) -> bool:
    """Whether the whole file is there; raises FetchError where something else is."""
    if not os.path.lexists(path):
        return False
    if not path.is_file():
        raise FetchError(f"{path}: is there and is no file; move it away")
    if download.sha256 and (found := _sha256(path)) != download.sha256:
        raise FetchError(
            f"{path}: its sha256 is {found}, not {download.sha256}; move it away, and the same command fetches it again"
        )
    return True


def _fetch(download: Download, path: Path, progress: Callable[[int, int], None] | None) -> None:
    """Tries until all bytes are there, verifies them, gives them their name."""
    partial, notes = _beside(path, "partial"), _beside(path, "partial.json")
    for wait in (*WAITS, None):
        try:
            _try(download, path, partial, notes, progress)
            break
        except _Broken as error:
            if wait is None:
                done = _kept(partial, notes, download.url)[0]
                goes_on = f"goes on after {done / 1e6:.1f} MB" if done else "starts again"
                raise FetchError(
                    f"{path}: {download.url} cannot be had whole, tried {len(WAITS) + 1} times ({error}); "
                    f"the same command {goes_on}, or fetch it by hand to {path}"
                ) from error
        time.sleep(wait)
    if download.sha256 and (found := _sha256(partial)) != download.sha256:
        _discard(partial, notes)
        raise FetchError(
            f"{path}: what {download.url} sent has the sha256 {found}, not {download.sha256}, and was removed; the "
            "same command fetches it again; if that does not help, another version is published there"
        )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    _discard(notes)


def _try(
    download: Download, path: Path, partial: Path, notes: Path, progress: Callable[[int, int], None] | None
) -> None:
    """Receives what is missing, or all of it anew; raises _Broken where another try may help."""
    done, whole = _kept(partial, notes, download.url)
    if done and done == whole.size:  # killed before it had its name
        return
    headers = {"User-Agent": "datar-jax"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": whole.version}
    with _open(download.url, headers, path) as response:
        if response.status == HTTPStatus.OK:
            done, whole = 0, _Whole(download.url, _version(response.headers), response.length)
            if whole.size is None and not response.chunked and not download.sha256:
                raise FetchError(
                    f"{path}: {download.url} does not say how long it is, so that a part could pass for the whole; "
                    f"fetch it by hand to {path}"
                )
        elif not done or not _goes_on(response, done, whole):
            _discard(partial, notes)  # the next try is for all of it
            raise _Broken(f"answers {int(response.status)} to a request for {'the rest' if done else 'the file'}")
        if whole.size is not None:
            _check_size(download, path, whole.size)
            if (free := shutil.disk_usage(path.parent).free) < (left := whole.size - done):
                raise FetchError(f"{path}: {left / 1e6:.1f} MB are to come, {free / 1e6:.1f} MB fit; make room")
        with partial.open("ab" if done else "wb") as file:
            if not done:  # in this order: what lies in `partial` is of the version in `notes` at any time
                notes.write_text(json.dumps(dataclasses.asdict(whole)))
            for block in _receive(response, None if whole.size is None else whole.size - done):
                file.write(block)
                done += len(block)
                if done > download.size:
                    _check_size(download, path, done)
                if progress:
                    progress(done, whole.size or download.size)
    _check_size(download, path, done)


def _check_size(download: Download, path: Path, size: int) -> None:
    """Raises FetchError for what is far from as large as it should be: a page that asks to log in, or without end."""
    if download.size and not download.size / 2 <= size <= 2 * download.size:
        raise FetchError(
            f"{path}: {download.url} sends {size / 1e6:.1f} MB, not about {download.size / 1e6:.1f} MB: something else "
            f"is published there, or a proxy answers in its place; fetch it by hand to {path} if it is what you want"
        )


def _kept(partial: Path, notes: Path, url: str) -> tuple[int, _Whole]:
    """Bytes that are there and can be gone on with, and what they are of; 0 where none can."""
    try:
        whole, done = _Whole(**json.loads(notes.read_bytes())), partial.stat().st_size
        if whole.url == url and VERSION.fullmatch(whole.version) and isinstance(whole.size, int) and done <= whole.size:
            return done, whole
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        pass
    return 0, _Whole(url, "", None)


def _version(headers: http.client.HTTPMessage) -> str:
    """What may tell one version of a file from another; empty where the server gives nothing of the kind."""
    return str(headers.get("ETag", headers.get("Last-Modified", ""))).strip()


def _goes_on(response: http.client.HTTPResponse, done: int, whole: _Whole) -> bool:
    """Whether an answer holds exactly what is missing, of the same version."""
    assert whole.size is not None  # _kept keeps no other
    return (
        response.status == HTTPStatus.PARTIAL_CONTENT
        and str(response.headers.get("Content-Range")).strip() == f"bytes {done}-{whole.size - 1}/{whole.size}"
        and _version(response.headers) == whole.version
    )


def _open(url: str, headers: dict[str, str], path: Path) -> Any:
    """The answer of a server, an http.client.HTTPResponse with status 200 or 206, or what it says with 416.

    Redirections are followed here because urllib's handler reads their whole bodies and goes on to ftp and from https
    to http; the opener has no handler that reads anything but http and https.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),  # a proxy may have any scheme
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    for _ in range(REDIRECTS + 1):
        try:
            return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return error
            error.close()
            reason = f"answers {error.code} {http.client.responses.get(error.code, '')}".strip()
            if error.code in BUSY:
                raise _Broken(reason) from error
            target = error.headers.get("Location", "") if error.code in (301, 302, 303, 307, 308) else ""
            if not target:
                raise FetchError(f"{path}: {_plain(url)} {reason}; fetch it by hand to {path}") from error
            url = _redirected(url, target, path)
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise FetchError(
                    f"{path}: the certificate of {_plain(url)} is not trusted ({_plain(cause)}); mend the clock, the "
                    f"proxy or the certificates of this machine, or fetch it by hand to {path}"
                ) from error
            raise _Broken(_plain(cause) or type(error).__name__) from error
    raise FetchError(f"{path}: redirected more than {REDIRECTS} times; fetch it by hand to {path}")


def _redirected(url: str, target: str, path: Path) -> str:
    """Where a redirection leads; raises FetchError where it is not followed: to a file, to ftp, or out of https."""
    try:
        joined = urllib.parse.urljoin(url, urllib.parse.quote(target, string.punctuation, "iso-8859-1"))
        scheme = urllib.parse.urlsplit(joined).scheme
    except ValueError:  # no URL
        joined, scheme = target, ""
    if scheme != "https" and (scheme, urllib.parse.urlsplit(url).scheme) != ("http", "http"):
        raise FetchError(
            f"{path}: {_plain(url)} redirects to {_plain(joined)}, not followed; fetch it by hand to {path}"
        )
    return joined


def _receive(response: http.client.HTTPResponse, left: int | None) -> Iterator[bytes]:
    """Blocks of an answer: `left` bytes, or as many as come where the server did not say.

    Raises:
      _Broken: it ends early, or all but stands still.
    """
    since, came = time.monotonic(), 0
    while left is None or left > 0:
        try:
            block = response.read1(BLOCK if left is None else min(BLOCK, left))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Broken(_plain(error) or type(error).__name__) from error
        if not block:
            if left:
                raise _Broken(f"broke off {left} bytes before its end")
            return
        yield block
        left, came = None if left is None else left - len(block), came + len(block)
        if (seconds := time.monotonic() - since) > 2 * TIMEOUT:
            if came < SLOWEST * seconds:
                raise _Broken(f"sent {came} bytes in {seconds:.0f} s")
            since, came = time.monotonic(), 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Unpacking


def _is_full(folder: Path) -> bool:
    """Whether a folder is there with something in it; raises FetchError where something else is."""
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        raise FetchError(f"{folder}: is there and is no folder; move it away")
    return any(folder.iterdir())


def _unpack(archive: Path, folder: Path) -> None:
    partial = _beside(folder, "partial")
    if partial.exists():  # of a process that was killed
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        _write(archive, partial)
        os.sync()  # one for all: what a power cut takes must not lie under the name of something whole
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(archive: Path, folder: Path) -> None:
    """Writes all members of an archive below an empty folder that nobody else writes to."""
    try:
        size = archive.stat().st_size
    except OSError as error:
        raise FetchError(f"{archive}: cannot be read ({error.strerror}); give the path of the archive") from error
    most, free = RATIO * size + FLOOR, shutil.disk_usage(folder).free
    left = min(most, free)

    def take(amount: int) -> None:
        nonlocal left
        left -= amount
        if left < 0 and free < most:
            raise FetchError(f"{archive}: more comes out of it than the {free / 1e6:.1f} MB that fit; make room")
        if left < 0:
            raise _foreign(archive, f"more than {RATIO} times its size comes out of it")

    files = 0
    for name, blocks in _members(archive):
        parts = _parts(archive, name)
        target = folder.joinpath(*parts)
        take(EACH)
        try:
            (target if blocks is None else target.parent).mkdir(parents=True, exist_ok=True)
            if blocks is None:
                continue
            with target.open("xb") as file:
                for block in blocks:
                    take(len(block))
                    file.write(block)
            files += 1
        except (
            FileExistsError,
            NotADirectoryError,
        ) as error:  # a name in two cases, too, where they are one to the disk
            raise _foreign(archive, f"it holds {_plain(name)} twice, or as a file and as a folder") from error
    if not files:
        raise _foreign(archive, "it holds no file")


def _parts(archive: Path, name: str) -> list[str]:
    """A member's name taken apart; raises FetchError where it leads out of its folder, or nowhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise _foreign(archive, f"it holds {_plain(name)}, which leads out of its folder")
    try:
        lengths = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        lengths = [LONGEST]
    if "\0" in name or len(parts) > DEPTH or max(lengths, default=0) > 255 or sum(lengths) >= LONGEST:
        raise _foreign(archive, f"it holds {_plain(name)}, which cannot be a file's name")
    return parts


def _members(archive: Path) -> Iterator[Member]:
    """Members of an archive in their order; each content has to be taken before the next member is."""
    with _reading(archive), archive.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"PK":
            yield from _zip(archive, file)
        elif start[:2] == b"\x1f\x8b":
            with gzip.open(file) as plain:
                yield from _tar(archive, plain)
        else:
            yield from _tar(archive, file)


def _zip(archive: Path, file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as contents:
        for info in contents.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _foreign(archive, f"{_plain(info.filename)} in it is a link or a device")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA may ask for 4 GB
                raise _foreign(archive, f"{_plain(info.filename)} in it is packed in an uncommon way")
            if info.is_dir():
                yield info.filename, None
            else:
                yield info.filename, _blocks(archive, contents.open(info))


def _tar(archive: Path, file: BinaryIO | gzip.GzipFile) -> Iterator[Member]:
    """Members of a tar that is read once, from its start to its end."""
    meter = _Meter(file, BETWEEN)
    with tarfile.open(fileobj=meter, mode="r|", tarinfo=_Header) as contents:
        while (member := contents.next()) is not None:
            if member.isdir():
                yield member.name, None
            elif member.isfile() and not member.issparse():
                content = contents.extractfile(member)
                assert content is not None  # it is of a file
                meter.left = member.size + BETWEEN
                yield member.name, _blocks(archive, content)
            else:
                raise _foreign(archive, f"{_plain(member.name)} in it is a link, a device or sparse")
            meter.left = BETWEEN
            contents.members.clear()  # type: ignore[attr-defined] # it keeps all that it has seen
            contents.pax_headers = {}
    while meter.read(BLOCK):  # to the checksum of gzip
        pass


class _Header(tarfile.TarInfo):
    """`tarfile` takes a damaged or missing header for the end; here only zeros are the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):
                raise
            raise tarfile.ReadError(f"{error or 'no header'}") from None
        if header.size < 0:
            raise tarfile.ReadError("a negative size")
        return header


class _Meter(io.RawIOBase):
    """A file of which no more than `left` bytes are read: tarfile holds whatever a header asks for in memory."""

    def __init__(self, file: BinaryIO | gzip.GzipFile, left: int):
        self.file, self.left = file, left

    def read(self, size: int = -1) -> bytes:
        block = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise tarfile.ReadError("a header beyond all measure")
        return block


def _blocks(archive: Path, content: IO[bytes]) -> Iterator[bytes]:
    with _reading(archive), content:
        while block := content.read(BLOCK):
            yield block


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Says in one line what the libraries say about an archive that they cannot read.

    Put around reading only: what goes wrong in writing is not the archive's.
    """
    try:
        yield
    except FetchError:
        raise
    except (
        *(OSError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError),
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error),
    ) as error:
        reason = _plain(error) or type(error).__name__
        raise _foreign(archive, f"it is damaged, or no zip, tar or tar.gz ({reason})") from error


def _foreign(archive: Path, what: str) -> FetchError:
    return FetchError(f"{archive}: {what}; move it away and run the same command, which fetches it again")


# Both


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Only one process is in this block for a path, where the file system has locks."""
    lock = _beside(path, "lock")
    number = _locked(lock, path)
    try:
        yield
    finally:
        _discard(lock)  # before it is let go, so that who takes it next sees that it is gone
        os.close(number)


def _locked(lock: Path, path: Path) -> int:
    while True:
        number = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(number)
            raise FetchError(f"{path}: another process is at it; wait for that, then run the same command") from error
        except OSError:  # a file system without locks
            return number
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), os.stat(lock)):
                return number
        os.close(number)  # it was let go and removed in between


def _discard(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _unwritten(path: Path, error: OSError) -> FetchError:
    return FetchError(f"{path}: cannot be written ({error.strerror or error}); make room, or choose another folder")


def _plain(text: object) -> str:
    """What a stranger wrote, fit for one line on a terminal."""
    return ascii(str(text))[1:-1][:200]
