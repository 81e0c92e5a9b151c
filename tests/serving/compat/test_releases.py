"""What differs between the vLLM releases that kprune supports, made up on the installed one."""

import subprocess
import sys
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat import version
from vllm_kprune.serving.compat.engine import stream_weights
from vllm_kprune.serving.compat.prompts import server_error

pytestmark = pytest.mark.usefixtures("vllm_ready")


@pytest.mark.parametrize("release", ["0.31.0", "0.31.1+cpu", "0.33.0"])
def test_supported_releases_are_accepted(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "vllm_version", lambda: release)
    version.check_version()


@pytest.mark.parametrize("release", ["0.29.0", "0.30.1"])
def test_a_release_without_processors_of_the_v2_runner_is_refused_with_that_reason(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "vllm_version", lambda: release)
    reason = rf"this is {release}; before 0\.31, vLLM's V2 model runner takes no logits processors"
    with pytest.raises(KPruneError, match=reason):
        version.check_version()


def test_a_busy_pruner_is_http_503_in_every_release(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import exceptions
    from vllm.entrypoints.serve import create_error_response

    codes = [create_error_response(server_error("full", busy=True)).error.code]
    for gone in ("RetryableRequestError", "GracefulHTTPError"):  # the first in 0.31
        monkeypatch.delattr(exceptions, gone)
        error = server_error("full", busy=True)
        codes.append(getattr(error, "http_status", getattr(error, "status_code", None)))
    assert codes == [503, 503, 500]


@pytest.mark.parametrize("fields", [[], ["is_unused_weight"]])
def test_weights_are_streamed_with_what_a_release_takes(fields: list[str]) -> None:
    source = make_dataclass("Source", ["model_or_path", "revision", "fall_back_to_pt", *fields])
    loader: Any = SimpleNamespace(
        Source=source, _get_weights_iterator=lambda one: iter([vars(one)])
    )
    unused = object()
    model = SimpleNamespace(is_unused_checkpoint_weight=unused)
    (asked,) = stream_weights(loader, Path("base"), model)
    expected = {"model_or_path": "base", "revision": None, "fall_back_to_pt": False}
    assert asked == {**expected, **dict.fromkeys(fields, unused)}


@pytest.mark.slow
def test_the_guards_class_imports_without_one_of_its_bases() -> None:
    code = """
import sys
import vllm.v1.sample.logits_processor
import vllm_kprune.serving.guard.processor

INTERFACES = (
    "vllm.v1.sample.logits_processor.interface",
    "vllm.v1.worker.gpu.sample.logits_processor.interface",
)
for gone in (None, *INTERFACES):
    for name in [*sys.modules]:
        if name.startswith("vllm_kprune.serving") or name in INTERFACES:
            del sys.modules[name]
    if gone:
        sys.modules[gone] = None
    from vllm_kprune.serving.guard.processor import LanguageGuard
    print(*sorted(base.__module__.split(".")[0] for base in LanguageGuard.__bases__))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["vllm vllm", *["vllm vllm_kprune"] * 2]
