"""Reasoning on the V1 runner: which tokens a row refuses, and what is counted, phase by phase."""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.guard_engines import NUM_ROWS, PROMPTS, Engine, sampling_params, spellings

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.phases import ReasoningTokens, build_phases
from vllm_kprune.guard.policy import GuardPolicy, parse_policy
from vllm_kprune.serving.environment import COUNTER_FOLDER
from vllm_kprune.serving.guard.attach import attach_guard, check_request
from vllm_kprune.serving.guard.counters import REASONING, read_totals
from vllm_kprune.serving.guard.markers import SERVED_WITH, Markers, find_markers
from vllm_kprune.serving.guard.requests import Guards
from vllm_kprune.serving.guard.settings import GuardSettings, Policies, request_policies
from vllm_kprune.serving.settings import attach_settings, resolve_settings, settings_of

pytestmark = pytest.mark.usefixtures("vllm_ready")

KOREAN = GuardPolicy(languages=("en", "ko"))
# What a request asks for, and the policies of its answer and its reasoning.
ASKED: dict[str, tuple[dict[str, Any] | None, Policies]] = {
    "default": (None, Policies(KOREAN)),
    "both": ({"kprune_think_languages": "ru"}, Policies(KOREAN, GuardPolicy(languages=("ru",)))),
    "reasoning": (
        {"kprune_languages": "off", "kprune_think_languages": "ru"},
        Policies(None, GuardPolicy(languages=("ru",))),
    ),
    "neither": ({"kprune_languages": "off"}, Policies()),
    "switches": (
        {"kprune_think_languages": ["ja"], "kprune_digits": False},
        Policies(replace(KOREAN, digits=False), GuardPolicy(languages=("ja",), digits=False)),
    ),
}


@dataclass(frozen=True)
class ThinkingEngine(Engine):
    """An engine whose server has a reasoning parser."""

    @property
    def tokens(self) -> ReasoningTokens:
        """Two added tokens of the small tokenizers."""
        start, end = (self.tokenizer.token_to_id(f"<unused{n}>") for n in (1, 2))
        assert start is not None
        assert end is not None
        return ReasoningTokens(start, end)

    @property
    def config(self) -> Any:
        """Attached, as the front end leaves it."""
        config = super().config
        guard = replace(
            settings_of(config).guard, markers=Markers(self.tokens, stop_ids=(self.eos,))
        )
        attach_settings(config, replace(settings_of(config), guard=guard))
        return config


@pytest.fixture
def thinking(engine: Engine) -> ThinkingEngine:
    return ThinkingEngine(engine.folder, engine.tokenizer)


@pytest.mark.parametrize("name", ASKED)
def test_each_phase_has_the_policy_that_was_asked_for(name: str) -> None:
    asked, expected = ASKED[name]
    assert request_policies(GuardSettings(KOREAN), asked) == expected


def test_reasoning_is_never_a_json_document() -> None:
    policies = Policies(KOREAN, KOREAN).resolved("json")
    assert policies.answer
    assert policies.reasoning
    assert (policies.answer.escapes, policies.reasoning.escapes) == ("json", "off")
    asked = parse_policy({"languages": "ko", "escapes": "off"})
    assert Policies(asked).resolved("json").answer == asked


def test_a_servers_languages_of_reasoning_are_the_default_of_requests() -> None:
    values = {"languages": "ko,en", "think_languages": "en", "hanja": "all"}
    settings = resolve_settings({"kprune": values}).guard
    policies = request_policies(settings, None)
    assert policies.reasoning == GuardPolicy(languages=("en",), hanja="all")
    assert request_policies(settings, {"kprune_think_languages": "off"}).reasoning is None
    only = resolve_settings({"kprune": {"think_languages": "en"}}).guard
    assert request_policies(only, None) == Policies(None, GuardPolicy(languages=("en",)))
    fixed = replace(settings, fixed=True)
    with pytest.raises(KPruneError, match="leave kprune_think_languages out"):
        request_policies(fixed, {"kprune_think_languages": "ko"})


def test_without_a_parser_the_whole_output_is_the_answer(engine: Engine) -> None:
    config = engine.config
    with pytest.raises(KPruneError, match=r"kprune_think_languages: .* --reasoning-parser NAME"):
        check_request(config, {"kprune_think_languages": "ko"})
    guards = Guards(config, NUM_ROWS)
    found = guards.of_request(sampling_params(), ())
    assert found
    assert found.automaton.first_reasoning_state is None
    config.additional_config = {"kprune": {"think_languages": "ko"}}
    config.model_config.logits_processors = None
    with pytest.raises(KPruneError, match=r"--kprune-think-languages: .* no reasoning parser"):
        attach_guard(config)


@pytest.mark.parametrize("name", ["default", "both", "reasoning", "switches"])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.slow
def test_a_row_refuses_what_its_phase_refuses_also_after_preemption(
    thinking: ThinkingEngine, name: str, opened: bool
) -> None:
    from serving.guard.test_guard_rows import Batch  # the same batch of vLLM's

    asked, policies = ASKED[name]
    tokens, draw = thinking.tokens, random.Random(7)
    automaton = build_phases(
        spellings(thinking.folder), policies.answer, policies.reasoning, tokens, NUM_ROWS,
        (thinking.eos,),
    )  # fmt: skip
    for prompt in PROMPTS:
        world = Batch(thinking)
        ids = [*thinking.prompt(*prompt), *([tokens.start] if opened else [])]
        world.meet("r", ids, asked)
        world.change([], ["r"], [])
        output = world.states["r"].output_token_ids
        for step in range(12):
            logits = world.logits()
            state = automaton.state_after([*ids, *output], len(ids))
            assert torch.equal(logits[0] == -torch.inf, automaton.refused(state)), (prompt, output)
            left = torch.nonzero(logits[0] > -torch.inf).flatten().tolist()
            markers = [token for token in (tokens.start, tokens.end) if token in left]
            output.append(draw.choice(markers if markers and step % 4 == 1 else left))
            if step == 6:  # preempted, and resumed
                world.change(["r"], [], [])
                world.batch.refresh_metadata()
                world.change([], ["r"], [])


def test_counts_go_to_the_phase_of_the_row(
    thinking: ThinkingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.guard.test_guard_rows import Batch

    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    world = Batch(thinking)
    tokens = thinking.tokens
    assert tokens.start is not None
    prompt = [*thinking.prompt("ok", 0), tokens.start]
    world.meet("both", prompt, {"kprune_think_languages": "ru"})
    world.meet("free", prompt, None)
    world.change([], ["both", "free"], [])
    # Refused in answers and in Russian, but not where reasoning is free.
    japanese = thinking.ids("あ")[0]
    for sampled in (thinking.eos, tokens.end, thinking.ids("k")[0], thinking.ids("k")[0]):
        world.batch.refresh_metadata()
        logits = torch.zeros((2, NUM_ROWS))
        logits[:, japanese] = 2.0
        world.guard.apply(logits)
        for state in world.states.values():
            state.output_token_ids.append(sampled)
    world.change(["both", "free"], [], [])
    world.batch.refresh_metadata()
    totals = read_totals(tmp_path)
    # The first byte of "あ" may begin an allowed character, so the token may be allowed.
    assert totals["en+ko"]["requests"] == 2
    assert set(totals) <= {"en+ko", REASONING + "ru"}


def test_markers_come_from_the_parser_and_the_template_of_the_server(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = engine.config
    assert find_markers(config, engine.folder) == Markers(stop_ids=(engine.eos,))
    template = tmp_path / "template.jinja"
    template.write_text("{{ bos_token }}<unused3>{{ messages }}")
    monkeypatch.setenv(SERVED_WITH, f'{{"chat_template": "{template}"}}')
    found = find_markers(config, engine.folder)
    assert engine.tokenizer.token_to_id("<unused3>") in found.control_ids


@pytest.mark.parametrize(
    ("parser", "added", "expected"),
    [
        ("deepseek_r1", ("<think>", "</think>"), ("<think>", "</think>")),
        ("qwen3", ("<think>", "</think>"), ("<think>", "</think>")),
        ("kimi_k3", (), "which are not single tokens"),
        ("k2_horizon", (), "reasoning parser k2_horizon does not fit this model (RuntimeError"),
        ("openai_gptoss", (), "marks reasoning by None and None"),
    ],
)
def test_reasoning_is_known_where_its_markers_are_tokens(
    parser: str, added: tuple[str, ...], expected: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from types import SimpleNamespace

    from support.tiny_tokenizers import TINY
    from transformers import PreTrainedTokenizerFast

    from vllm_kprune.serving.compat import parsers

    tokenizer = TINY["byte_level"]()
    tokenizer.add_tokens([*added, "<tool_call>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    monkeypatch.setattr(parsers, "_tokenizer", lambda config: fast)
    monkeypatch.setenv(SERVED_WITH, '{"tool_call_parser": "hermes"}')
    config = Engine(tmp_path, tokenizer).config
    config.structured_outputs_config = SimpleNamespace(
        reasoning_parser=parser, reasoning_parser_plugin=""
    )
    found = find_markers(config, tmp_path)
    assert tokenizer.token_to_id("<tool_call>") in found.control_ids
    if isinstance(expected, str):
        assert found.reasoning is None
        assert expected in found.no_reasoning
        assert parser in found.no_reasoning
    else:
        start, end = map(tokenizer.token_to_id, expected)
        assert found.reasoning == ReasoningTokens(start, end)
        assert not found.no_reasoning
