"""Models that think, call tools or are cut off: only what they say is judged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.mock_answers import KOREAN, Habits
from support.mock_endpoint import MockClient, compared, run_suite
from support.synthetic_report import metrics_of, reported

from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.endpoint.wire import read_answer, read_chunk, whole_answer
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.run import Suite
from vllm_kprune.compare.suites.exactness import Exactness
from vllm_kprune.compare.suites.spoken import spoken, without_reasoning
from vllm_kprune.compare.suites.stability import Stability
from vllm_kprune.compare.suites.translation import Translation

pytest.importorskip("py3langid", reason="names languages; pip install 'vllm-kprune[compare]'")
THOUGHTS = "The user asks something, and I should think about how to answer it well."
Reshape = Callable[[dict[str, Any]], dict[str, Any]]


def message(change: Callable[[str], dict[str, Any]], finish: str = "stop") -> Reshape:
    """A change of the message of a chat, given its text."""

    def reshape(answer: dict[str, Any]) -> dict[str, Any]:
        choice = dict(answer["choices"][0])
        if "message" in choice:
            choice |= {"message": change(choice["message"]["content"]), "finish_reason": finish}
        return answer | {"choices": [choice]}

    return reshape


SHAPES: dict[str, Reshape] = {
    "field": message(lambda text: {"content": text, "reasoning": THOUGHTS}),
    "older field": message(lambda text: {"content": text, "reasoning_content": THOUGHTS}),
    "inline": message(lambda text: {"content": f"<think>\n{THOUGHTS}\n</think>\n\n{text}"}),
    "opened by the prompt": message(lambda text: {"content": f"{THOUGHTS}\n</think>\n\n{text}"}),
    "in brackets": message(lambda text: {"content": f"[THINK]{THOUGHTS}[/THINK]{text}"}),
    "in parts": message(
        lambda text: {
            "content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": text}],
            "reasoning": THOUGHTS,
        }
    ),
}
SILENT: dict[str, Reshape] = {
    "cut in its field": message(lambda text: {"content": None, "reasoning": THOUGHTS}, "length"),
    "cut inline": message(lambda text: {"content": f"<think>{THOUGHTS}"}, "length"),
    "tools": message(
        lambda text: {"content": None, "tool_calls": [{"function": {"name": "search"}}]},
        "tool_calls",
    ),
}


def warnings_of(result: SuiteResult) -> list[str]:
    return [note for note in result.notes if note.startswith("WARNING")]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.slow
def test_the_answer_is_judged_and_the_reasoning_told_apart(shape: Reshape, tmp_path: Path) -> None:
    plain, thinks = Habits(), Habits(reshape=shape)
    metrics = metrics_of(reported(compared(Stability(), tmp_path, plain, thinks, limit=20)))
    # English thoughts before a Korean answer are no flaw of it.
    assert metrics["sound_all"].pruned is not None and metrics["sound_all"].pruned.value == 1
    assert metrics["lcpr_t0"].effect.value == 0
    told = metrics["reasoned_all"].pruned
    assert told is not None and told.value == 1
    assert metrics["reasoned_all"].original.value == 0


def test_the_language_and_the_tokens_of_reasoning_are_reported(tmp_path: Path) -> None:
    counted = message(lambda text: {"content": text, "reasoning": THOUGHTS})

    def english(answer: dict[str, Any]) -> dict[str, Any]:
        usage = {"completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 40}}
        return counted(answer) | {"usage": usage}

    korean = message(lambda text: {"content": text, "reasoning": " ".join(KOREAN)})
    sides = Habits(reshape=english), Habits(reshape=korean)
    result = compared(Stability(), tmp_path, *sides, languages=("ko",), limit=10)
    metrics = metrics_of(reported(result))
    own, tokens = metrics["reasoning_own_all"], metrics["reasoning_tokens_all"]
    assert own.pruned is not None and (own.original.value, own.pruned.value) == (0, 1)
    assert tokens.original.value == 40
    # Not counted by the server: its share of all tokens, by characters.
    assert tokens.pruned is not None and 0 < (tokens.pruned.value or 0) < 90
    assert {own.verdict, tokens.verdict} == {"informational"}
    assert any("20 answers of the original and 20 of the pruned" in note for note in result.notes)


@pytest.mark.parametrize("suite", [Stability(), Translation()], ids=lambda suite: suite.name)
@pytest.mark.parametrize("shape", SILENT.values(), ids=SILENT)
def test_nothing_on_both_sides_is_not_equal_but_not_measured(
    shape: Reshape, suite: Suite, tmp_path: Path
) -> None:
    silent = Habits(reshape=shape)
    result = compared(suite, tmp_path, silent, silent, limit=10)
    assert result.measurements == ()
    assert "no answer of either side has any text" in result.unavailable["*"]
    asked = 20  # two temperatures, two directions
    assert f"WARNING: {asked} of {asked} answers of the original side" in result.notes[0]
    assert any("call a tool" in one or "--max-tokens" in one for one in warnings_of(result))


@pytest.mark.parametrize("suite", [Stability(), Translation(), Exactness()], ids=lambda s: s.name)
def test_empty_answers_without_a_reason_are_not_equal_either(suite: Suite, tmp_path: Path) -> None:
    clients = [MockClient(name, lambda _: Answer(text=" \n")) for name in ("original", "pruned")]
    result = run_suite(suite, tmp_path, *clients, limit=5)
    assert reported(result).suites[0].verdict == "informational"
    assert result.measurements == () or suite.name == "exactness"
    if suite.name != "exactness":
        assert "no answer of either side has any text" in result.unavailable["*"]


def test_a_side_that_alone_is_cut_off_is_worse_with_a_warning(tmp_path: Path) -> None:
    cut = Habits(reshape=SILENT["cut in its field"])
    result = compared(Stability(), tmp_path, Habits(), cut, limit=40)
    metrics = metrics_of(reported(result))
    assert metrics["sound_all"].verdict == metrics["empty_t0"].verdict == "worse"
    (warning,) = warnings_of(result)
    assert "80 of 80 answers of the pruned side were cut by the token limit" in warning


def test_a_cut_answer_without_any_tag_is_reasoning_if_the_others_close_one() -> None:
    whole = Answer(text=f"{THOUGHTS}</think>Yes.", finish_reason="stop")
    cut = Answer(text=THOUGHTS, finish_reason="length")
    plain = Answer(text="No.", finish_reason="length")
    rows, notes = spoken([("a", (whole, plain)), ("b", (cut, plain)), ("c", (plain, plain))])
    assert [(pair[0].text, pair[1].text) for _, pair in rows] == [
        ("Yes.", "No."), ("", "No."), ("", "No."),
    ]  # fmt: skip
    assert "2 of 3 answers of the original side were cut" in notes[0]
    rows, notes = spoken([("b", (cut, plain))])
    assert rows == [("b", (cut, plain))] and notes == []


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("Yes.", "", "Yes."),
        ("<think>a</think>b", "a", "b"),
        ("\n<think>a</think> <think>c</think>\n b", "ac", "b"),
        ("<think></think>b", "", "b"),
        ("a</think>b", "a", "b"),
        ("<think>a", "a", ""),
        ("In HTML, <think> is no tag.", "", "In HTML, <think> is no tag."),
    ],
)
def test_reasoning_and_answer_are_told_apart(text: str, thought: str, said: str) -> None:
    found = without_reasoning(Answer(text=text))
    assert (found.reasoning, found.text) == (thought, said)


def test_a_stream_carries_reasoning_and_times_its_tokens() -> None:
    deltas = [{"reasoning": "hm"}, {"reasoning_content": "m"}, {"content": "Yes"}, {"content": "."}]
    chunks = [
        read_chunk({"choices": [{"delta": delta}], "usage": {"completion_tokens": 4}}, 1.0 + number)
        for number, delta in enumerate(deltas)
    ]
    answer = whole_answer(chunks, 0.0)
    assert (answer.reasoning, answer.text, answer.ttft_ms) == ("hmm", "Yes.", 1000)
    assert len(answer.itl_ms) == 3


def test_what_servers_put_into_a_message_is_read_leniently() -> None:
    odd = {"content": None, "reasoning": {"effort": "low"}, "tool_calls": None}
    answer = read_answer({"choices": [{"message": odd}]}, 1.0)
    assert (answer.text, answer.reasoning, answer.tool_calls) == ("", "", ())
    called = {"content": None, "function_call": {"name": "f", "arguments": "{}"}}
    assert read_answer({"choices": [{"message": called}]}, 1.0).tool_calls == ("f",)


def test_exactness_compares_reasoning_too(tmp_path: Path) -> None:
    def thinks(thought: str) -> Callable[[Request], Answer]:
        return lambda request: replace(Answer(text="Yes."), reasoning=thought)

    for thought, same in (("a", 1.0), ("b", 0.0)):
        clients = MockClient("original", thinks("a")), MockClient("pruned", thinks(thought))
        result = run_suite(Exactness(), tmp_path / thought, *clients, limit=8)
        assert metrics_of(reported(result))["identical"].original.value == same
