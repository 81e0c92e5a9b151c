"""Whatever an endpoint says, two answers are compared; files with odd rows are refused."""

import random
from collections import Counter
from pathlib import Path

import pytest

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.suites.accuracy_tasks import check_files
from vllm_kprune.compare.suites.divergences import find_divergence
from vllm_kprune.compare.suites.greedy_answers import Vocabularies
from vllm_kprune.compare.suites.parallel_text import read_sentences
from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.bpe import BpeTokenizer

TOKENS = ("<bos>", "日", "서", "울", "東", "a")
VOCABULARIES = Vocabularies(
    BpeTokenizer({}, {token: i for i, token in enumerate(TOKENS)}, (), (), "byte_fallback"),
    (0, 2, 3, 5),
)
NAMES = ("token_id:2", "token_id:3", "token_id:99", "token_id:-1", f"token_id:{'9' * 5000}",
         "token_id:", "token_id:٣", "token_id:²", "x", "서", "")  # fmt: skip


def answer(draw: random.Random) -> Answer:
    """An answer whose parts need not fit together."""
    count = draw.randrange(4)

    def ids() -> tuple[int, ...] | None:
        some = tuple(draw.choice((0, 1, 2, 3, 5, 6, -1, 99, 1 << 40)) for _ in range(count))
        return draw.choice((some, some, tuple(i % 4 for i in some), None))

    def place() -> dict[str, float]:
        values = (20.0, 20.125, -1.0, 0.0, float("inf"), float("nan"))
        known = NAMES[:2] if draw.random() < 0.6 else NAMES
        return {draw.choice(known): draw.choice(values) for _ in range(draw.randrange(3))}

    texts = tuple(draw.choice(TOKENS) for _ in range(draw.randrange(4)))
    top = tuple(place() for _ in range(draw.choice((count, count, draw.randrange(4)))))
    return Answer(
        text="".join(texts),
        token_texts=draw.choice((texts, None)),
        top=draw.choice((top, top, None)),
        ids=ids(),
        prompt_ids=draw.choice(((0,), (0,), (7,), (), None)),
    )


@pytest.mark.parametrize("known", [True, False])
def test_any_two_answers_are_compared(known: bool) -> None:
    draw, verdicts = random.Random(0), Counter[str]()
    for _ in range(3000):
        pair = answer(draw), answer(draw)
        found = find_divergence(*pair, VOCABULARIES if known else None)
        verdicts[found.verdict] += 1
        assert found.reason in ("", "prompt", "pruned token", "unexplained")
        if not known:
            assert (found.verdict == "identical") == (pair[0].text == pair[1].text)
    assert verdicts.keys() >= {"identical", "different"}


def test_true_is_no_index_of_a_choice_and_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = '{"prompt": "x", "choices": ["a", "b"], "answer": 1}\n'
    path.write_text(good)
    check_files(tmp_path, ["a"])
    path.write_text(good + good.replace("1}", "true}"))
    with pytest.raises(KPruneError, match=r"a\.jsonl:2 does not fit"):
        check_files(tmp_path, ["a"])


@pytest.mark.parametrize(
    "header",
    ["en\ten\tko", "\t".join(f"c{n}" for n in range(100_000))],
    ids=["twice", "many"],
)
def test_columns_of_a_table_have_names_of_their_own_and_are_few(
    tmp_path: Path, header: str
) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(f"{header}\n" + "x\n" * 100_000)
    with pytest.raises(KPruneError, match="expected at most 1000 columns, each name once"):
        read_sentences(path, ["en", "ko"])
