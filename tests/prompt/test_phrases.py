"""What belongs together is one piece: numbers, bounds, negations, addresses, Korean words."""

import csv
import gzip
import json
import os
import re
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.meaning import PHRASES, broken, fused, headless
from support.prompt_cases import passage_of, pruner_of
from tokenizers import Tokenizer

from vllm_kprune.prompt import phrases
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.pieces import cut_pieces
from vllm_kprune.prompt.rarity import Rarity

WHOLE = {
    "numbers": (
        *("8만 파운드", "120만 명", "$3.4 million", "87.39万册", "-5 °C", "6½ sacks", "10² m²"),
        *(
            "12월 27일",
            "10:30 a.m.",
            "74 - 35 = 39",
            "y = -2",
            "returns",
            "5 to 10 km",
            "(1922–26)",
        ),
        *("December 27, 2019", "27 December 2019", "오후 3시 30분", "1万8千", "5 km per hour"),
        *("10-20%", "€5.50", "1,230", "2020-21", "21 patients", "two hundred thousand euros"),
        *("1만8천 명을", "세 명", "Row 1", "2013年12月27日", "三百万人", "x ≤ 5", "3 × 10¹¹"),
    ),
    "bounds": (
        *("no more than 2 tablets", "at most 5", "at least 18 years", "up to 70", "under 18"),
        *(
            "between 5 and 10",
            "fewer than 1,000",
            "not less than 3",
            "increased by 5",
            "2회 이하로",
        ),
        *("10명 이상", "최소 3명", "18세 미만", "不超过87", "至少3", "50以上", "nearly 60 years"),
    ),
    "case and negation": (
        *(
            "paid by",
            "not important",
            "not a doctor",
            "먹지 않는다",
            "할 수 없다",
            "안 먹는다",
            "不重要",
        ),
        *("never returned", "didn’t go", "안 먹는다", "被卡", "larger than"),
    ),
    "lists in brackets": (
        *("['a', 'b', 'c', 'a', 'd']", '{"a": 1, "b": 2}', "[1, 2, 3]", "[-1, 0, 1]"),
        *("['가', '나']", '["two words", "three"]'),
    ),
    "one word": (
        *("game-winning", "me@example.org", "https://a.b/c?d=1&e=2", "node.js", "a_b", "U.S."),
        *("C:\\temp\\x.txt", "./run.sh", "x86_64", "Dialog1", "COVID-19", "f(x)", "don't", "C++"),
        *(
            "코스피(KOSPI)지수는",
            "라면'이라는",
            "서울(漢城)은",
            "이학봉",
            "고안된",
            "--help",
            "a/b",
        ),
    ),
}


def pieces_of(text: str) -> list[str]:
    pieces = cut_pieces(text, ())
    return [text[a:b] for a, b in zip(pieces.starts, pieces.ends, strict=True)]


@pytest.mark.parametrize("phrase", [one for group in WHOLE.values() for one in group])
@pytest.mark.parametrize(
    "around", ["{}", "of {}, in", "그는 {} 그리고", "和{}，在", "({})", "“{}”."]
)
def test_it_is_one_piece_wherever_it_stands(phrase: str, around: str) -> None:
    text = around.format(phrase)
    start = text.index(phrase)
    inner = phrase.strip("()")
    start += phrase.index(inner)
    pieces = cut_pieces(text, ())
    cuts = set(pieces.starts.tolist())
    # It may be in a larger piece, but nothing cuts it.
    assert not cuts & set(range(start + 1, start + len(inner)))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("tackles (118) for", ["tackles", "118", "for"]),
        ("21 patients and 14 women", ["21 patients", "and", "14 women"]),
        ("one of the", ["one", "of", "the"]),
        ("however--it", ["however", "it"]),
        ("bread, wine", ["bread", "wine"]),
        ("salt (bread, wine)", ["salt", "bread", "wine"]),
        ("대한민국의 수도는", ["대한민국의", "수도는"]),
        ("野马队的首都", ["野马", "队", "的", "首都"]),
    ],
)
def test_what_does_not_belong_together_is_cut(text: str, pieces: list[str]) -> None:
    assert [piece for piece in pieces_of(text) if piece[0].isalnum()] == pieces


@given(
    st.lists(st.sampled_from([*sum(WHOLE.values(), ()), "of", "and", ".", "은", "的"]), max_size=9)
)
def test_pieces_are_the_text_and_cut_the_same_by_tokens(parts: list[str]) -> None:
    text = " ".join(parts)
    words = passage_of(text).pieces
    tokens = passage_of(text, "token").pieces
    assert "".join(text[a:b] for a, b in zip(words.starts, words.ends, strict=True)) == text
    assert set(words.starts) <= set(tokens.starts)
    # Only a word by itself may be divided; each of its parts but the first continues it.
    assert set(tokens.starts[tokens.continues]) == set(tokens.starts) - set(words.starts)


@cache
def real_texts(language: str) -> list[str]:
    folder = Path(os.environ["KPRUNE_DATA"])
    if language == "ko":
        with (folder / "kobest-dev" / "boolq_first400.tsv").open(encoding="utf-8") as stream:
            rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            return list(islice(dict.fromkeys(row["Text"] for row in rows), 200, 240))
    with gzip.open(folder / "xquad" / f"xquad.{language}.json.gz") as stream:
        articles = json.load(stream)["data"]
    paragraphs = (p["context"] for article in articles for p in article["paragraphs"])
    return list(islice(paragraphs, 100, 140))


KINDS = "wWfHNn4MkKDdUqhtyBFxXpPYAuamljvVREZcCibes&o-~.,()' \n|"


@given(st.text(st.sampled_from(KINDS + "NwHx    "), max_size=40))
def test_links_are_those_of_the_patterns_as_they_are_written(kinds: str) -> None:
    """A look-behind is slow, so most patterns are searched without one."""
    wanted = {
        part
        for before, between, after in phrases._LINKS
        for match in re.finditer(f"(?<={before}){between}(?={after})", kinds)
        for part in range(match.start(), match.end() + 1)
    }
    assert {part for span in phrases.linked(kinds) for part in span} == wanted


@pytest.mark.skipif("KPRUNE_DATA" not in os.environ, reason="KPRUNE_DATA names no real text")
@pytest.mark.parametrize("language", ["en", "ko", "zh"])
@pytest.mark.slow
def test_real_text_keeps_its_meaning(
    language: str, published_tokenizer: Callable[[str], Path]
) -> None:
    """Counted on passages that no rule was written for; before, half of the phrases broke."""
    tokenizer = Tokenizer.from_file(str(published_tokenizer("gemma3")))
    pruner = pruner_of(tokenizer, Rarity())
    found = wrong = 0
    for text in real_texts(language):
        for keep in (0.3, 0.7):
            pruned = pruner.prune(text, PruneOptions(keep=keep))
            counts = [lost for p in PHRASES[language].values() for _, lost in broken(pruned, p)]
            found, wrong = found + len(counts), wrong + sum(counts)
            assert not list(fused(pruned))
            assert not list(headless(pruned))
            assert not pruned.exceeds
    assert found > 30
    assert wrong <= 0.02 * found
