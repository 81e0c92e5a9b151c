"""Which parts of a request are pruned, and how marks are read."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.prompt.marks import MarkError, Segment, split_marks
from vllm_kprune.prompt.segments import ROLES, RequestTexts

_BITS = st.sampled_from(
    ["a", " ", "<kprune>", "</kprune>", '<kprune keep="0.5">', "\\", "<", "kprune", "/", ">", "한"]
)


Short = Callable[[Segment], str]


def short(segment: Segment) -> str:
    """Stands for pruning: shows what it was called with."""
    return f"[{segment.text}|{segment.keep}]"


def prune_prompt(prompt: str, prune: Short, *, marks: bool = True) -> str | None:
    return RequestTexts(prompt=prompt).split(marks=marks).replaced(lambda s, query: prune(s)).prompt


def prune_messages(
    messages: Sequence[Any], prune: Short, roles: Sequence[str] = ROLES, **how: Any
) -> Any:
    """The messages of a chat; `documents` may be given, and `marks`."""
    documents = how.pop("documents", None)
    return (
        RequestTexts(messages, documents)
        .split(roles, **how)
        .replaced(lambda s, query: prune(s))
        .messages
    )


def prune_documents(documents: Sequence[Any], prune: Short, messages: Sequence[Any] = ()) -> Any:
    return RequestTexts(messages, documents).split().replaced(lambda s, query: prune(s)).documents


MARKED_DOCUMENT = [{"text": "<kprune>x</kprune>"}]
MARKED_CHAT = [{"role": "user", "content": "<kprune>x</kprune>"}]


def escaped(text: str) -> str:
    """The text with its marks escaped: a backslash before each, and those before it doubled."""
    out, run = [], 0
    for at, character in enumerate(text):
        if re.match(r"</?kprune(?![\w-])", text[at:]):
            out.append("\\" * run + "\\")
        run = run + 1 if character == "\\" else 0
        out.append(character)
    return "".join(out)


@given(st.lists(_BITS, max_size=10).map("".join))
@settings(max_examples=500)
def test_any_text_can_be_escaped(text: str) -> None:
    assert "".join(part.text for part in split_marks(escaped(text))) == text


@given(st.lists(_BITS, max_size=10).map("".join))
@settings(max_examples=500)
@pytest.mark.slow
def test_marks_are_read_or_refused_and_never_left_in(text: str) -> None:
    try:
        parts = split_marks(text)
    except MarkError:
        return
    assert all(part.text for part in parts if not part.marked)
    left = "".join(part.text for part in parts)
    assert len(left) <= len(text)
    if "\\" not in text:
        assert "<kprune>" not in text or any(part.marked for part in parts)
        assert sum(part.marked for part in parts) == text.count("</kprune>")


def test_a_mark_may_name_its_rate() -> None:
    text = "a <kprune keep=\"0.5\">b</kprune> c<kprune keep='1' >d</kprune ><kprune></kprune>"
    assert split_marks(text) == [
        Segment("a "),
        Segment("b", True, 0.5),
        Segment(" c"),
        Segment("d", True, 1.0),
        Segment("", True),
    ]


def test_a_backslash_makes_a_mark_text() -> None:
    assert split_marks(r"say \<kprune> and \</kprune>") == [Segment("say <kprune> and </kprune>")]
    assert split_marks(r"C:\\<kprune>x</kprune>") == [Segment("C:\\"), Segment("x", True)]
    assert split_marks(r"C:\dir \\ <kprunes> <kprune-x>") == [
        Segment(r"C:\dir \\ <kprunes> <kprune-x>")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <kprune>b", "at character 2 is not closed"),
        ("a</kprune>", "at character 1 closes nothing"),
        ("<kprune>a<kprune>b</kprune></kprune>", "cannot be nested"),
        ("<kprune keep=0.5>a</kprune>", 'expected <kprune>, <kprune keep="0.7">'),
        ('<kprune keep="0">a</kprune>', "expected a share above 0"),
        ('<kprune keep="nan">a</kprune>', "expected a share above 0"),
        ('<kprune keep="two">a</kprune>', "expected a share above 0"),
        ('<kprune rate="0.5">a</kprune>', "expected <kprune>"),
        ("<kprune", "expected <kprune>"),
        ("<kprune></kprune>" * 5000, "more than 2048 marked spans"),
    ],
)
def test_malformed_marks_are_refused(text: str, message: str) -> None:
    with pytest.raises(MarkError, match=message):
        split_marks(text)


def test_a_text_of_backslashes_or_marks_takes_no_longer() -> None:
    """A search that started again at each would take minutes."""
    many = "\\" * 300_000
    assert split_marks(many) == [Segment(many)]
    assert split_marks(many + "<kprune>a</kprune>") == [Segment(many[::2]), Segment("a", True)]
    assert len(split_marks("<" * 300_000)[0].text) == 300_000


def test_a_plain_prompt_is_pruned_as_a_whole() -> None:
    assert prune_prompt("abc", short) == "[abc|None]"
    assert prune_prompt("", short) == ""
    assert prune_prompt(r"\<kprune>", short) == "[<kprune>|None]"
    assert prune_prompt("<kprune>a", short, marks=False) == "[<kprune>a|None]"


def test_a_marked_prompt_is_pruned_in_its_marks_alone() -> None:
    text = 'a <kprune keep="0.5">b</kprune> c <kprune>d</kprune>'
    assert prune_prompt(text, short) == "a [b|0.5] c [d|None]"


CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1", "tool_calls": [{"id": "1"}]},
    {"role": "tool", "content": "T1"},
    {"role": "user", "content": [{"type": "text", "text": "U2"}, {"type": "image_url"}]},
    {"role": "assistant", "content": None},
    {"role": "user", "content": "U3"},
    {"role": "assistant", "content": "A3"},
]


def test_earlier_turns_are_pruned_and_nothing_else_of_a_chat() -> None:
    pruned = prune_messages(CHAT, short)
    assert pruned == [
        CHAT[0],
        {"role": "user", "content": "[U1|None]"},
        {"role": "assistant", "content": "[A1|None]", "tool_calls": [{"id": "1"}]},
        CHAT[3],
        {"role": "user", "content": [{"type": "text", "text": "[U2|None]"}, {"type": "image_url"}]},
        *CHAT[5:],
    ]
    assert CHAT[1]["content"] == "U1"


def test_roles_choose_whose_turns_are_pruned() -> None:
    assert prune_messages(CHAT, short, roles=("tool",))[3]["content"] == "[T1|None]"
    assert prune_messages(CHAT, short, roles=("tool",))[1] == CHAT[1]


def test_a_chat_without_a_user_is_left_alone() -> None:
    chat = [{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}]
    assert prune_messages(chat, short) == chat


def test_a_marked_chat_is_pruned_in_its_marks_alone() -> None:
    chat = [*CHAT[:6], {"role": "user", "content": "<kprune>D</kprune> Q?"}]
    pruned = prune_messages(chat, short)
    assert pruned[:6] == CHAT[:6]
    assert pruned[6]["content"] == "[D|None] Q?"
    assert prune_messages(CHAT, short, documents=MARKED_DOCUMENT) == CHAT


def test_escapes_go_from_messages_that_are_not_pruned_too() -> None:
    chat = [{"role": "user", "content": r"what does \<kprune> do?"}]
    assert prune_messages(chat, short)[0]["content"] == "what does <kprune> do?"
    assert prune_messages(chat, short, marks=False) == chat


def test_documents_are_pruned_without_their_titles() -> None:
    documents = [{"title": "T", "text": "D1", "n": 1}, {"content": "D2"}]
    assert prune_documents(documents, short) == [
        {"title": "T", "text": "[D1|None]", "n": 1},
        {"content": "[D2|None]"},
    ]
    marked = [{"text": "a<kprune>b</kprune>"}, {"text": "c"}]
    assert prune_documents(marked, short) == [{"text": "a[b|None]"}, {"text": "c"}]
    assert prune_documents(documents, short, MARKED_CHAT) == documents


def test_marks_count_where_they_are_taken_away() -> None:
    parts = [{"type": "text", "text": "<kprune>x</kprune>y"}]
    pruned = prune_documents([{"content": parts, "text": "long"}], short)
    assert pruned == [{"content": [{"type": "text", "text": "[x|None]y"}], "text": "long"}]
    chat = [{"role": "user", "content": "U1", "text": "<kprune>"}, {"role": "user", "content": "Q"}]
    assert prune_messages(chat, short)[0] == {**chat[0], "content": "[U1|None]"}


def test_a_segment_is_pruned_for_the_same_question_in_every_later_turn() -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "A report on whales."),
        ("assistant", "Thanks."),
        ("user", "How large are they?"),
        ("assistant", "Up to 30 m."),
        ("user", "<kprune>More of it.</kprune> How old?"),
        ("assistant", "90 years."),
        ("user", "And where?"),
    ]
    chat = [{"role": role, "content": text} for role, text in turns]
    asked: dict[str, set[str | None]] = {}
    for end in (4, 6, 8):
        for marks in (True, False):
            split = RequestTexts(chat[:end], [{"text": "doc"}]).split(marks=marks)

            def note(segment: Segment, query: str | None, marks: bool = marks) -> str:
                asked.setdefault(f"{marks} {segment.text}", set()).add(query)
                return segment.text

            split.replaced(note)
    assert asked["False A report on whales."] == asked["False Thanks."] == {"How large are they?"}
    assert asked["True More of it."] == {" How old?"}
    assert asked["False doc"] == {
        "How large are they?",
        "<kprune>More of it.</kprune> How old?",
        "And where?",
    }
