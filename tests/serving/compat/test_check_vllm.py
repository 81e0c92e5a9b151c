"""`packaging/check_vllm.py`: the table of vLLM names against made-up wheels and real releases."""

import http.server
import importlib
import json
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.made_up_vllm import Change, source_files

from vllm_kprune.serving.compat import seams_engine, seams_guard, seams_requests
from vllm_kprune.serving.compat.features import VERSIONS
from vllm_kprune.serving.compat.seams import SEAMS

ROOT = Path(__file__).parents[3] / "packaging"
KNOWN = {
    "0.31.0": {
        "DefaultModelLoader.Source.is_unused_weight",
        "InputProcessor.resolve_watermarking",
        "RetryableRequestError",
    },
    "0.32.0": set(),
    "0.33.0": set(),
}
CHANGES = [
    Change(seams_requests.VALIDATE_PARAMS, "gone"),
    Change(seams_requests.VALIDATE_PARAMS, "parameters"),
    Change(seams_engine.SERVE_COMMAND, "binding"),
    Change(seams_guard.V2_CONTEXT, "parameters"),
]


@pytest.fixture
def check_vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("check_vllm")


@pytest.fixture
def wheel(tmp_path: Path) -> Callable[..., Path]:
    """Makes a wheel of a made-up vLLM."""

    def make(change: Change | None = None, name: str = "vllm-0.32.0-py3-none-any.whl") -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("vllm/_C.abi3.so", bytes(3 << 20))
            for member, text in source_files(change).items():
                archive.writestr(member, text)
        return path

    return make


def test_a_wheel_with_every_name_passes(check_vllm: Any, wheel: Any, capsys: Any) -> None:
    assert check_vllm.main([str(wheel())]) == 0
    assert f"{len(SEAMS)} of {len(SEAMS)} names as expected (local)" in capsys.readouterr().out


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_wheel_that_changed_a_name_fails_and_says_which(
    check_vllm: Any, wheel: Any, capsys: Any, change: Change
) -> None:
    path = wheel(change)
    assert check_vllm.main([str(path)]) == 1
    told = capsys.readouterr().out
    assert f"{change.seam}: expected {change.seam.expected}, found " in told
    assert f"lost: {change.seam.lost} [the feature is off]" in told
    assert check_vllm.main([str(path), "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["usable"] is False
    found = [row["name"] for row in report["seams"] if row["problem"]]
    assert found == [str(seam) for seam in SEAMS if seam in change.affected]


def test_a_name_that_servers_start_without_is_shown_and_no_failure(
    check_vllm: Any, wheel: Any, capsys: Any
) -> None:
    assert check_vllm.main([str(wheel(Change(seams_requests.BEAM_SEARCH, "gone")))]) == 0
    assert "they run unguarded [one warning at start]" in capsys.readouterr().out


def test_an_unpacked_wheel_will_do_and_vllm_is_not_imported(
    check_vllm: Any, wheel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel()) as archive:
        archive.extractall(tmp_path / "unpacked")
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it would fail
    assert check_vllm.main([str(tmp_path / "unpacked")]) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nothing.whl", "is no file, no folder and no version"),
        (lambda folder: folder, "has no vllm/__init__.py"),
        (lambda folder: Path(__file__), "is not a wheel"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    check_vllm: Any, capsys: Any, tmp_path: Path, make: Any, message: str
) -> None:
    assert check_vllm.main([str(make(tmp_path))]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


class _Index(http.server.SimpleHTTPRequestHandler):
    """A package index of one folder, with range requests if the server `has_ranges`."""

    has_ranges = True

    def do_GET(self) -> None:
        file = Path(self.directory) / Path(self.path).name
        if self.path == "/simple/vllm/":
            self._send(
                200, "".join(f'<a href="../../{p.name}">' for p in file.parent.iterdir()).encode()
            )
            return
        if not file.is_file():
            self.send_error(404)
            return
        data, asked = file.read_bytes(), self.headers.get("Range")
        if not asked or not self.has_ranges:
            self._send(200, data)
            return
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        self._send(206, data[first : last + 1], f"bytes {first}-{last}/{len(data)}")

    def _send(self, status: int, body: bytes, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[type[_Index]]:
    """Serves the test's folder as the package index that pip is configured for."""

    class Handler(_Index):
        has_ranges = request.param

    handler = partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
        yield Handler
        server.shutdown()


@pytest.mark.parametrize("index", [True, False], indirect=True)
def test_of_a_release_in_the_index_only_python_files_are_fetched_and_once(
    check_vllm: Any, wheel: Any, index: type[_Index]
) -> None:
    size = wheel(name="vllm-0.40.0-cp38-abi3-any.whl").stat().st_size
    first, again = (check_vllm.check("0.40.0") for _ in range(2))
    assert first.problems == again.problems == []
    assert first.release.requests > 0
    assert index.has_ranges or first.release.fetched_bytes >= size
    assert again.cost == "from kprune's cache"
    with zipfile.ZipFile(first.release.path) as kept:
        assert all(name.endswith(".py") for name in kept.namelist())


@pytest.mark.parametrize("index", [True], indirect=True)
def test_a_release_that_the_index_does_not_have_is_a_mistake(
    check_vllm: Any, wheel: Any, index: type[_Index], capsys: Any
) -> None:
    wheel()
    assert check_vllm.main(["9.9.9"]) == 2
    assert "the package index has no vllm 9.9.9" in capsys.readouterr().err


def test_an_index_out_of_reach_is_said_so(
    check_vllm: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path))
    assert check_vllm.main(["0.31.0"]) == 2
    assert "the package index cannot be reached" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.slow
def test_every_supported_release_has_every_name_but_those_that_the_table_excepts(
    check_vllm: Any, version: str
) -> None:
    from vllm_files import Unreachable

    try:
        report = check_vllm.check(version)
    except Unreachable as error:
        pytest.skip(f"vLLM {version} cannot be fetched: {error}")
    assert {finding.seam.name for finding in report.problems} == KNOWN[version]
    assert all(report.is_known(finding) for finding in report.problems)
    assert report.is_usable
