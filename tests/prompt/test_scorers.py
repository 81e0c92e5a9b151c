"""Scorers: one finite score for each piece of any text, the same everywhere and every time."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompt_cases import passage_of as characters
from support.published import EACH
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.pieces import cut_pieces
from vllm_kprune.prompt.scorers import (
    DEFAULT_SCORER,
    SCORERS,
    RandomScores,
    Scorer,
    make_scorer,
)
from vllm_kprune.prompt.tokens import Tokens

WEIGHTLESS = [name for name in SCORERS if name != "attention"]
ENGLISH = "The quick brown fox and the lazy dog were in the garden of Oxford in 1871."
KOREAN = "한국은행은 기준금리를 연 3.5%로 동결했고, 물가가 오를 것이라고 내다봤다."
CHINESE = "世界上最大的航海博物馆位于英国的格林尼治，是皇家博物馆的一部分。"


@pytest.fixture(scope="module", params=EACH)
def folder(published_tokenizer: Callable[[str], Path], request: pytest.FixtureRequest) -> Path:
    return published_tokenizer(request.param).parent


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def passage_of(tokenizer: Tokenizer, text: str) -> CutText:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    tokens = Tokens(text, tuple(encoding.ids), tuple(encoding.offsets))
    return CutText(tokens, cut_pieces(text, tokens.offsets))


def by_word(scorer: Scorer, passage: CutText) -> dict[str, float]:
    """The text of each piece and its score."""
    pieces = passage.pieces
    spans = zip(pieces.starts, pieces.ends, scorer.scores(passage).tolist(), strict=True)
    return {passage.text[begin:end]: score for begin, end, score in spans}


@pytest.mark.parametrize("name", WEIGHTLESS)
@pytest.mark.slow
def test_any_text_has_one_finite_score_for_each_piece(
    folder: Path, tokenizer: Tokenizer, name: str
) -> None:
    scorer = make_scorer(name, folder)

    @settings(max_examples=150)
    @given(st.text(), st.none() | st.text())
    def law(text: str, query: str | None) -> None:
        passage = passage_of(tokenizer, text)
        scores = scorer.scores(passage, query=query)
        assert scores.shape == passage.pieces.starts.shape
        assert np.isfinite(scores).all()
        assert (scores == make_scorer(name, folder).scores(passage, query=query)).all()

    law()


@pytest.mark.slow
def test_scores_do_not_depend_on_the_process(folder: Path, tokenizer: Tokenizer) -> None:
    text = ENGLISH + KOREAN + CHINESE
    code = (
        "import sys; from pathlib import Path; from tokenizers import Tokenizer\n"
        "from vllm_kprune.prompt.scorers import make_scorer\n"
        "from vllm_kprune.prompt.cut_text import CutText\n"
        "from vllm_kprune.prompt.pieces import cut_pieces\n"
        "from vllm_kprune.prompt.tokens import Tokens\n"
        "folder, text, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]\n"
        "tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))\n"
        "e = tokenizer.encode(text, add_special_tokens=False)\n"
        "tokens = Tokens(text, tuple(e.ids), tuple(e.offsets))\n"
        "passage = CutText(tokens, cut_pieces(text, tokens.offsets))\n"
        "for name in names: print(make_scorer(name, folder).scores(passage, query='Oxford')"
        ".tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), text, *WEIGHTLESS],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    passage = passage_of(tokenizer, text)
    expected = [make_scorer(name, folder).scores(passage, query="Oxford") for name in WEIGHTLESS]
    assert done.stdout.split() == [scores.tobytes().hex() for scores in expected]


def test_random_scores_depend_on_the_seed_and_the_text() -> None:
    one, other = (characters(f"{text} " * 40) for text in "ab")
    assert (RandomScores(1).scores(one) == RandomScores(1).scores(one)).all()
    assert (RandomScores(1).scores(one) != RandomScores(2).scores(one)).all()
    assert (RandomScores(1).scores(one) != RandomScores(1).scores(other)).all()


def test_random_scores_are_uniform() -> None:
    scores = RandomScores().scores(characters("x " * 50_000))
    assert 0 <= scores.min() <= scores.max() < 1
    assert np.allclose(np.histogram(scores, 10, (0, 1))[0], 10_000, atol=500)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_a_text_without_tokens_has_no_scores(folder: Path, name: str) -> None:
    assert make_scorer(name, folder).scores(characters("")).shape == (0,)


def test_an_unknown_name_is_an_error_that_names_the_nearest(folder: Path) -> None:
    with pytest.raises(KPruneError, match="did you mean 'rarity'"):
        make_scorer("rarety", folder)


def test_the_default_scorer_needs_no_weights() -> None:
    assert DEFAULT_SCORER in WEIGHTLESS


def test_importing_scorers_loads_no_word_lists_and_no_torch() -> None:
    code = (
        "import sys, vllm_kprune.prompt.scorers\n"
        "print(*{'torch', 'wordfreq', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_names_and_numbers_are_rarer_than_function_words(
    folder: Path, tokenizer: Tokenizer
) -> None:
    scores = by_word(make_scorer("rarity", folder), passage_of(tokenizer, ENGLISH))
    frequent = max(scores[word] for word in ("the", "and", "were", "in", "of"))
    assert all(scores[word] > frequent for word in ("quick", "fox", "lazy", "garden", "Oxford"))


def test_function_words_without_spaces_score_below_others(
    folder: Path, tokenizer: Tokenizer
) -> None:
    scores = by_word(make_scorer("rarity", folder), passage_of(tokenizer, CHINESE))
    names = [scores[word] for word in ("航海", "博物馆", "皇家")]
    assert min(names) > scores["的"]
