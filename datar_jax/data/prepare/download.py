"""Downloads published archives: verified by checksum, resumed after a failure.

A server is not believed. The whole length has to be known or the transfer has to say where it ends, and a part is only
gone on with where the server names the same version of it (RFC 9110, sections 13.1.5 and 14).

For a file NAME there may lie beside it: `.NAME.partial`, what came so far; `.NAME.partial.json`, of what it is a part;
`.NAME.lock`, while a process is at it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from datar_jax.data.datasets.base import Download
from datar_jax.data.prepare.partial_files import BLOCK, SHOWN, FetchError, beside, discard, sole_writer, unwritten
from datar_jax.escaping import printable
from datar_jax.foreign_files import open_regular
from datar_jax.typed_json import JsonError, decode_json

TIMEOUT = 30.0  # seconds in which a server has to say something
WAITS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0)  # seconds before each further try
SLOWEST = 1000  # bytes a second; what stays below it over two timeouts is taken for broken
VERSION = re.compile(r'"[!#-~]{1,200}"|\w{3}, [\w :]{1,40}', re.ASCII)  # an ETag that is not weak, or a date
REDIRECTS = 10
NOTES = 1 << 16  # bytes of what is noted of a part, at most
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that pass


class _Broken(Exception):
    """A failed attempt that is worth repeating."""


@dataclass(frozen=True)
class _Whole:
    """Size and version of the file that a partial download belongs to."""

    url: str
    version: str  # ETag, which may be a weak one, or time of change; empty where the server names none
    size: int | None  # bytes; None where it does not say


def fetch(download: Download, folder: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Downloads a file; verifies an existing one, resumes a partial one.

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
            with sole_writer(path):
                if not _is_there(path, download):  # another process may just have been done
                    _fetch(download, path, progress)
    except OSError as error:
        raise unwritten(path, error) from error
    return path


# Fetching


def _is_there(path: Path, download: Download) -> bool:
    """Whether the complete file exists; raises FetchError if another file has its name."""
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
    """Downloads in several attempts, verifies the content and renames it."""
    partial, notes = beside(path, "partial"), beside(path, "partial.json")
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
        discard(partial, notes)
        raise FetchError(
            f"{path}: what {download.url} sent has the sha256 {found}, not {download.sha256}, and was removed; the "
            "same command fetches it again; if that does not help, another version is published there"
        )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    discard(notes)


def _try(
    download: Download, path: Path, partial: Path, notes: Path, progress: Callable[[int, int], None] | None
) -> None:
    """Downloads the missing part, or everything; raises _Broken if another attempt may help."""
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
            discard(partial, notes)  # the next try is for all of it
            raise _Broken(f"answers {int(response.status)} to a request for {'the rest' if done else 'the file'}")
        if whole.size is not None:
            _check_size(download, path, whole.size)
            if (free := shutil.disk_usage(path.parent).free) < (left := whole.size - done):
                raise FetchError(f"{path}: {left / 1e6:.1f} MB are to come, {free / 1e6:.1f} MB fit; make room")
        if not done:
            discard(partial, notes)
        with partial.open("ab") as file:
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
    """Raises FetchError for a wrong size, such as that of a login page or an endless answer."""
    if download.size and not download.size / 2 <= size <= 2 * download.size:
        raise FetchError(
            f"{path}: {download.url} sends {size / 1e6:.1f} MB, not about {download.size / 1e6:.1f} MB: something else "
            f"is published there, or a proxy answers in its place; fetch it by hand to {path} if it is what you want"
        )


def _kept(partial: Path, notes: Path, url: str) -> tuple[int, _Whole]:
    """Number of bytes that can be resumed from, and the file they belong to; 0 if none."""
    nothing = 0, _Whole(url, "", None)
    if partial.is_symlink():  # none of ours, and what it leads to would be written
        return nothing
    try:
        with open_regular(notes) as file:
            whole, done = decode_json(file.read(NOTES), _Whole), partial.stat().st_size
    except (FileNotFoundError, JsonError):
        return nothing
    goes_on = whole.url == url and VERSION.fullmatch(whole.version) and whole.size is not None and done <= whole.size
    return (done, whole) if goes_on else nothing


def _version(headers: http.client.HTTPMessage) -> str:
    """ETag or date that identifies a version of the file; empty if the server sends neither."""
    return str(headers.get("ETag", headers.get("Last-Modified", ""))).strip()


def _goes_on(response: http.client.HTTPResponse, done: int, whole: _Whole) -> bool:
    """Whether a response holds exactly the missing part of the same version."""
    assert whole.size is not None  # _kept keeps no other
    return (
        response.status == HTTPStatus.PARTIAL_CONTENT
        and str(response.headers.get("Content-Range")).strip() == f"bytes {done}-{whole.size - 1}/{whole.size}"
        and _version(response.headers) == whole.version
    )


def _open(url: str, headers: dict[str, str], path: Path) -> Any:
    """Opens a URL: an http.client.HTTPResponse with status 200, 206 or 416.

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
                raise FetchError(f"{path}: {printable(url, SHOWN)} {reason}; fetch it by hand to {path}") from error
            url = _redirected(url, target, path)
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise FetchError(
                    f"{path}: the certificate of {printable(url, SHOWN)} is not trusted ({printable(str(cause), SHOWN)}"
                    f"); mend the clock, the proxy or the certificates of this machine, or fetch it by hand to {path}"
                ) from error
            raise _Broken(printable(str(cause), SHOWN) or type(error).__name__) from error
    raise FetchError(f"{path}: redirected more than {REDIRECTS} times; fetch it by hand to {path}")


def _redirected(url: str, target: str, path: Path) -> str:
    """Target of a redirection; raises FetchError for one to a file, to ftp, or from https to http."""
    try:
        joined = urllib.parse.urljoin(url, urllib.parse.quote(target, string.punctuation, "iso-8859-1"))
        scheme = urllib.parse.urlsplit(joined).scheme
    except ValueError:  # no URL
        joined, scheme = target, ""
    if scheme != "https" and (scheme, urllib.parse.urlsplit(url).scheme) != ("http", "http"):
        to = printable(joined, SHOWN)
        raise FetchError(f"{path}: {printable(url, SHOWN)} redirects to {to}, not followed; fetch it by hand to {path}")
    return joined


def _receive(response: http.client.HTTPResponse, left: int | None) -> Iterator[bytes]:
    """Yields blocks of a response: `left` bytes, or until its end if the size is unknown.

    Raises:
      _Broken: it ends early, or all but stands still.
    """
    since, came = time.monotonic(), 0
    while left is None or left > 0:
        try:
            block = response.read1(BLOCK if left is None else min(BLOCK, left))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Broken(printable(str(error), SHOWN) or type(error).__name__) from error
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
