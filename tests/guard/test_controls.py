"""Tokens that templates and parsers use are control tokens, flagged or not; text never is."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.guard_oracle import Vocabulary, policy_of
from support.tiny_tokenizers import TINY, data_of
from tokenizers import AddedToken, Tokenizer

from vllm_kprune.guard import controls
from vllm_kprune.guard.automaton import build_automaton
from vllm_kprune.guard.controls import NO_EVIDENCE, ControlEvidence, control_ids, read_evidence
from vllm_kprune.guard.phases import ReasoningTokens, build_phases
from vllm_kprune.guard.spelling import load_spellings
from vllm_kprune.guard.tokens import BYTE, CONTROL, PRESENT, SPECIAL, spell_tokens
from vllm_kprune.tokenizer.bpe import BpeTokenizer, parse_tokenizer, read_tokenizer

# What no published tokenizer flags as special, though templates or parsers use it.
UNFLAGGED = {
    "qwen3": {
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"),
        *("</tool_response>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
        *("<|repo_name|>", "<|file_sep|>"),
    },
    "aya_expanse": {
        *("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        *("<|YES_TOKEN|>", "<|NO_TOKEN|>", "<|GOOD_TOKEN|>", "<|BAD_TOKEN|>"),
        *(f"<|{name}_{n}_TOKEN|>" for name in ("USER", "EXTRA") for n in range(10)),
    },
    # Its 6,406 added tokens without the flag are reserved ones, HTML tags, and runs of white space.
    "gemma3": set(),
    "llama3_1": set(),
}
# As DeepSeek-R1, Kimi-K2, Seed-OSS, MiniMax-M2, GLM-4.5 and Gemma 4 spell them.
BY_FORM = (
    *("<｜tool▁calls▁begin｜>", "<｜User｜>", "<|tool_calls_section_begin|>", "<seed:think>"),
    *("</seed:think>", "<minimax:tool_call>", "</arg_value>", "<|channel>", "<channel|>"),
)
TEXT = (
    *(
        "<table>",
        "</table>",
        "<br/>",
        "<h1>",
        "\n",
        "\n\n",
        "▁▁",
        "    ",
        "<unused7>",
        "[toxicity]",
    ),
    *("<0x0A>", "한국", "assistant", "<", ">", "<>", "<mask>", "a<|b|>", "<think> "),
)


def tokenizer_with(kind: str, *texts: str, special: bool = False) -> BpeTokenizer:
    tokenizer = Tokenizer.from_str(TINY[kind]().to_str())
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=special) for t in texts])
    return parse_tokenizer(data_of(tokenizer))


def found(tokenizer: BpeTokenizer, evidence: ControlEvidence = NO_EVIDENCE) -> set[str]:
    """The control tokens without the flag."""
    special = {token.id for token in tokenizer.added if token.special}
    assert special <= set(control_ids(tokenizer, evidence))
    return {tokenizer.tokens[i] for i in set(control_ids(tokenizer, evidence)) - special}


@pytest.mark.parametrize("name", sorted(UNFLAGGED))
@pytest.mark.slow
def test_published_tokenizers_have_exactly_these_control_tokens_without_the_flag(
    published_tokenizer: Callable[[str], Path], name: str
) -> None:
    folder = published_tokenizer(name).parent
    assert found(read_tokenizer(folder), read_evidence(folder)) == UNFLAGGED[name]


@pytest.mark.parametrize("kind", sorted(TINY))
def test_the_form_of_a_control_token_is_enough_and_text_is_never_one(kind: str) -> None:
    assert found(tokenizer_with(kind, *BY_FORM, *TEXT)) == set(BY_FORM)


def test_a_template_makes_a_control_token_of_what_it_contains_but_not_of_text() -> None:
    used = ("<answer>", "</answer>", "[TOOL_CALLS]")
    tokenizer = tokenizer_with("byte_level", *used, "<unused8>", *TEXT)
    plain = ("<table>", "</table>", "<br/>", "<h1>", "\n", "    ", "한국", "assistant", "<", ">")
    assert found(tokenizer, ControlEvidence(templates="".join((*used, *plain)))) == {*used}


def test_a_configuration_makes_a_control_token_of_what_it_names() -> None:
    tokenizer = tokenizer_with("byte_level", *TEXT)
    named = ControlEvidence(frozenset({"<unused7>", "assistant", "\n", "missing"}))
    assert found(tokenizer, named) == {"<unused7>", "assistant"}


CONFIG = "tokenizer_config.json"
FILES: dict[str, tuple[str, Any]] = {
    "one template": (CONFIG, {"chat_template": "{{ '<x1>' }}"}),
    "named templates": (CONFIG, {"chat_template": [{"name": "a", "template": "<x1>"}]}),
    "template file": ("chat_template.jinja", "<x1>"),
    "more templates": ("additional_chat_templates/tools.jinja", "<x1>"),
    "processor's template": ("chat_template.json", {"chat_template": "<x1>"}),
    "named": (CONFIG, {"extra_special_tokens": {"x_token": {"content": "<x1>"}}}),
    "named in the map": ("special_tokens_map.json", {"additional_special_tokens": ["<x1>"]}),
}
NOT_FOUND: dict[str, tuple[str, Any]] = {
    "no template": (CONFIG, {"chat_template": 7, "eos_token": None}),
    "odd list": (CONFIG, {"chat_template": [None, 3, {"template": 3}, ["<x1>"]]}),
    "not an object": (CONFIG, ["<x1>"]),
    "not JSON": (CONFIG, "{<x1>"),
    "too deep": (CONFIG, '{"a_token":' + "[" * 900 + '"<x2>"' + "]" * 900 + "}"),
    "list of all added tokens": (CONFIG, {"added_tokens_decoder": {"9": {"content": "<x1>"}}}),
    "past the bound": ("chat_template.jinja", " " * (1 << 20) + "<x1>"),
    "not UTF-8": ("chat_template.jinja", b"\xff<x\xff1>"),
}


@pytest.mark.parametrize("case", [*FILES, *NOT_FOUND])
def test_evidence_is_read_from_the_folder_and_counts_for_the_cache(
    tmp_path: Path, case: str
) -> None:
    name, content = (FILES | NOT_FOUND)[case]
    folder, cache = tmp_path / "model", tmp_path / "cache"
    (folder / name).parent.mkdir(parents=True)
    tokenizer = tokenizer_with("byte_level", "<x1>")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer.data))
    marked = tokenizer.added[-1].id
    assert not load_spellings(folder, cache).flags_of(marked) & CONTROL

    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    for _ in range(2):
        flags = load_spellings(folder, cache).flags_of(marked)
        assert bool(flags & CONTROL) == (case in FILES)
        assert flags & (PRESENT | SPECIAL) == PRESENT


def test_a_search_that_would_take_too_long_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizer_with("byte_level", "<answer>", "<think>")
    evidence = ControlEvidence(templates="<answer>")
    assert found(tokenizer, evidence) == {"<answer>", "<think>"}
    monkeypatch.setattr(controls, "_MOST_WORK", 10)
    with caplog.at_level(logging.WARNING):
        assert found(tokenizer, evidence) == {"<think>"}
    assert "too large to search" in caplog.text


HANGUL = policy_of(scripts="Hangul", punctuation=False, digits=False)


def test_reasoning_can_end_and_tools_can_be_called_whatever_the_policy(
    load_vocabulary: Callable[[str], Vocabulary],
) -> None:
    vocabulary = load_vocabulary("qwen3")
    ids = {text: vocabulary.tokenizer.token_to_id(text) for text in UNFLAGGED["qwen3"]}
    automaton = vocabulary.automaton(HANGUL)
    assert not automaton.refused(0)[[*ids.values()]].any()
    assert automaton.refused(0)[vocabulary.tokenizer.token_to_id("<")]
    assert automaton.refused(1)[[*ids.values()]].all()

    tokens = ReasoningTokens(ids["<think>"], ids["</think>"])
    phased = build_phases(vocabulary.spellings, None, HANGUL, tokens, vocabulary.num_rows)
    thinking = phased.advance(phased.state_after([]), tokens.start)
    assert not phased.refused(thinking)[tokens.end]
    assert phased.refused(phased.advance(thinking, tokens.end)).sum() == (
        vocabulary.num_rows - np.count_nonzero(vocabulary.spellings.flags & PRESENT)
    )


@pytest.mark.parametrize("special", [True, False])
def test_a_control_token_ends_a_run_of_byte_tokens_only_if_decoders_show_it(special: bool) -> None:
    """The decoder says what it does: a broken run takes along the bytes that join it."""
    tokenizer = Tokenizer.from_str(TINY["byte_fallback"]().to_str())
    tokenizer.add_tokens([AddedToken("<think>", normalized=False, special=special)])
    parsed = parse_tokenizer(data_of(tokenizer))
    spellings = spell_tokens(parsed)
    control, broken = parsed.added[-1].id, parsed.vocab["<0xED>"]
    whole = [parsed.vocab[f"<0x{byte:02X}>"] for byte in "한".encode()]
    automaton = build_automaton(spellings, policy_of(languages="ko"))
    state = automaton.state_after([broken, broken, control])
    walked = automaton.advance(automaton.state_after([broken, broken]), control)
    text = tokenizer.decode([broken, broken, control, *whole])
    assert state == walked
    assert bool(automaton.refused(state)[whole[0]]) == special == ("한" not in text)
    assert spellings.flags_of(control) & (CONTROL | SPECIAL | BYTE) == (
        CONTROL | (SPECIAL if special else 0)
    )


def test_ids_that_the_caller_gives_are_control_tokens_too() -> None:
    tokenizer = tokenizer_with("byte_level", "<answer>")
    spellings = spell_tokens(tokenizer)
    answer = tokenizer.added[-1].id
    assert build_automaton(spellings, HANGUL).refused(0)[answer]
    assert not build_automaton(spellings, HANGUL, control_ids=[answer]).refused(0)[answer]
