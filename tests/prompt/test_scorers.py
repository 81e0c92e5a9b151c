"""Scorers: one finite score for each token of any text, the same everywhere and every time."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.published import EACH
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.scorers import (
    DEFAULT_SCORER,
    SCORERS,
    RandomScores,
    Scorer,
    Tokens,
    make_scorer,
)

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


def tokens_of(tokenizer: Tokenizer, text: str) -> Tokens:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return Tokens(text, tuple(encoding.ids), tuple(encoding.offsets))


def by_word(scorer: Scorer, tokens: Tokens) -> dict[str, float]:
    """The text of each token, without spaces, and its score."""
    scores = scorer.scores(tokens).tolist()
    pieces = [tokens.text[begin:end].strip() for begin, end in tokens.offsets]
    return dict(zip(pieces, scores, strict=True))


@pytest.mark.parametrize("name", WEIGHTLESS)
@pytest.mark.slow
def test_any_text_has_one_finite_score_for_each_token(
    folder: Path, tokenizer: Tokenizer, name: str
) -> None:
    scorer = make_scorer(name, folder)

    @settings(max_examples=150)
    @given(st.text(), st.none() | st.text())
    def law(text: str, query: str | None) -> None:
        tokens = tokens_of(tokenizer, text)
        scores = scorer.scores(tokens, query=query)
        assert scores.shape == (len(tokens.ids),)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        assert (scores == make_scorer(name, folder).scores(tokens, query=query)).all()

    law()


@pytest.mark.slow
def test_scores_do_not_depend_on_the_process(folder: Path, tokenizer: Tokenizer) -> None:
    text = ENGLISH + KOREAN + CHINESE
    code = (
        "import sys; from pathlib import Path; from tokenizers import Tokenizer\n"
        "from vllm_kprune.prompt.scorers import Tokens, make_scorer\n"
        "folder, text, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]\n"
        "tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))\n"
        "e = tokenizer.encode(text, add_special_tokens=False)\n"
        "tokens = Tokens(text, tuple(e.ids), tuple(e.offsets))\n"
        "for name in names: print(make_scorer(name, folder).scores(tokens).tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), text, *WEIGHTLESS],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    tokens = tokens_of(tokenizer, text)
    expected = [make_scorer(name, folder).scores(tokens) for name in WEIGHTLESS]
    assert done.stdout.split() == [scores.tobytes().hex() for scores in expected]


def test_random_scores_depend_on_the_seed_and_the_text() -> None:
    offsets = tuple((n, n + 1) for n in range(40))
    one, other = (Tokens(text * 40, tuple(range(40)), offsets) for text in "ab")
    assert (RandomScores(1).scores(one) == RandomScores(1).scores(one)).all()
    assert (RandomScores(1).scores(one) != RandomScores(2).scores(one)).all()
    assert (RandomScores(1).scores(one) != RandomScores(1).scores(other)).all()


def test_random_scores_are_uniform() -> None:
    scores = RandomScores().scores(Tokens("x", (0,) * 100_000, ((0, 1),) * 100_000))
    assert 0 <= scores.min() <= scores.max() < 1
    assert np.allclose(np.histogram(scores, 10, (0, 1))[0], 10_000, atol=500)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_a_text_without_tokens_has_no_scores(folder: Path, name: str) -> None:
    assert make_scorer(name, folder).scores(Tokens("", (), ())).shape == (0,)


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
    scores = by_word(make_scorer("rarity", folder), tokens_of(tokenizer, ENGLISH))
    frequent = max(scores[word] for word in ("the", "and", "were", "in", "of"))
    assert all(scores[word] > frequent for word in ("quick", "fox", "lazy", "garden", "Oxford"))


@pytest.mark.parametrize(
    ("text", "names", "marks"),
    [
        (KOREAN, ("한국은행", "기준금리", "동결", "물가"), ("를",)),
        (CHINESE, ("世界", "航海", "博物馆", "格林尼治", "英国"), ("的", "是")),
    ],
)
def test_function_words_without_spaces_score_below_others(
    folder: Path, tokenizer: Tokenizer, text: str, names: tuple[str, ...], marks: tuple[str, ...]
) -> None:
    tokens = tokens_of(tokenizer, text)
    scores = make_scorer("rarity", folder).scores(tokens)

    def mean(word: str) -> float:
        start, end = text.index(word), text.index(word) + len(word)
        inside = [n for n, (b, e) in enumerate(tokens.offsets) if b < end and e > start]
        return float(scores[inside].mean())

    low = [x for (b, e), x in zip(tokens.offsets, scores, strict=True) if text[b:e] in marks]
    assert low
    assert min(mean(name) for name in names) > max(low)


def test_a_word_that_is_split_has_one_score(folder: Path, tokenizer: Tokenizer) -> None:
    text = "We met Szczebrzeszyn."
    tokens = tokens_of(tokenizer, text)
    start = text.index("Szcz")
    inside = [n for n, (b, e) in enumerate(tokens.offsets) if b >= start - 1 and e < len(text)]
    assert len(inside) > 2
    assert np.ptp(make_scorer("rarity", folder).scores(tokens)[inside]) < 0.05  # ties are spread
