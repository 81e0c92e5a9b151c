"""The Python files of a vLLM release, from the package index that pip is configured for.

A GPU wheel has hundreds of megabytes, its Python files about ten. So the wheel's directory is read
with HTTP range requests, and then only these files. An index without range requests gives its
source distribution or, if it has none, the whole wheel. What was read is kept in kprune's cache.
Nothing is installed, and no code of vLLM runs.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.cache import cache_dir
from vllm_kprune.storage.folders import new_file

__all__ = ["Release", "Unreachable", "fetch_release"]

_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_PIECE_BYTES = 1 << 19  # what one range request asks for
_REQUEST_SECONDS = 30.0


class Unreachable(KPruneError):
    """The package index does not answer, or not in time."""


@dataclass(frozen=True)
class Release:
    """The Python files of one release, as a zip file, and what it cost to get them."""

    path: Path
    fetched_bytes: int = 0
    requests: int = 0
    seconds: float = 0.0


def fetch_release(project: str, version: str, seconds: float = 300.0) -> Release:
    """The Python files of `project` `version`, from the cache or else from the index.

    Raises `Unreachable` when that takes longer than `seconds`, `KPruneError` for a version that the
    index does not have.
    """
    target = cache_dir() / "vllm-files" / f"{project}-{version}.zip"
    if target.is_file():
        return Release(target)
    web = _Web(time.monotonic() + seconds)
    started = time.monotonic()
    with tempfile.TemporaryFile() as scratch:
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in _python_files(web, project, version):
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.seek(0)
        with new_file(target) as file:
            shutil.copyfileobj(scratch, file)
    return Release(target, web.fetched_bytes, web.requests, time.monotonic() - started)


class _Web:
    """Reads from URLs until a deadline, and counts what it reads."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self.fetched_bytes = 0
        self.requests = 0

    def get(self, url: str, headers: dict[str, str]) -> tuple[int, str, bytes]:
        """(status, content type, body); `KPruneError` for an answer that is an error."""
        with self.open(url, headers) as answer:
            body = self._read(answer)
            return answer.status, answer.headers.get("Content-Type", ""), body

    def open(self, url: str, headers: dict[str, str]) -> Any:
        """The open answer; its reader must call `_read`."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Unreachable("the package index is too slow; give more time with --timeout")
        self.requests += 1
        try:
            return urlopen(Request(url, headers=headers), timeout=min(left, _REQUEST_SECONDS))
        except HTTPError as error:
            raise KPruneError(f"the package index answered HTTP {error.code} for {url}") from None
        except (OSError, HTTPException) as error:
            raise Unreachable(f"the package index cannot be reached: {error}") from None

    def _read(self, answer: Any) -> bytes:
        try:
            body: bytes = answer.read()
        except (OSError, HTTPException) as error:
            raise Unreachable(f"the package index stopped in the middle: {error}") from None
        self.fetched_bytes += len(body)
        return body


class _RangeFile(io.RawIOBase):
    """A remote file that is read in pieces; `KPruneError` if the server sends all of it."""

    def __init__(self, web: _Web, url: str, size: int) -> None:
        self._web, self._url, self._size, self._at = web, url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        last = self._at + wanted - 1
        _, _, body = self._web.get(self._url, {"Range": f"bytes={self._at}-{last}"})
        buffer[: len(body)] = body
        self._at += len(body)
        return len(body)


def _python_files(web: _Web, project: str, version: str) -> Iterator[tuple[str, bytes]]:
    wheels, sources = _files_of(web, project, version)
    for url in wheels[:1]:
        if size := _size_with_ranges(web, url):
            remote = io.BufferedReader(_RangeFile(web, url, size), _PIECE_BYTES)
            yield from _from_wheel(remote)
            return
    for url in (*sources, *wheels):  # the smaller first
        with tempfile.TemporaryFile() as scratch:
            scratch.write(web.get(url, {})[2])
            scratch.seek(0)
            yield from (_from_wheel if url.endswith(".whl") else _from_sources)(scratch)
        return


def _from_wheel(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as wheel:
        for info in sorted(wheel.infolist(), key=lambda one: one.header_offset):
            if _is_wanted(info.filename):
                yield info.filename, wheel.read(info)


def _from_sources(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if _is_wanted(name) and (content := archive.extractfile(member)):
                yield name, content.read()


def _is_wanted(name: str) -> bool:
    return name.startswith("vllm/") and name.endswith(".py")


def _size_with_ranges(web: _Web, url: str) -> int | None:
    """The size of a remote file; None if its server has no range requests."""
    with web.open(url, {"Range": "bytes=0-0"}) as answer:
        found = re.search(r"/(\d+)$", answer.headers.get("Content-Range", ""))
        return int(found[1]) if answer.status == 206 and found else None


def _files_of(web: _Web, project: str, version: str) -> tuple[list[str], list[str]]:
    """URLs of the release's wheels and source distributions."""
    page = f"{_index_url().rstrip('/')}/{project}/"
    _, kind, body = web.get(page, {"Accept": _ACCEPT})
    urls = {name: urljoin(page, url) for name, url in _links(kind, body.decode("utf-8"))}
    stem = re.escape(f"{project.replace('-', '_')}-{version}")
    wheels = [url for name, url in urls.items() if re.fullmatch(rf"{stem}-.*\.whl", name)]
    sources = [url for name, url in urls.items() if re.fullmatch(rf"{stem}\.tar\.gz", name)]
    if not wheels and not sources:
        raise KPruneError(
            f"the package index has no {project} {version}; see `pip index versions {project}`"
        )
    return sorted(wheels, reverse=True), sources


def _links(kind: str, text: str) -> Iterator[tuple[str, str]]:
    """(file name, URL) of a project's page in the simple API, JSON or HTML."""
    if "json" in kind:
        yield from ((file["filename"], file["url"]) for file in json.loads(text)["files"])
        return
    parser = _Links()
    parser.feed(text)
    yield from ((url.partition("#")[0].rsplit("/", 1)[-1], url) for url in parser.found)


class _Links(HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if (tag, name) == ("a", "href") and value]


def _index_url() -> str:
    """The index that pip asks: its environment, its configuration, or its default."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    configured = re.findall(r"\.index-url='(.*)'", _pip("config", "list"))
    default = re.findall(r"Index\s+\(default\s+(\S+)\)", _pip("download", "--help"))
    if not configured and not default:
        raise Unreachable("pip names no package index; set PIP_INDEX_URL")
    return str([*default, *configured][-1])


def _pip(*words: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
    )
    return done.stdout
