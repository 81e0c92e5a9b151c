"""The suite `translation`: directions, prompts, scores that add up to sacrebleu's own."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mock_endpoint import MockClient, comparing, run_suite
from support.synthetic_report import metrics_of, reported

from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.suites import translation_scores
from vllm_kprune.compare.suites.parallel_text import (
    own_sentences,
    own_shots,
    read_sentences,
)
from vllm_kprune.compare.suites.translation import Translation
from vllm_kprune.compare.suites.translation_prompts import directions
from vllm_kprune.errors import KPruneError

sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")

BY_ENGLISH = {s.texts["en"]: s.texts for s in own_sentences()}
SENTENCES = st.lists(
    st.tuples(*[st.text(st.sampled_from("가나다 the cat.你好"), max_size=20)] * 2),
    min_size=1,
    max_size=5,
)


def perfect(request: Request) -> Answer:
    """A translator that knows kprune's own sentences by heart."""
    text = request.messages[-1]["content"]
    target = "ko" if "into Korean" in text else "en"
    for texts in BY_ENGLISH.values():
        if text.endswith("\n" + texts["ko" if target == "en" else "en"]):
            return Answer(text=f" {texts[target]}\n")
    raise AssertionError(text)


def worse(request: Request) -> Answer:
    """The same translator, but the last word is missing."""
    return Answer(text=perfect(request).text.strip().rpartition(" ")[0])


def run(folder: Path, original: Any, pruned: Any, **options: Any) -> SuiteResult:
    clients = MockClient("original", original), MockClient("pruned", pruned)
    return run_suite(Translation(), folder, *clients, **options)


@given(SENTENCES)
@settings(max_examples=30)
def test_chrf_counts_add_up_to_sacrebleus_corpus_score(pairs: list[tuple[str, str]]) -> None:
    answers, references = map(list, zip(*pairs, strict=True))
    sums = translation_scores.chrf_features(answers, references).sum(axis=0)
    metric = sacrebleu.CHRF(word_order=2)
    expected = metric.corpus_score(answers, [references]).score
    assert metric._compute_score_from_stats(list(sums)).score == pytest.approx(expected)


@given(SENTENCES, st.sampled_from(["en", "ko", "zh"]))
@settings(max_examples=30)
def test_bleu_counts_add_up_to_sacrebleus_corpus_score(
    pairs: list[tuple[str, str]], language: str
) -> None:
    answers, references = map(list, zip(*pairs, strict=True))
    length, reference, *counts = translation_scores.bleu_features(
        answers, references, language
    ).sum(axis=0)
    found = sacrebleu.BLEU.compute_bleu(
        counts[:4], counts[4:], int(length), int(reference), smooth_method="exp"
    )
    tokenizer = translation_scores._bleu(language, sentence=False)
    expected = tokenizer.corpus_score(answers, [references])
    assert found.score == pytest.approx(expected.score)


@pytest.mark.parametrize("language", ["en", "ko", "zh"])
def test_a_reference_scores_100_against_itself(language: str) -> None:
    texts = [s.texts[language] for s in own_sentences() if language in s.texts]
    chrf = translation_scores.chrf_features(texts, texts)
    assert np.array_equal(chrf[:, 0::3], chrf[:, 2::3])  # every n-gram is matched
    bleu = translation_scores.bleu_features(texts, texts, language)
    assert np.array_equal(bleu[:, 2:6], bleu[:, 6:10])
    assert translation_scores.sentence_chrf(texts[0], texts[0]) == pytest.approx(100)


def test_signatures_say_how_korean_was_cut() -> None:
    bleu, chrf = translation_scores.signatures("ko")
    assert "tok:char" in bleu or "tok:ko-mecab" in bleu
    assert "nw:2" in chrf and "version:" in chrf


def test_the_first_language_is_the_pivot() -> None:
    assert [str(d) for d in directions(("ko", "en"))] == ["en-ko", "ko-en"]
    assert directions(("ko",)) == ()


def test_one_language_has_nothing_to_translate_and_says_so(tmp_path: Path) -> None:
    found = run(tmp_path, perfect, perfect, languages=("ko",))
    assert found.measurements == ()
    assert "name two with --language" in found.unavailable["*"]


def test_the_mean_over_directions_is_what_the_suite_stands_for_also_if_one_failed(
    tmp_path: Path,
) -> None:
    def only_to_english(request: Request) -> Answer:
        failed = "into Korean" in request.messages[-1]["content"]
        return Answer(error="HTTP 500") if failed else perfect(request)

    found = run(tmp_path, perfect, only_to_english, limit=2)
    assert found.main == "chrf_all" in found.unavailable
    assert "chrf_en_ko" in found.unavailable
    assert [m.metric.name for m in found.measurements] == ["chrf_ko_en", "bleu_ko_en"]


@pytest.mark.slow
def test_a_worse_translator_scores_lower_and_an_equal_one_alike(tmp_path: Path) -> None:
    found = run(tmp_path, perfect, worse)
    names = [m.metric.name for m in found.measurements]
    of_all = ["chrf_all", "bleu_all"]
    assert names == [*of_all, "chrf_en_ko", "bleu_en_ko", "chrf_ko_en", "bleu_ko_en"]
    for measurement in found.measurements:
        bleu, width = "bleu" in measurement.metric.name, measurement.original.shape[1]
        matched = [2, 3, 4, 5] if bleu else list(range(2, width, 3))
        matched += [column + 10 for column in matched] if bleu and width == 20 else []
        assert measurement.pruned is not None
        lost = measurement.original[:, matched].sum() - measurement.pruned[:, matched].sum()
        assert lost > 0
    assert {e.labels["chrF++"] for e in found.examples} == {"worse"}
    assert len(found.measurements[0].items) == 2 * len(own_sentences())
    assert len(found.measurements[2].items) == len(own_sentences())


@pytest.mark.slow
def test_the_mean_over_directions_is_that_of_their_scores(tmp_path: Path) -> None:
    def one_way(request: Request) -> Answer:
        into_korean = "into Korean" in request.messages[-1]["content"]
        return (worse if into_korean else perfect)(request)

    metrics = metrics_of(reported(run(tmp_path, perfect, one_way)))
    for score in ("chrf", "bleu"):
        each = [metrics[f"{score}_{way}"].pruned for way in ("en_ko", "ko_en")]
        values = [one.value for one in each if one is not None and one.value is not None]
        mean = metrics[f"{score}_all"].pruned
        assert mean is not None and mean.value == pytest.approx(sum(values) / 2)
    # A loss in one direction is enough.
    assert metrics["chrf_all"].verdict == "worse"
    assert metrics["chrf_en_ko"].verdict == "informational"


def test_swapping_the_sides_swaps_the_features(tmp_path: Path) -> None:
    one = run(tmp_path / "one", perfect, worse, limit=5)
    other = run(tmp_path / "other", worse, perfect, limit=5)
    for a, b in zip(one.measurements, other.measurements, strict=True):
        assert a.items == b.items
        assert np.array_equal(a.original, b.pruned) and np.array_equal(a.pruned, b.original)


def test_a_resumed_run_asks_nothing_again(tmp_path: Path) -> None:
    first = run(tmp_path, perfect, worse, limit=3)

    def nobody(request: Request) -> Answer:
        raise AssertionError("asked again")

    again = run(tmp_path, nobody, nobody, limit=3)
    assert [e.answers for e in again.examples] == [e.answers for e in first.examples]


def test_the_limit_draws_by_the_seed(tmp_path: Path) -> None:
    def items(seed: int) -> tuple[str, ...]:
        return (
            run(tmp_path / str(seed), perfect, perfect, limit=4, seed=seed).measurements[-1].items
        )

    assert len(items(0)) == 4
    assert items(0) != items(1)


def test_failed_answers_are_left_out_and_told(tmp_path: Path) -> None:
    def sometimes(request: Request) -> Answer:
        into_korean = "into Korean" in request.messages[-1]["content"]
        return Answer(error="HTTP 500") if into_korean else perfect(request)

    found = run(tmp_path, perfect, sometimes, limit=4)
    assert [m.metric.name for m in found.measurements] == ["chrf_ko_en", "bleu_ko_en"]
    assert "chrf_en_ko" in found.unavailable
    assert "4 of 8 sentences left out: one side did not answer" in found.notes


def test_comet_is_unavailable_with_its_reason_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "comet", None)
    translation_scores._comet.cache_clear()
    found = run(tmp_path, perfect, perfect, limit=2)
    assert "unbabel-comet is not installed" in found.unavailable["comet_en_ko"]


def test_comet_scores_each_sentence_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scorer:
        def predict(self, data: list[dict[str, str]], **settings: Any) -> Any:
            assert settings["gpus"] == 0
            return SimpleNamespace(scores=[float(row["mt"] == row["ref"]) for row in data])

    loads = SimpleNamespace(
        download_model=lambda name: f"path of {name}", load_from_checkpoint=lambda path: Scorer()
    )
    monkeypatch.setitem(sys.modules, "comet", loads)
    translation_scores._comet.cache_clear()
    found = run(tmp_path, perfect, worse, limit=2, comet_model="mine")
    translation_scores._comet.cache_clear()
    comet = next(m for m in found.measurements if m.metric.name == "comet_en_ko")
    assert (comet.original.tolist(), comet.pruned.tolist()) == ([[1.0], [1.0]], [[0.0], [0.0]])
    of_all = metrics_of(reported(found))["comet_all"]
    assert of_all.pruned is not None
    assert (of_all.original.value, of_all.pruned.value) == (1, 0)
    assert not found.unavailable


def test_a_model_of_comet_that_cannot_be_loaded_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(name: str) -> str:
        raise OSError("no hub")

    fake = SimpleNamespace(download_model=no_hub, load_from_checkpoint=None)
    monkeypatch.setitem(sys.modules, "comet", fake)
    translation_scores._comet.cache_clear()
    found = run(tmp_path, perfect, perfect, limit=2)
    assert "wmt22-comet-da could not be loaded: no hub" in found.unavailable["comet_en_ko"]


def test_a_model_without_chat_continues_examples(tmp_path: Path) -> None:
    def continues(request: Request) -> Answer:
        assert request.kind == "completion" and request.extra["stop"] == ["\n"]
        assert request.prompt.count("English:") == request.prompt.count("Korean:") == 4
        return Answer(text="x")

    missing = {"chat": "no template"}
    clients = [MockClient(name, continues, missing=missing) for name in ("original", "pruned")]
    with comparing(tmp_path, *clients, limit=2) as context:
        assert Translation().run(context).measurements


def test_our_own_sentences_are_enough_and_shots_are_apart() -> None:
    sentences = own_sentences()
    assert len({s.id for s in sentences}) == len(sentences) >= 40
    assert all({"en", "ko"} <= s.texts.keys() for s in sentences)
    assert sum("zh" in s.texts for s in sentences) >= 20
    assert not {s.texts["en"] for s in own_shots()} & BY_ENGLISH.keys()


@pytest.mark.parametrize("name", ["rows.tsv", "rows.jsonl"])
def test_files_of_both_kinds_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = {
        "rows.tsv": 'id\ten\tko\nx\tHi "there"\t안녕\n\tBye\t잘 가\nz\talone\t\n',
        "rows.jsonl": '{"id": "x", "en": "Hi \\"there\\"", "ko": "안녕"}\n\n'
        '{"en": "Bye", "ko": "잘 가"}\n{"id": "z", "en": "alone"}\n',
    }
    path.write_text(rows[name], encoding="utf-8")
    found = read_sentences(path, ("ko", "en"))
    assert [s.id for s in found] == ["x", "rows-3"]
    assert found[0].texts == {"en": 'Hi "there"', "ko": "안녕"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no row with text in two"),
        ('{"en": "a"}', "no row with text in two"),
        ("[1]", "expected an object"),
        ("{", "is not JSON"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KPruneError, match=says):
        read_sentences(path, ("ko", "en"))


def test_real_parallel_text_is_read_in_all_its_languages(kprune_data: Path) -> None:
    path = kprune_data / "pud-en-ko-zh-dev" / "pud.en-ko-zh.jsonl"
    found = read_sentences(path, ("ko", "en", "zh"))
    assert len(found) == 400
    assert all({"en", "ko", "zh"} <= sentence.texts.keys() for sentence in found)


def test_a_field_that_is_too_long_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "long.tsv"
    path.write_text(f"en\tko\nA dog.\t개.\nA cat.\t{'x' * 140_000}\n", encoding="utf-8")
    with pytest.raises(KPruneError, match=r"long\.tsv:3 cannot be read as TSV"):
        read_sentences(path, ("en", "ko"))


def test_languages_without_a_sentence_are_told_with_those_that_there_are(tmp_path: Path) -> None:
    found = run(tmp_path / "own", perfect, perfect, languages=("fr", "ko"))
    reason = found.unavailable["chrf_ko_fr"]
    assert "own sentences (" in reason and "do not cover ko and fr" in reason
    assert "en" in reason and "zh" in reason and "--translation" in reason
    file = tmp_path / "two.tsv"
    file.write_text("ko\ten\n안녕\tHi\n", encoding="utf-8")
    reply = Answer(text="x")
    of_file = run(
        *(tmp_path / "file", lambda _: reply, lambda _: reply),
        languages=("ko", "en", "fr"),
        files=(file,),
    )
    assert of_file.unavailable["chrf_fr_ko"] == (
        "no row of the file has text in both fr and ko; columns with text: 'ko', 'en'"
    )
