"""An automaton that was read from a file acts as one that was built; a bad file is made again."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.guard_oracle import policy_of
from support.tiny_tokenizers import TINY

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard import stored
from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.guard.phases import ReasoningTokens
from vllm_kprune.guard.stored import AutomatonSpec, stored_automaton
from vllm_kprune.guard.tokens import TokenSpellings, spell_tokens
from vllm_kprune.tokenizer.bpe import parse_tokenizer

KO = policy_of(languages="ko", escapes="json")
TOKENS = ReasoningTokens(5, 7)
SPECS = {
    "plain": AutomatonSpec(KO, 1_000),
    "both": AutomatonSpec(KO, 1_000, (3,), policy_of(languages="ru"), TOKENS),
    "answer": AutomatonSpec(KO, 900, (), None, TOKENS),
    "reasoning": AutomatonSpec(None, 900, (), KO, ReasoningTokens(None, 7)),
}


@pytest.fixture(scope="module", params=sorted(TINY))
def spellings(request: pytest.FixtureRequest) -> TokenSpellings:
    return spell_tokens(parse_tokenizer(json.loads(TINY[request.param]().to_str())))


def same(one: Automaton, two: Automaton) -> bool:
    tables = ("token_class", "class_next", "class_fallback")
    fields = ("policy", "reasoning", "label", "reasoning_label", "broken", "first_reasoning_state")
    texts = [[5], [7], [300, 5], [5, 7, 100], [260, 270, 280], [120], [92, 92], [], [-1, 9_999]]
    return (
        all(torch.equal(getattr(one, name), getattr(two, name)) for name in tables)
        and all(getattr(one, name) == getattr(two, name) for name in fields)
        and all(one.state_after(ids) == two.state_after(ids) for ids in texts)
        and all(one.state_after(ids, 1) == two.state_after(ids, 1) for ids in texts)
        and one.num_bytes == two.num_bytes
    )


@pytest.mark.parametrize("name", SPECS)
def test_what_is_read_acts_as_what_was_built(
    spellings: TokenSpellings, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = stored_automaton(spellings, SPECS[name], tmp_path)
    assert same(built, SPECS[name].build(spellings))
    monkeypatch.setattr(AutomatonSpec, "build", lambda *_: pytest.fail("built again"))
    read = stored_automaton(spellings, SPECS[name], tmp_path)
    assert same(read, built)
    assert read is not built


def test_whatever_an_automaton_depends_on_is_another_file(
    spellings: TokenSpellings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS["both"]
    others = [
        replace(spec, policy=policy_of(languages="ko")),
        replace(spec, policy=None),
        replace(spec, reasoning=None),
        replace(spec, num_rows=999),
        replace(spec, control_ids=(4,)),
        replace(spec, tokens=ReasoningTokens(None, 7)),
    ]
    changed = replace(spellings, flags=spellings.flags ^ 2)
    digests = {spec.digest(spellings), spec.digest(changed)}
    digests |= {other.digest(spellings) for other in others}
    assert len(digests) == 2 + len(others)
    assert spec.digest(spellings) == replace(spec).digest(replace(spellings))
    none = np.zeros(0x110000, np.bool_)
    monkeypatch.setattr(stored, "allowed_characters", lambda policy: none)
    assert spec.digest(spellings) not in digests


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "state too large": lambda a: a["class_next"].__setitem__((0, 1), len(a["class_next"])),
    "state too small": lambda a: a["class_next"].__setitem__((0, 1), -2),
    "class too large": lambda a: a["token_class"].__setitem__(0, len(a["class_fallback"])),
    "class too small": lambda a: a["token_class"].__setitem__(0, -1),
    "fallback refused": lambda a: a["class_fallback"].__setitem__(0, -1),
    "rows missing": lambda a: a.update(token_class=a["token_class"][:-1]),
    "classes missing": lambda a: a.update(class_fallback=a["class_fallback"][:-1]),
    "states missing": lambda a: a.update(class_next=a["class_next"][:-1]),
    "other type": lambda a: a.update(class_next=a["class_next"].astype(np.int64)),
    "pickled": lambda a: a.update(class_next=np.array([{}], dtype=object)),
    "empty": lambda a: a.update(class_next=np.zeros((0, 0), np.int16)),
    "array missing": lambda a: a.pop("answer_table"),
    "byte leads outside": lambda a: a["answer_table"].__setitem__((0, 5), 20_000),
    "narrow bytes": lambda a: a.update(answer_table=a["answer_table"][:, :255]),
    "broken outside": lambda a: a["numbers"].__setitem__(0, 30_000),
    "escaped outside": lambda a: a["answer_numbers"].__setitem__(1, 30_000),
    "reasoning outside": lambda a: a["numbers"].__setitem__(1, 1),
    "before outside": lambda a: a["before"].__setitem__(0, 30_000),
    "roles missing": lambda a: a.update(roles=a["roles"][:-1]),
    "unknown role": lambda a: a["roles"].__setitem__(0, 9),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_with_other_content_is_made_again(
    spellings: TokenSpellings, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    built = stored_automaton(spellings, SPECS["both"], tmp_path)
    [path] = tmp_path.iterdir()
    with np.load(path) as loaded:
        arrays = dict(loaded)
    DAMAGE[damage](arrays)
    np.savez(path, **arrays)
    with caplog.at_level(logging.WARNING):
        assert same(stored_automaton(spellings, SPECS["both"], tmp_path), built)
    assert "is damaged and is made again" in caplog.text
    caplog.clear()
    assert same(stored_automaton(spellings, SPECS["both"], tmp_path), built)
    assert caplog.text == ""


def test_the_newest_files_are_kept_and_spellings_are_not_counted(
    spellings: TokenSpellings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_MOST_FILES", 2)
    (tmp_path / "spellings-2-0.npz").write_text("other")
    for rows in (600, 700, 800, 900):
        stored_automaton(spellings, AutomatonSpec(KO, rows), tmp_path)
    assert len([*tmp_path.glob("automaton-*.npz")]) == 2
    assert (tmp_path / "spellings-2-0.npz").exists()


def test_a_spec_without_a_policy_is_an_error(spellings: TokenSpellings, tmp_path: Path) -> None:
    for tokens in (None, TOKENS):
        with pytest.raises(KPruneError, match="got no policy"):
            stored_automaton(spellings, AutomatonSpec(None, 900, tokens=tokens), tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written_is_only_logged(
    spellings: TokenSpellings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        built = stored_automaton(spellings, SPECS["plain"], tmp_path / "cache")
    assert same(built, SPECS["plain"].build(spellings))
    assert "no cache for the next start" in caplog.text
