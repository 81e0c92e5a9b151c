"""What a server writes into the requests that it admits, and what is left as the caller gave it."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.guard_engines import NUM_ROWS, Engine, sampling_params
from support.tiny_folders import read, save_model, write_json

from vllm_kprune.guard.stored import AutomatonSpec
from vllm_kprune.serving.environment import COUNTER_FOLDER, NAMED
from vllm_kprune.serving.guard.admission import admit, admitted, note_tools
from vllm_kprune.serving.guard.requests import Guards
from vllm_kprune.serving.request_options import ADMITTED

pytestmark = pytest.mark.usefixtures("vllm_ready")

TOOLS = SimpleNamespace(tools=[{"type": "function"}], tool_choice="auto")
Outputs = dict[str, Any]


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's own processor of inputs, of an engine with a guard."""
    monkeypatch.setenv(NAMED, "kprune")
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.input_processor import InputProcessor

    model = save_model(tmp_path / "model")
    config = read(model / "config.json") | {"hidden_size": 64, "num_attention_heads": 2}
    del config["text_config"]
    write_json(model / "config.json", config)
    write_json(model / "tokenizer_config.json", {"eos_token": "<eos>"})
    return InputProcessor(EngineArgs(model=str(model), max_model_len=32).create_engine_config())


@pytest.fixture
def take_in(processor: Any) -> Callable[..., Any]:
    """Take a request in, as server and `LLM` do; gives the parameters that go to the engine."""

    def process(params: Any) -> Any:
        prompt = {"type": "token", "prompt_token_ids": [5, 6]}
        request = processor.process_inputs("r", prompt, params, supported_tasks=("generate",))
        return request.sampling_params

    return process


def test_every_request_gets_the_marker_and_the_callers_parameters_stay(
    take_in: Callable[..., Any],
) -> None:
    given = {"kprune_languages": "ko", "other": [1]}
    for shared in (
        sampling_params(admitted=False),
        sampling_params(admitted=False, extra_args=given, n=3, skip_clone=True),
    ):
        before = deepcopy((shared.extra_args, shared.stop_token_ids))
        for _ in range(2):  # `LLM` takes one object for many prompts
            params = take_in(shared)
            assert admitted(params) == (True, "off")
            rest = {k: v for k, v in params.extra_args.items() if k != ADMITTED}
            assert rest == (shared.extra_args or {})
        assert (shared.extra_args, shared.stop_token_ids) == before
        # Parameters that were admitted once, such as those of a request that is sent on.
        assert take_in(params).extra_args == params.extra_args


def test_a_client_cannot_write_the_marker(take_in: Callable[..., Any]) -> None:
    params = take_in(sampling_params(admitted=False, extra_args={ADMITTED: "json"}))
    assert admitted(params) == (True, "off")


def test_an_engine_without_a_guard_marks_nothing(engine: Engine) -> None:
    config = engine.config
    config.model_config.logits_processors = None
    config.additional_config = {}
    params = sampling_params(admitted=False)
    admit(config, params)
    assert params.extra_args is None


def test_requests_that_vllm_makes_itself_are_guarded_and_not_counted(engine: Engine) -> None:
    guards = Guards(engine.config, 960)
    own = guards.of_request(sampling_params(admitted=False), ())
    client = guards.of_request(sampling_params(), ())
    assert own
    assert client
    assert own.automaton is client.automaton
    assert (own.counted, client.counted) == (False, True)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (None, "off"),
        ({"json": {"type": "object"}}, "json"),
        ({"json_object": True}, "json"),
        ({"regex": "[0-9]+"}, "off"),
        ({"choice": ["a", "b"]}, "off"),
        ({"structural_tag": "{}"}, "json"),
    ],
)
def test_answers_that_are_json_are_known_by_their_grammar(
    engine: Engine, outputs: Outputs | None, expected: str
) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(**outputs) if outputs else None
    params = sampling_params(admitted=False, structured_outputs=grammar)
    admit(engine.config, params)
    assert admitted(params) == (True, expected)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (TOOLS, "json"),
        (SimpleNamespace(tools=TOOLS.tools, tool_choice="none"), "off"),
        (SimpleNamespace(tools=None, tool_choice="none"), "off"),
        (SimpleNamespace(), "off"),
    ],
)
def test_answers_may_be_tool_calls(engine: Engine, request_: Any, expected: str) -> None:
    params = sampling_params(admitted=False, extra_args={"other": 1})
    note_tools(request_, params)
    for _ in range(2):
        admit(engine.config, params)
    assert admitted(params) == (True, expected)
    assert params.extra_args["other"] == 1


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_tools_are_seen_in_the_requests_of_both_apis(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    params = REQUESTS[kind]()
    assert params.extra_args[ADMITTED] == {"tools": True}
    monkeypatch.delenv(COUNTER_FOLDER)
    assert not REQUESTS[kind]().extra_args


def _chat() -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    function = {"name": "f", "parameters": {"type": "object"}}
    return ChatCompletionRequest(
        messages=[{"role": "user", "content": "Hi"}],
        tools=[{"type": "function", "function": function}],
        tool_choice="auto",
    ).to_sampling_params(16, {})


def _response() -> Any:
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    return ResponsesRequest(input="Hi", tools=[tool]).to_sampling_params(16)


REQUESTS = {"chat": _chat, "responses": _response}


def test_a_dead_end_stops_an_answer_that_ignores_its_end(
    take_in: Callable[..., Any], processor: Any
) -> None:
    config = processor.vllm_config
    end = config.model_config.hf_text_config.eos_token_id[0]

    def stops(**options: Any) -> list[int]:
        given = sampling_params(admitted=False, ignore_eos=True, max_tokens=4, **options)
        return take_in(given).stop_token_ids or []

    from vllm.sampling_params import StructuredOutputsParams

    (guards_end,) = stops(allowed_token_ids=[7])
    params = take_in(sampling_params(admitted=False, ignore_eos=True, allowed_token_ids=[7]))
    guard = Guards(config, config.model_config.get_vocab_size()).of_request(_asking(params), ())
    assert guard
    assert guard.end_id == guards_end
    assert stops(structured_outputs=StructuredOutputsParams(regex="a+")) == [guards_end]
    # Where the model itself may write the end, it is ignored, as was asked.
    assert stops() == []
    assert stops(allowed_token_ids=[7, guards_end]) == []
    assert stops(allowed_token_ids=[7], stop_token_ids=[9]) == [9, guards_end]
    assert end in (guards_end, *config.model_config.hf_text_config.eos_token_id)


def _asking(params: Any) -> Any:
    params.extra_args = {**params.extra_args, "kprune_languages": "ko"}
    return params


def test_a_new_guard_is_built_where_the_request_arrives_and_the_engine_only_reads_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    guards = Guards(engine.config, NUM_ROWS)
    requests = [
        sampling_params(admitted=False, extra_args=extra_args)
        for extra_args in (None, {"kprune_languages": "ja"}, {"kprune_scripts": "Hangul"})
    ]
    for params in requests:
        admit(engine.config, params)
    monkeypatch.setattr(AutomatonSpec, "build", lambda *_: pytest.fail("built in the engine"))
    found = [guards.of_request(params, ()) for params in requests]
    assert [guard and guard.automaton.label for guard in found] == ["en+ko", "ja", "Hangul"]
