"""The suite `memory`: every metric from its source, or the reason why there is none."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mock_endpoint import MockClient, comparing, scoring
from support.tiny_folders import save_model

from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.suites.memory import Memory, cache_tokens

METRICS = (
    "# TYPE vllm:cache_config_info gauge\n"
    'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="%d"} 1.0\n'
)
KPRUNE = {"active": True, "vocabulary_bytes": {"original": 1000, "kept": 400}}


def run(folder: Path, sides: list[dict[str, Any]], **options: Any) -> SuiteResult:
    urls = options.pop("urls", ("http://192.0.2.1:1/v1", "http://192.0.2.2:1/v1"))
    clients = [
        MockClient(name, scoring, paths=paths, url=url)
        for name, paths, url in zip(("original", "pruned"), sides, urls, strict=True)
    ]
    with comparing(folder, *clients, **options) as context:
        return Memory().run(context)


def test_what_endpoints_tell_is_told(tmp_path: Path) -> None:
    sides = [{"/metrics": METRICS % 100}, {"/metrics": METRICS % 120, "/kprune": KPRUNE}]
    found = {m.metric.name: m for m in run(tmp_path, sides).measurements}
    assert set(found) == {"vocabulary", "kv_cache"}
    assert (found["kv_cache"].original.item(), found["kv_cache"].pruned.item()) == (1600, 1920)
    assert (found["vocabulary"].original.item(), found["vocabulary"].pruned.item()) == (1000, 400)
    assert all(m.metric.aggregate == "exact" for m in found.values())


def test_what_nobody_tells_has_a_reason_and_is_not_zero(tmp_path: Path) -> None:
    found = run(tmp_path, [{}, {}])
    assert found.measurements == ()
    assert set(found.unavailable) == set(Memory().metrics)
    assert "--original-folder" in found.unavailable["weights_loaded"]
    assert "not on this machine" in found.unavailable["processes"]


@pytest.mark.parametrize(
    "status",
    [[], "x", {}, {"vocabulary_bytes": {"original": "1", "kept": 2}}, {"vocabulary_bytes": {}}],
)
def test_a_hostile_status_is_no_figure(tmp_path: Path, status: Any) -> None:
    assert "vocabulary" in run(tmp_path, [{}, {"/kprune": status}]).unavailable


@given(st.text(max_size=200))
def test_no_text_of_metrics_breaks_the_reader(text: str) -> None:
    assert cache_tokens(text) is None
    assert cache_tokens(f"{text}\n" + METRICS % 3) == 48


def test_caches_of_several_engines_add_up() -> None:
    assert cache_tokens(METRICS % 3 + METRICS % 4) == 112
    assert cache_tokens('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1') is None


def test_the_process_that_listens_is_found_with_its_children(tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="psutil is not installed")
    with socket.create_server(("127.0.0.1", 0)) as listener, other_listener() as other:
        urls = tuple(f"http://127.0.0.1:{port}/v1" for port in (listener.getsockname()[1], other))
        found = {m.metric.name: m for m in run(tmp_path, [{}, {}], urls=urls).measurements}
        # One process behind both addresses has no size of each side.
        same = run(tmp_path / "same", [{}, {}], urls=(urls[0], urls[0].replace("/v1", "/a/v1")))
        assert "one process serves both sides" in same.unavailable["processes"]
    own, small = found["processes"].original.item(), found["processes"].pruned.item()
    assert own > small > 2**20 and os.getpid()
    assert "processes" in run(tmp_path / "after", [{}, {}], urls=urls).unavailable


@contextmanager
def other_listener() -> Iterator[int]:
    """The port of another process that listens."""
    listens = (
        "import socket; server = socket.create_server(('127.0.0.1', 0)); "
        "print(server.getsockname()[1], flush=True); input()"
    )
    command = [sys.executable, "-c", listens]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def test_folders_tell_weights_and_an_answer_is_kept(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    sides: list[dict[str, Any]] = [{}, {}]
    options = {"original_folder": folder, "pruned_folder": folder}
    found = {m.metric.name: m for m in run(tmp_path / "run", sides, **options).measurements}
    disk, loaded = found["weights_disk"].original.item(), found["weights_loaded"].original.item()
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert disk == files and 0 < loaded < files  # a file has a header too
    assert run(tmp_path / "run", sides).measurements  # resumed without the folders


def test_a_figure_that_was_not_to_be_had_is_looked_up_again(tmp_path: Path) -> None:
    first = run(tmp_path, [{}, {}])
    assert "kv_cache" in first.unavailable
    again = run(tmp_path, [{"/metrics": METRICS % 100}, {"/metrics": METRICS % 120}])
    assert [m.metric.name for m in again.measurements] == ["kv_cache"]
    kept = run(tmp_path, [{}, {}])
    assert kept.measurements[0].original.item() == 1600
