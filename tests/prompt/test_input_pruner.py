"""The class that Python users call: prompts, chats, marks and roles, with and without a model."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from support.prompt_cases import UNICODE

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.marks import MarkError
from vllm_kprune.prompt.options import PruneRequest, parse_prune_request
from vllm_kprune.prompt.pruner import InputPruner, PruneKeywords
from vllm_kprune.prompt.scorers import SCORERS
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.prompt.word_tokens import word_tokenizer

TEXT = "The Rhine rises in the Swiss Alps and it flows into the North Sea after 1230 km."
CHAT = [
    {"role": "system", "content": TEXT},
    {"role": "user", "content": TEXT},
    {"role": "assistant", "content": [{"type": "text", "text": TEXT}, {"type": "image_url"}]},
    {"role": "user", "content": "How long is the river Rhine?"},
]


@pytest.fixture(scope="module")
def folder(published_tokenizer: Callable[[str], Path]) -> Path:
    return published_tokenizer("gemma3").parent


@pytest.fixture(scope="module", params=["words", "gemma3"])
def pruner(request: pytest.FixtureRequest, folder: Path) -> InputPruner:
    return InputPruner(None if request.param == "words" else folder)


@given(text=UNICODE)
@settings(max_examples=100)
@pytest.mark.slow
def test_words_are_the_whole_text_one_after_the_other(text: str) -> None:
    """Every character is in a token, so that nothing is dropped unseen."""
    offsets = word_tokenizer().encode(text, add_special_tokens=False).offsets
    assert "".join(text[begin:end] for begin, end in offsets) == text


@given(text=UNICODE)
@settings(max_examples=60)
@pytest.mark.slow
def test_a_prompt_without_marks_is_pruned_as_one_segment(pruner: InputPruner, text: str) -> None:
    pruned = pruner.prune(text, keep=0.5, marks=False)
    assert "".join(piece.text for piece in pruned.pieces) == text
    left = "".join(piece.text for piece in pruned.pieces if piece.kept)
    assert left.replace(" ", "") == pruned.text.replace(" ", "")
    assert len(pruned.segments) == bool(text)


@pytest.mark.slow
def test_a_prompt_is_pruned_as_its_segment_would_be(folder: Path) -> None:
    pruner, segments = InputPruner(folder), TextPruner.from_pretrained(folder)
    for given_options in ({"keep": 0.5}, {"target_tokens": 9}, {"keep": 0.6, "unit": "word"}, {}):
        options = parse_prune_request(given_options or {"keep": 0.7}).options
        alone = segments.prune(TEXT, options)
        pruned = pruner.prune(TEXT, **given_options)  # type: ignore[arg-type]
        assert pruned.text == alone.text != TEXT
        assert (pruned.tokens_before, pruned.tokens_after) == (
            alone.tokens_before,
            alone.tokens_after,
        )


def test_only_marked_spans_of_a_prompt_are_pruned(pruner: InputPruner) -> None:
    pruned = pruner.prune(f'{TEXT}<kprune keep="0.4">{TEXT}</kprune><kprune>{TEXT}</kprune>!')
    before, low, default, after = pruned.parts
    assert (before, after) == (TEXT, "!")
    assert [low, default] == pruned.segments
    assert pruned.segments[0].tokens_after < pruned.segments[1].tokens_after
    assert pruned.tokens_after == sum(one.tokens_after for one in pruned.segments)
    assert pruned.text == f"{TEXT}{pruned.segments[0].text}{pruned.segments[1].text}!"
    assert "<kprune" in pruner.prune(f"<kprune>{TEXT}", marks=False, keep=1).text


def test_earlier_turns_and_documents_of_a_chat_are_pruned(pruner: InputPruner) -> None:
    pruned = pruner.prune_messages(CHAT, documents=[{"title": TEXT, "text": TEXT}], keep=0.5)
    shorter = pruner.prune(TEXT, keep=0.5).text
    assert pruned.messages == [
        CHAT[0],
        {"role": "user", "content": shorter},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": shorter}, {"type": "image_url"}],
        },
        CHAT[3],
    ]
    assert pruned.documents == [{"title": TEXT, "text": shorter}]
    assert [segment.original for segment in pruned.segments] == [TEXT] * 3
    assert pruned.tokens_before == 3 * pruner.prune(TEXT).tokens_before


def test_roles_and_marks_choose_what_is_pruned(pruner: InputPruner) -> None:
    assert len(pruner.prune_messages(CHAT, keep=0.5, roles=["system"]).segments) == 1
    marked = [*CHAT, {"role": "user", "content": f"<kprune>{TEXT}</kprune>?"}]
    (segment,) = pruner.prune_messages(marked, keep=0.5).segments
    assert segment.original == TEXT
    assert len(pruner.prune_messages(marked, keep=0.5, marks=False).segments) == 3


def test_the_last_user_message_is_the_question_unless_one_is_given() -> None:
    pruner = InputPruner(scorer="question")
    asked = {"role": "user", "content": "Which mountains?"}
    chat = [{"role": "user", "content": f"The mountains are high. {TEXT} Cheese is yellow."}, asked]

    def left(**how: Any) -> Any:
        return pruner.prune_messages(chat, keep=0.3, **how).messages[0]["content"]

    assert left() == left(query="Which mountains?") != left(query="Which cheese?")


def test_options_have_the_names_that_requests_use() -> None:
    names = {field.name for kind in (PruneOptions, PruneRequest) for field in fields(kind)}
    assert PruneKeywords.__annotations__.keys() == names - {"options", "strict", "query"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 2}, "keep: got 2, expected"),
        ({"kep": 0.5}, "did you mean 'keep'"),
        ({"keep": 0.5, "target_tokens": 5}, "give one of them"),
        ({"scorer": "best"}, "scorer: got .best., expected"),
    ],
)
def test_wrong_options_are_explained(options: Any, message: str) -> None:
    pruner = InputPruner()
    with pytest.raises(KPruneError, match=message):
        pruner.prune(TEXT, **options)
    with pytest.raises(KPruneError, match=message):
        pruner.prune_messages(CHAT, **options)


def test_malformed_marks_are_refused() -> None:
    with pytest.raises(MarkError, match="is not closed"):
        InputPruner().prune("<kprune>a")


def test_without_a_model_every_scorer_but_attention_works(tmp_path: Path) -> None:
    for name in SCORERS:
        if name != "attention":
            assert InputPruner(scorer=name).prune(TEXT, keep=0.5).text != TEXT
    with pytest.raises(KPruneError, match="name one as the ranker"):
        InputPruner(scorer="attention")
    with pytest.raises(KPruneError, match="name one as the ranker"):
        InputPruner().prune(TEXT, scorer="attention")
    with pytest.raises(KPruneError, match=r"has no tokenizer\.json"):
        InputPruner(tmp_path)


def test_scripts_without_a_word_list_are_not_the_first_to_go() -> None:
    pruned = InputPruner().prune("it is of the ภาษาไทย and to be in it", keep=0.6)
    assert "ภาษาไทย" in pruned.text


def test_an_unknown_setting_of_the_scorer_is_refused_whatever_the_scorer() -> None:
    with pytest.raises(KPruneError, match=r"unknown setting 'sead'; did you mean 'seed'"):
        InputPruner(sead=1)  # type: ignore[call-arg]
