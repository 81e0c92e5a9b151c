"""A `vllm serve` process that is started, waited for, and always stopped.

`kprune demo` and the live tests run real servers. A server starts in its own process group, on a
free port, with its output in a log file. If it dies before it answers, the error has the end of its
log. On leaving, also by Ctrl-C (or SIGTERM, see `signals`), the whole group is stopped. This module
only speaks HTTP and does not import vllm.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from vllm_kprune.errors import KPruneError

__all__ = [
    "ServerFailed",
    "VllmServer",
    "free_port",
    "log_tail",
    "stop_group",
    "wait_all_ready",
]

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 20.0
# "Engine core initialization failed" is the last error of a log, but an earlier one says why.
_CAUSE = re.compile(r"\b([A-Z]\w*(?:Error|Exception): (?!Engine core initialization failed).+)")


class ServerFailed(KPruneError):
    """A server did not become ready; `summary` is one line, the message adds the end of its log."""

    def __init__(self, what: str, log: Path) -> None:
        causes = _CAUSE.findall(log_tail(log, lines=400))
        cause = f" ({causes[-1].strip()})" if causes else ""
        self.summary = f"{what}{cause}; its log is {log}"
        super().__init__(f"{what}; the end of its log ({log}):\n{log_tail(log)}")


class VllmServer:
    """`vllm serve MODEL …` as a context manager; inside the `with` block it answers.

    >>> with VllmServer("build/enko", ["--plugin", "kprune"]) as server:  # doctest: +SKIP
    ...     client = OpenAI(base_url=server.base_url, api_key="none")

    `arguments` are passed to `vllm serve` after the model and must not contain `--host` or
    `--port`. `environment` is added to this process's own. If `log` names a file, the log is kept
    there; otherwise it is a temporary file that is deleted after a clean stop. Entering raises
    `ServerFailed` if the server stops or is not ready within `timeout` seconds.
    """

    def __init__(
        self,
        model: str | Path,
        arguments: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        timeout: float = 600.0,
    ) -> None:
        self.model = str(model)
        # Another process may still take the port before the server does.
        self.port = free_port()
        self.ready_seconds = 0.0
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        self._keep_log = log is not None
        self.log = log or _temporary_log()
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The root URL of the server: `http://127.0.0.1:PORT`."""
        return f"http://{_HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """The base URL for an OpenAI client: `url` followed by `/v1`."""
        return f"{self.url}/v1"

    @property
    def pid(self) -> int:
        """The process id of the API server, which leads the group; only while it runs."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None and not self._keep_log:
            self.log.unlink(missing_ok=True)

    def start(self) -> None:
        """Start the process and return at once; call `wait_ready` afterwards."""
        environment = {**os.environ, **self._environment}
        environment["PATH"] = os.pathsep.join([str(_bin_folder()), environment.get("PATH", "")])
        address = ("--host", _HOST, "--port", str(self.port))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_vllm_command(), "serve", self.model, *self._arguments, *address],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Its own group, which `killpg` reaches as a whole, and which Ctrl-C does not reach.
                start_new_session=True,
            )
        self._started = time.monotonic()

    def wait_ready(self) -> None:
        """Return once `/health` answers 200; raise `ServerFailed` if the process ends before."""
        wait_all_ready([self])

    def is_ready(self) -> bool:
        """Whether `/health` answers 200; raises `ServerFailed` if it never will, or is too late."""
        waited = time.monotonic() - self._started
        if self._answers():
            # The first time counts, however often this is called.
            self.ready_seconds = self.ready_seconds or waited
            return True
        code = self._process.poll() if self._process else None
        if code is not None:
            raise self._failed(f"stopped with exit code {code}")
        if waited > self._timeout:
            raise self._failed(f"was not ready after {waited:.0f} s")
        return False

    def ask_to_stop(self) -> None:
        """Begin to stop without waiting, so that several servers stop at once; then call `stop`."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """Stop the server and every process it started; does nothing if it has stopped already."""
        if self._process is not None:
            stop_group(self._process)
            self._process = None

    def _answers(self) -> bool:
        # Proxies from the environment are not for a server on this machine.
        opener = build_opener(ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"`vllm serve {self.model}` {what}", self.log)


def wait_all_ready(servers: Iterable[VllmServer]) -> None:
    """Wait for servers that were started together; raise `ServerFailed` for the first that fails.

    Each gets its own `ready_seconds`.
    """
    waiting = list(servers)
    while waiting := [server for server in waiting if not server.is_ready()]:
        time.sleep(_POLL_SECONDS)


def free_port() -> int:
    """A TCP port of the loopback interface that is free at the moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def log_tail(path: Path, lines: int = 30) -> str:
    """The last `lines` lines of a text file of any size."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - lines * 1000))
        text = stream.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def stop_group(process: subprocess.Popen[bytes], seconds: float = _STOP_SECONDS) -> None:
    """End a process that leads its own group: SIGTERM to it, then SIGKILL to the whole group.

    The leader stops its children itself. vLLM's engine and worker processes outlive an API server
    that was killed, so the group is killed even if its leader ended normally.
    """
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:  # even if a second Ctrl-C ends the wait
        with suppress(ProcessLookupError):  # the whole group has ended already
            # The group has the id of its leader (`start_new_session`).
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _bin_folder() -> Path:
    return Path(sys.executable).parent


def _vllm_command() -> list[str]:
    command = _bin_folder() / "vllm"
    if not command.is_file():
        raise KPruneError(
            f"there is no `vllm` command next to {sys.executable}; "
            "install vLLM into the same environment (`make setup`, or vllm-kprune[gpu])"
        )
    return [str(command)]


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="kprune-vllm-", suffix=".log")
    os.close(handle)
    return Path(name)
