"""Every raw answer, kept unchanged, so that a resumed run does not ask for it again.

`folder/answers/SUITE.jsonl` has a header line with the settings of the run, then one line for each
value, which is on the disk before `put` returns. An incomplete last line, left by a kill, is
dropped. Values of different runs never mix: different settings are an error that names them.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.bounded import Limits, Unfit, parse_json

__all__ = ["Journal", "kept_settings", "set_aside"]

_FORMAT = "kprune answers"
_SCHEMA = 1
_FOLDER = "answers"
_MAX_BYTES = 4 * 1024**3  # of one file, since it is read into memory
_SETTINGS = Limits(bytes=1 << 20, values=50_000)
# An answer with the log-probabilities of a long prompt has a few megabytes.
_LINE = Limits(bytes=64 << 20, values=4_000_000, halves=True)
_SUITE = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Journal:
    """The values of one run, by suite and key; a context manager that locks the folder.

    >>> with Journal(folder, {"seed": 0}) as journal:  # doctest: +SKIP
    ...     journal.put("stability", "ko-1 original", {"text": "안녕"})
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        # As JSON from the start: a tuple would differ from the list that a resumed run reads.
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._files: dict[str, _File] = {}
        self._lock = FileLock(folder / _FOLDER / ".lock")
        # `asking` calls `put` in several threads at a time.
        self._writing = threading.Lock()

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that a resumed run must share, as JSON."""
        return self._settings

    def __enter__(self) -> Self:
        try:
            (self.folder / _FOLDER).mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise KPruneError(
                f"another comparison is writing to {self.folder}; wait for it, or choose another -o"
            ) from None
        except (OSError, NotImplementedError) as error:  # some disks do not support locks
            raise KPruneError(
                f"{self.folder} cannot be written to: {error}; choose another -o"
            ) from None
        try:
            for path in sorted((self.folder / _FOLDER).glob("*.jsonl")):
                self._file(path.stem)  # all of them, to find different settings before any work
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and unlock the folder."""
        for file in self._files.values():
            file.stream.close()
        self._files.clear()
        self._lock.release()

    def get(self, suite: str, key: str) -> Any | None:
        """The value that was put (JSON), or None."""
        return self._file(suite).values.get(key)

    def put(self, suite: str, key: str, value: Any) -> None:
        """Keep a JSON value; it is on the disk when this returns. Any thread may call this."""
        with self._writing:
            self._file(suite).append(key, value)

    def step(self, suite: str, key: str, produce: Callable[[], Any]) -> Any:
        """The kept JSON value of a step, or the value that `produce` returns, which is kept."""
        value = self.get(suite, key)
        if value is None:
            self.put(suite, key, produce())
            value = self.get(suite, key)
        return value

    def _file(self, suite: str) -> "_File":
        if suite not in self._files:
            # The name comes from any file of the folder (`__enter__`), and becomes a path below.
            if not _SUITE.fullmatch(suite):
                raise KPruneError(
                    f"{self.folder / _FOLDER} has a file named {shown(suite)}, which is not the "
                    "name of a suite; remove it, or choose another -o"
                )
            path = self.folder / _FOLDER / f"{suite}.jsonl"
            try:
                self._files[suite] = _File(path, self._settings)
            except OSError as error:
                raise _unwritten(path, error) from None
        return self._files[suite]


class _File:
    """The values of one suite, read once and then appended to."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        whole = self._read(settings) if path.is_file() else 0
        self.stream = path.open("ab", buffering=0)  # closing must not repeat a failed write
        self.stream.truncate(whole)  # an incomplete last line would spoil the next one
        self._whole = whole
        if not whole:
            digest = _digest(settings)
            self._write(
                {"format": _FORMAT, "schema": _SCHEMA, "sha256": digest, "settings": settings}
            )

    def append(self, key: str, value: Any) -> None:
        """Write one line, and read it back as a resumed run would."""
        # Tuples become lists in JSON: a first and a resumed run must work with the same types.
        self.values[key] = json.loads(self._write({"key": key, "value": value}))["value"]

    def _write(self, line: Mapping[str, Any]) -> bytes:
        # In ASCII, so that the file can hold whatever text a server sends.
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            left = memoryview(data)
            # An unbuffered stream may write less than it was given.
            while left:
                left = left[self.stream.write(left) :]
            os.fsync(self.stream.fileno())
        except OSError as error:
            with suppress(OSError):  # remove the incomplete line
                self.stream.truncate(self._whole)
            raise _unwritten(self.path, error) from None
        self._whole += len(data)
        return data

    def _read(self, settings: Mapping[str, Any]) -> int:
        """Read the values; returns the length of all complete lines, in bytes."""
        if self.path.stat().st_size > _MAX_BYTES:
            raise KPruneError(
                f"{self.path} is larger than {_MAX_BYTES >> 30} GiB; start over with --fresh"
            )
        whole = 0
        with self.path.open("rb") as stream:
            # With a limit, a file without line ends cannot fill the memory.
            lines = iter(lambda: stream.readline(_LINE.bytes + 1), b"")
            for number, data in enumerate(lines, 1):
                if not data.endswith(b"\n") and len(data) > _LINE.bytes:
                    raise _damaged(self.path, number)
                if not data.endswith(b"\n"):
                    break  # cut off by a kill
                self._take(number, data, settings)
                whole += len(data)
        return whole

    def _take(self, number: int, data: bytes, settings: Mapping[str, Any]) -> None:
        try:
            line = parse_json(data, _LINE)
            if number == 1:
                _check_header(self.path, line, settings)
            else:
                self.values[str(line["key"])] = line["value"]
        except (Unfit, AttributeError, KeyError, TypeError):
            raise _damaged(self.path, number) from None


def _damaged(path: Path, number: int) -> KPruneError:
    return KPruneError(f"{path}, line {number}, is damaged; start over with --fresh")


def _unwritten(path: Path, error: OSError) -> KPruneError:
    return KPruneError(
        f"{path} cannot be written: {error.strerror or error}; earlier answers are kept, and the "
        "same command resumes"
    )


def kept_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run whose answers are in the folder."""
    path = folder / _FOLDER / "endpoints.jsonl"
    try:
        with path.open("rb") as stream:
            header = parse_json(stream.readline(_SETTINGS.bytes), _SETTINGS)
        settings = header["settings"]
        if not isinstance(settings, dict):
            raise TypeError
        _check_header(path, header, settings)
    except OSError:
        raise KPruneError(
            f"{folder} has no answers of a comparison; expected the folder of a run (its -o)"
        ) from None
    except (Unfit, KeyError, TypeError):
        raise KPruneError(f"{path}, line 1, is damaged, so its run cannot be read") from None
    return settings


def set_aside(folder: Path) -> Path | None:
    """Move a run's folder to `FOLDER.1`, `FOLDER.2`, ...; None where there is nothing to move."""
    if not folder.exists():
        return None
    if not (folder / _FOLDER).is_dir():
        raise KPruneError(
            f"{folder} has no answers of a comparison, and --fresh moves no other folders; "
            "choose another -o"
        )
    # A run that is under way would go on writing into the moved folder.
    lock = FileLock(folder / _FOLDER / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise KPruneError(
            f"another comparison is writing to {folder}; wait for it, or choose another -o"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise KPruneError(f"{folder} cannot be moved: {error}") from None
    try:
        return _moved(folder)
    finally:
        lock.release()


def _moved(folder: Path) -> Path:
    number = 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    try:
        return folder.rename(target)
    except OSError as error:
        raise KPruneError(f"{folder} cannot be moved to {target}: {error.strerror}") from None


def _check_header(path: Path, header: Any, settings: Mapping[str, Any]) -> None:
    if header["format"] != _FORMAT or header["schema"] != _SCHEMA:
        raise KPruneError(
            f"{path} was written by another version of kprune; choose another -o, or start over "
            "with --fresh"
        )
    if header["sha256"] == _digest(settings):
        return
    kept = header["settings"]
    names = sorted(name for name in {*kept, *settings} if kept.get(name) != settings.get(name))
    differences = (
        f"{name} was {shown(kept.get(name))}, now {shown(settings.get(name))}" for name in names
    )
    raise KPruneError(
        f"{path.parent.parent} holds a run with other settings ({'; '.join(differences)}); "
        "choose another -o, or start over with --fresh"
    )


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
