"""Small real models and hand-made overlays for the serving tests, and the two live servers."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from support.guard_engines import Engine, make_engine
from support.tiny_models import (
    CHAT_TEMPLATE,
    ENVIRONMENT,
    SERVE,
    OverlayMaker,
    overlay_by_hand,
    save_tied_model,
    save_untied_model,
)

from vllm_kprune.demo.servers import VllmServer, log_tail


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow warnings: vLLM gives some when it is imported and configured."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def vllm_ready() -> None:
    """vLLM imported, with kprune's plugin loaded as vLLM itself loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.engine.arg_utils import EngineArgs

        EngineArgs(model="unused")
    assert EngineArgs.create_model_config.__kprune_wraps__


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Gemma-3 with random bfloat16 weights and a tied head."""
    return save_tied_model(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random float32 weights and a head of its own."""
    return save_untied_model(tmp_path_factory.mktemp("untied"))


@pytest.fixture
def make_overlay(tmp_path: Path) -> OverlayMaker:
    """Make an overlay by hand, without a tokenizer: `make_overlay(base, tensors, kept_ids)`."""
    return partial(overlay_by_hand, tmp_path / "overlay")


@pytest.fixture(scope="session", params=["byte_level", "byte_fallback"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The configuration of an engine with a small trained tokenizer, guarded by default."""
    return make_engine(request.param, tmp_path_factory.mktemp(request.param))


_COMPACT_JSON = '{"backend": "xgrammar", "disable_any_whitespace": true}'


@pytest.fixture(scope="session")
def servers(
    reference_model: Path, overlay: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmServer, VllmServer]]:
    """The original and the pruned model, both served with the plugin, once for all tests.

    Log-probabilities are answered as logits after masking, which shows whether two answers differ
    by a tie. Both have an input pruner, which does nothing until a request asks.
    """
    logs = tmp_path_factory.mktemp("server-logs")
    arguments = [*SERVE, "--logprobs-mode", "processed_logits", "--trust-request-chat-template"]
    # CPUs without bfloat16 instructions compute a batch four times faster so, and without ties.
    arguments += ["--dtype", "float32"]
    # Otherwise a small base model fills JSON documents with white space.
    arguments += ["--structured-outputs-config", _COMPACT_JSON]
    template = logs / "template.jinja"
    template.write_text(CHAT_TEMPLATE)
    arguments += ["--chat-template", str(template), "--enable-prompt-tokens-details"]
    arguments += ["--kprune-input-pruner", "self", "--kprune-pruner-cache", "1"]
    arguments += [
        "--kprune-pruner-seconds",
        "60",
    ]  # one test cancels a long one
    own = {"original": ["auto"], "pruned": ["0", "--kprune-usage"]}
    with ExitStack() as stack:
        both = [
            VllmServer(
                model,
                [*arguments, "--kprune-min-tokens", *own[name]],
                environment=ENVIRONMENT,
                log=logs / f"{name}.log",
            )
            for name, model in (("original", reference_model), ("pruned", overlay))
        ]
        for server in both:  # they start side by side
            stack.callback(server.stop)
            server.start()
        for server in both:
            server.wait_ready()
        yield both[0], both[1]


@pytest.fixture
def original(for_servers: None, servers: tuple[VllmServer, VllmServer]) -> VllmServer:
    """The server of the original model."""
    return servers[0]


@pytest.fixture
def pruned(for_servers: None, servers: tuple[VllmServer, VllmServer]) -> VllmServer:
    """The server of the pruned model."""
    return servers[1]


@pytest.fixture
def for_servers(request: pytest.FixtureRequest) -> None:
    """Refuse a test without the marker: `-m "not server"` has to leave out every server."""
    assert request.node.get_closest_marker("server"), "mark it with pytest.mark.server"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the end of the servers' logs with a live test that failed."""
    report = yield
    if report.when == "call" and report.failed and item.get_closest_marker("server"):
        for server in getattr(item, "funcargs", {}).get("servers", ()):
            report.sections.append((f"log of {server.model}", log_tail(server.log)))
    return report
