"""The front end builds what a new policy needs; a worker only reads it."""

import asyncio
import threading
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.guard_engines import NUM_ROWS, Engine, sampling_params

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.stored import AutomatonSpec
from vllm_kprune.serving.compat.requests import prepare_requests
from vllm_kprune.serving.compat.seams_requests import ADD_REQUEST
from vllm_kprune.serving.environment import COUNTER_FOLDER
from vllm_kprune.serving.guard import prepared
from vllm_kprune.serving.guard.admission import admit, to_prepare
from vllm_kprune.serving.guard.hooks import _to_prepare
from vllm_kprune.serving.guard.requests import Guards

pytestmark = pytest.mark.usefixtures("vllm_ready")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The policies that were built, in a cache of the test's own, by their extra characters."""
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    calls: list[str] = []
    build = AutomatonSpec.build

    def counted(spec: AutomatonSpec, *rest: Any) -> Any:
        calls.append(spec.policy.allow if spec.policy else "")
        return build(spec, *rest)

    monkeypatch.setattr(AutomatonSpec, "build", counted)
    return calls


def asking(allow: str, **options: Any) -> Any:
    return sampling_params(admitted=False, extra_args={"kprune_allow": allow}, **options)


def test_a_worker_reads_what_the_front_end_has_built(engine: Engine, built: list[str]) -> None:
    config = engine.config
    params = asking("α")
    for _ in range(3):
        admit(config, params)
    assert built == ["α"]
    guards = Guards(config, NUM_ROWS)  # builds the default's, which nobody has admitted
    assert built == ["α", ""]
    found = guards.of_request(params, ())
    assert found
    assert found.automaton.policy.allow == "α"
    assert built == ["α", ""]


def test_a_worker_without_the_file_builds_it_itself(
    engine: Engine, built: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, params = engine.config, asking("β")
    admit(config, params)
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "of another machine"))
    assert Guards(config, NUM_ROWS).of_request(params, ())
    assert built == ["β", "", "β"]


def test_json_answers_have_tables_of_their_own(engine: Engine, built: list[str]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(json_object=True)
    for params in (asking("γ"), asking("γ", structured_outputs=grammar)):
        assert to_prepare(engine.config, params)
        admit(engine.config, params)
        assert to_prepare(engine.config, params) is None
    assert built == ["γ", "γ"]


def test_a_server_builds_in_a_thread_and_leaves_the_parameters_alone(
    engine: Engine, built: list[str]
) -> None:
    threads: list[str] = []

    def noted(config: Any, params: Any) -> Any:
        slow = to_prepare(config, params)
        build = slow and (lambda: (threads.append(threading.current_thread().name), slow()))
        return build and prepared.in_turn(build)

    add = prepare_requests(noted)[ADD_REQUEST]
    llm, params = SimpleNamespace(vllm_config=engine.config), asking("δ")

    async def original(*given: Any) -> Any:
        return given

    for _ in range(2):
        assert asyncio.run(add(original, llm, "r", [1], params)) == (llm, "r", [1], params)
    assert params.extra_args == {"kprune_allow": "δ"}
    assert built == ["δ"]
    assert len(threads) == 1
    assert threads[0] != threading.main_thread().name


def test_a_policy_that_leaves_no_token_is_the_clients_mistake(
    engine: Engine, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise KPruneError("leaves none of the vocabulary's 960 tokens")

    monkeypatch.setattr(AutomatonSpec, "build", refuse)
    assert built == []
    add = prepare_requests(_to_prepare)[ADD_REQUEST]
    monkeypatch.setenv(COUNTER_FOLDER, "somewhere")  # this server has a guard
    llm = SimpleNamespace(vllm_config=engine.config)
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="leaves none"):
        asyncio.run(add(None, llm, "r", [1], asking("ε")))


def test_new_policies_are_built_one_after_the_other_and_few_may_wait(
    engine: Engine, built: list[str]
) -> None:
    """Whoever sends many of them gets HTTP 503; vLLM's own threads stay free."""
    from vllm.exceptions import RetryableRequestError

    let_go, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert let_go.wait(20)

    async def run() -> None:
        tasks = [asyncio.create_task(prepared.in_turn(slow)) for _ in range(16)]
        assert await asyncio.to_thread(begun.wait, 20)
        assert await asyncio.to_thread(lambda: 7) == 7
        with pytest.raises(RetryableRequestError, match="16 requests wait for guards"):
            await prepared.in_turn(slow)
        tasks.pop().cancel()  # a client that leaves makes room
        await asyncio.sleep(0.01)
        tasks.append(
            asyncio.create_task(prepared.in_turn(lambda: admit(engine.config, asking("ζ"))))
        )
        let_go.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert built == ["ζ"]
    assert not prepared._waiting


def test_only_a_few_policies_are_remembered(
    engine: Engine, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "_MOST_REMEMBERED", 2)
    monkeypatch.setattr(prepared, "_kept", OrderedDict())
    for allow in ("α", "β", "γ", "α"):
        admit(engine.config, asking(allow))
    assert len(prepared._kept) == 2
    assert built == ["α", "β", "γ"]  # the file is still there
