"""Text in the languages asked for passes, token by token; text with another script does not."""

import gzip
import json
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from support.guard_oracle import Vocabulary, foreign, policy_of, refused_tokens

ENKO = policy_of(languages="ko,en")
KO = policy_of(languages="ko")
PROJECT = Path(__file__).parents[2]

KOREAN = [
    "대한민국의 수도는 서울이다. 2026년 11월 22일, 기온은 12.5℃였다.",
    "㉠과 ㉡ 중에서 고르시오. ① 「국어」 ② 『문학』 ③ 〈시〉 ※ 주의: 50㎏ 이상",
    "\u1112\u1161\u11ab\u1100\u1173\u11af은 NFD로도 쓴다.",
    "ㅋㅋㅋ ㅠㅠ 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇰🇷 1️⃣ ❤️ (^_^;)",
    'API 응답을 JSON으로 받아 `resp["items"]`에 넣고 https://example.com/a?b=c#d 로 보낸다.',
    "Ⅰ. 서론 → Ⅱ. 본론 … 3·1 운동, A/B 테스트, ５０％ 할인, ￦1,000 ~ ₩2,000",
    "```python\ndef f(x: list[int]) -> int:\n\treturn sum(x) ** 2  # 합\n```",
    "\ufeff제목\r\n\u3000들여쓰기\u00a0\u200b\n\n\n    끝",
    "x² + y² ≤ r², ∑(a), 𝐀𝐱 = 𝐛, ∂f/∂x ≈ 0",
]
ENGLISH = ["The naïve café in Zürich; “quotes” – dashes… ½ × €5, ﬁne, Ångström, Việt Nam."]


def passed(vocabulary: Vocabulary, lines: list[str], policy: Any = ENKO) -> tuple[int, list[str]]:
    """How many lines pass, and lines on which guard and oracle disagree."""
    ids = [e.ids for e in vocabulary.tokenizer.encode_batch_fast(lines, add_special_tokens=False)]
    refused = refused_tokens(vocabulary.automaton(policy), ids)
    # Qwen3 normalises to NFC before it encodes: what counts is the text that the ids spell.
    spelled = vocabulary.texts(ids, skip_special_tokens=False)
    wrong = [
        text
        for text, position in zip(spelled, refused, strict=True)
        if (position is None) != (not foreign(text, policy))
    ]
    return refused.count(None), wrong


@pytest.mark.parametrize("policy", [KO, ENKO], ids=["ko", "ko,en"])
def test_korean_of_every_kind_passes(vocabulary: Vocabulary, policy: Any) -> None:
    assert passed(vocabulary, KOREAN, policy) == (len(KOREAN), [])


def test_english_with_accents_passes(vocabulary: Vocabulary) -> None:
    assert passed(vocabulary, ENGLISH) == (len(ENGLISH), [])
    assert passed(vocabulary, ENGLISH, KO) == (0, [])


def code_lines() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py"))[::7] + sorted((library / "email").glob("*.py"))
    for path in [*files, *sorted(PROJECT.rglob("vllm_kprune/*.py")), PROJECT / "README.md"]:
        yield from path.read_text(encoding="utf-8").splitlines(keepends=True)


@pytest.mark.slow
def test_code_passes(vocabulary: Vocabulary) -> None:
    lines = list(islice(code_lines(), 8_000))
    count, wrong = passed(vocabulary, lines)
    assert wrong == []
    assert count >= 0.999 * len(lines)


def test_korean_alone_leaves_code_possible(vocabulary: Vocabulary) -> None:
    lines = [line for line in islice(code_lines(), 2_000) if line.isascii()]
    assert passed(vocabulary, lines, KO) == (len(lines), [])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def texts_of(path: Path) -> Iterator[str]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    if ".json" in path.suffixes:
        yield from _strings(json.loads(text))
    else:
        yield from text.splitlines()


@pytest.mark.parametrize(
    ("file", "share"),
    [
        ("klue/klue-nli-v1.1_dev.json.gz", 1.0),
        ("klue/ner_dp_dev_sentences.txt.gz", 0.98),  # the others hold hanja
        ("kobest-dev/boolq_first400.tsv", 0.96),  # hanja, Russian names
        ("language-confusion-ko/monolingual_native_ko.csv", 1.0),
        ("calib-gnome-user-docs/ko.txt.gz", 1.0),
        ("calib-wordnet/en.txt.gz", 1.0),
        ("xquad/xquad.en.json.gz", 0.998),  # Greek, Han
    ],
)
@pytest.mark.slow
def test_every_held_out_line_without_another_script_passes(
    vocabulary: Vocabulary, kprune_data: Path, file: str, share: float
) -> None:
    lines = list(islice(texts_of(kprune_data / file), 4_000))
    count, wrong = passed(vocabulary, lines)
    assert wrong == []
    assert count >= share * len(lines)


@pytest.mark.parametrize("language", ["zh", "ja", "ru", "hi", "ar", "th"])
def test_other_languages_do_not_pass(
    vocabulary: Vocabulary, kprune_data: Path, language: str
) -> None:
    lines = [line for line in texts_of(kprune_data / f"calib-udhr/{language}.txt") if line.strip()]
    count, wrong = passed(vocabulary, lines)
    assert wrong == []
    assert count <= 0.05 * len(lines)
    assert passed(vocabulary, lines, policy_of(languages=language))[0] == len(lines)
