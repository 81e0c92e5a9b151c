"""The suite `stability`, with endpoints whose flaws are known."""

import csv
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from support.mock_answers import HANJA, Habits, in_wrong_language, leaks_hanja
from support.mock_endpoint import MockClient, compared, comparing, run_suite
from support.synthetic_report import metrics_of, reported

from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.suites.stability import Stability
from vllm_kprune.compare.suites.stability_prompts import pick, stability_prompts
from vllm_kprune.errors import KPruneError

pytest.importorskip("py3langid", reason="names languages; pip install 'vllm-kprune[compare]'")
SUITE = Stability()


def test_there_are_prompts_of_every_kind_each_once() -> None:
    prompts = stability_prompts(("ko", "en", "zh"), None)
    kinds = Counter(prompt.kind for prompt in prompts)
    assert kinds["ko"] >= 60
    assert kinds["en"] >= 40
    assert kinds["en-ko"] + kinds["ko-en"] >= 30
    assert kinds["zh"] >= 20
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert len({prompt.key for prompt in prompts}) == len(prompts)


def test_prompts_of_one_language_need_no_other() -> None:
    assert {prompt.kind for prompt in stability_prompts(("ko",), None)} == {"ko"}
    with pytest.raises(KPruneError, match="--benchmark"):
        stability_prompts(("fr",), None)


def test_a_limit_takes_of_every_kind_and_depends_on_the_seed_alone() -> None:
    prompts = stability_prompts(("ko", "en"), None)
    chosen = pick(prompts, 12, seed=3)
    assert Counter(prompt.kind for prompt in chosen) == dict.fromkeys(
        ("ko", "en", "en-ko", "ko-en"), 3
    )
    assert pick(prompts, 12, seed=3) == chosen != pick(prompts, 12, seed=4)
    assert pick(prompts, 1000, seed=3) == prompts


def test_the_benchmarks_files_are_asked_too(tmp_path: Path) -> None:
    path = tmp_path / "monolingual" / "native" / "ko.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = [["prompt", "source", "language"], ["여러 줄의\n질문, 하나", "x", "ko"]]
        csv.writer(stream).writerows([*rows, ["Une question", "x", "fr"]])
    found = [p for p in stability_prompts(("ko", "en"), tmp_path) if p.kind.startswith("mono")]
    assert [(p.key, p.language, p.text) for p in found] == [
        ("monolingual/native/ko/1", "ko", "여러 줄의\n질문, 하나")
    ]


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"prompt,language\n,ko\n", b"\xff\xfe\n"])
def test_a_file_that_is_none_of_the_benchmarks_is_a_mistake(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(KPruneError, match="--benchmark"):
        stability_prompts(("ko",), tmp_path)
    (tmp_path / "ko.csv").write_bytes(content)
    if content:
        with pytest.raises(KPruneError, match="--benchmark"):
            stability_prompts(("ko",), tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "case", ["pipe", "device", "huge", "columns", "cells", "cell", "nul", "files"]
)
def test_a_hostile_file_of_the_benchmark_is_refused_in_little_time(
    case: str, tmp_path: Path
) -> None:
    path = tmp_path / "ko.csv"
    if case == "pipe":
        os.mkfifo(path)
    elif case == "device":
        path.symlink_to("/dev/zero")
    elif case == "huge":
        with path.open("wb") as stream:
            stream.truncate(3 << 30)
    elif case == "files":
        for number in range(1_001):
            (tmp_path / f"{number}.csv").touch()
    else:
        header = "prompt,language"
        more = {
            "columns": f"{header}{',x' * 200}",
            "cells": f"{header}\n{',' * 4_000_000}",
            "cell": f"{header}\n{'x' * 140_000},ko",
            "nul": f"{header}\n\0,\0\n,",
        }[case]
        path.write_text(more)
    with pytest.raises(KPruneError, match="--benchmark") as caught:
        stability_prompts(("ko",), tmp_path)
    assert len(str(caught.value)) < 500


def test_equal_endpoints_are_equal_in_everything(tmp_path: Path) -> None:
    result = compared(SUITE, tmp_path, Habits(), Habits(), limit=40)
    metrics = metrics_of(reported(result))
    assert metrics["lcpr_t0"].original.value == metrics["lcpr_t1"].original.value == 1
    assert all(metric.effect.value == 0 for metric in metrics.values())
    assert result.unavailable == {}
    # Half of the prompts want English, whose words are not judged.
    assert (metrics["lcpr_t0"].items, metrics["wpr_t0"].items) == (40, 20)
    assert all(any(fnmatchcase(name, known) for known in SUITE.metrics) for name in metrics)
    of_one_language = {name for name in metrics if name.split("_")[-2] in {"en", "ko"}}
    assert of_one_language == {name for name, metric in metrics.items() if metric.detail}
    assert len(result.examples) == 80


def planted(
    flaw: Callable[..., bool], habits: Habits, temperature: float, samples: int
) -> dict[str, tuple[int, int]]:
    """By source and language: how many answers get the flaw from the mock, and of how many."""
    flaws: dict[str, list[bool]] = {}
    for prompt in stability_prompts(("ko", "en"), None):
        found = flaws.setdefault(f"{prompt.source} {prompt.language}", [])
        found += [flaw(habits, prompt.text, temperature, seed) for seed in range(samples)]
    return {cell: (sum(found), len(found)) for cell, found in flaws.items()}


@pytest.mark.slow
def test_answers_in_the_wrong_language_are_found_with_their_share(tmp_path: Path) -> None:
    habits = Habits(wrong_language=0.1)
    metrics = metrics_of(reported(compared(SUITE, tmp_path, Habits(), habits, samples=2)))
    for name, temperature, samples in (("lpr_t0", 0.0, 1), ("lpr_t1", 1.0, 2)):
        # Each language of each source counts alike, whatever the number of prompts.
        counts = planted(in_wrong_language, habits, temperature, samples)
        share = sum(flawed / answers for flawed, answers in counts.values()) / len(counts)
        assert 0.05 < share < 0.2
        effect = metrics[name].effect
        assert effect.value == pytest.approx(-share)
        assert effect.high is not None and effect.high < 0
    assert metrics["lcpr_t1"].verdict == "worse"
    assert metrics["broken_t1"].effect.value == 0
    assert metrics["foreign_ko_t1"].effect.value == 0


@pytest.mark.slow
def test_a_hanja_in_fifty_answers_is_found_and_shown(tmp_path: Path) -> None:
    habits = Habits(hanja=0.02)
    result = compared(SUITE, tmp_path, Habits(), habits, samples=4)
    leaks = metrics_of(reported(result))["foreign_t1"]
    assert leaks.original.value == 0
    flawed, answers = map(sum, zip(*planted(leaks_hanja, habits, 1.0, 4).values(), strict=True))
    assert leaks.effect.value == pytest.approx(flawed / answers)
    assert leaks.effect.low is not None and leaks.effect.low > 0
    assert leaks.verdict == "worse"
    flawed = [example for example in result.examples if example.labels["flawed"] == "pruned"]
    spans = [(example.answers[1], span) for example in flawed for span in example.spans[1]]
    assert spans
    assert {text[span.start : span.end] for text, span in spans} == {HANJA}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text + HANJA,
        lambda text: (
            "이것은 다른 언어로 쓰인 긴 문장 하나일 뿐입니다." if text.isascii() else "In English."
        ),
        lambda text: text + "\ufffd.",
        lambda text: "그래서 다시 말합니다. " * 20,
        lambda text: "",
    ],
    ids=["foreign", "language", "broken", "loop", "empty"],
)
@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.slow
def test_every_flaw_moves_the_main_metric(
    spoil: Callable[[str], str], temperature: int, tmp_path: Path
) -> None:
    flawed = MockClient("pruned", habits=Habits())
    answer = flawed.reply

    def reply(request: Request) -> Answer:
        found = answer(request)
        spoiled = request.temperature == temperature and "." in str(request.messages)
        return replace(found, text=spoil(found.text)) if spoiled else found

    flawed.reply = reply
    original = MockClient("original", habits=Habits())
    result = run_suite(SUITE, tmp_path, original, flawed, limit=60)
    report = reported(result)
    assert SUITE.metrics[0] == "sound_all"
    main = metrics_of(report)["sound_all"]
    assert main.original.value == 1
    assert main.effect.high is not None and main.effect.high < -0.1
    assert main.verdict == "worse"


def test_without_chat_it_completes_and_says_so(tmp_path: Path) -> None:
    lacking = MockClient("pruned", habits=Habits(), missing={"chat": "HTTP 400: no chat template"})
    with comparing(tmp_path, MockClient("original", habits=Habits()), lacking, limit=4) as context:
        result = SUITE.run(context)
    assert {request.kind for request in lacking.asked} == {"completion"}
    assert any("no chat template" in note for note in result.notes)
    lacking = MockClient(
        "pruned", habits=Habits(), missing={"chat": "no", "completion": "HTTP 404"}
    )
    with comparing(tmp_path / "2", MockClient("original", habits=Habits()), lacking) as context:
        assert "HTTP 404" in SUITE.run(context).unavailable["*"]


def test_answers_that_failed_are_left_out_on_both_sides(tmp_path: Path) -> None:
    failing = MockClient("pruned", habits=Habits())
    answer = failing.reply
    failing.reply = lambda request: (
        Answer(error="HTTP 500") if "Korean" in str(request.messages) else answer(request)
    )
    with comparing(tmp_path, MockClient("original", habits=Habits()), failing, limit=40) as context:
        result = SUITE.run(context)
    shapes = {one.metric.name: one.original.shape for one in result.measurements}
    assert shapes["lcpr_t0"] == (30, 12) and shapes["sound_all"] == (30, 2)
    assert any("20 of 80 answers failed" in note for note in result.notes)


def test_english_alone_is_judged_by_its_lines(tmp_path: Path) -> None:
    habits = Habits(wrong_language=0.3)
    result = compared(SUITE, tmp_path, Habits(), habits, languages=("en",), limit=20)
    assert {"wpr_t0", "wpr_t1"} == result.unavailable.keys()
    metrics = metrics_of(reported(result))
    assert metrics["lcpr_t0"].better == "higher"
    assert metrics["lcpr_t0"].effect.value == metrics["lpr_t0"].effect.value != 0


@pytest.mark.slow
def test_pass_rates_are_means_over_languages_whatever_the_number_of_their_prompts(
    tmp_path: Path,
) -> None:
    habits = Habits(wrong_language=0.3)
    result = compared(SUITE, tmp_path, Habits(), habits, languages=("ko", "en"))
    metrics = metrics_of(reported(result))

    def pruned(name: str) -> float:
        side = metrics[name].pruned
        assert side is not None and side.value is not None
        return side.value

    counts = Counter(p.language for p in stability_prompts(("ko", "en"), None))
    assert counts["ko"] != counts["en"]
    korean, english = pruned("lcpr_ko_t0"), pruned("lpr_en_t0")
    assert korean != english
    assert pruned("lcpr_t0") == pytest.approx((korean + english) / 2)
    assert pruned("lpr_t0") == pytest.approx((pruned("lpr_ko_t0") + english) / 2)
    assert pruned("wpr_t0") == pruned("wpr_ko_t0")
    assert "lcpr_en_t0" not in metrics


def test_empty_answers_are_no_good_answers(tmp_path: Path) -> None:
    silent = MockClient("pruned", habits=Habits())
    answer = silent.reply
    silent.reply = lambda request: (
        replace(answer(request), text=" \n")
        if "Korean" in str(request.messages)
        else answer(request)
    )
    with comparing(tmp_path, MockClient("original", habits=Habits()), silent, limit=80) as context:
        result = SUITE.run(context)
    metrics = metrics_of(reported(result))
    share = metrics["empty_t0"].effect.value
    assert share is not None and share >= 0.2
    assert metrics["empty_t0"].verdict == "worse"
    assert metrics["judged_t0"].effect.value == pytest.approx(-share)
    assert any(
        f"At T=1 100.0% of the original's answers and {1 - share:.1%}" in n for n in result.notes
    )
    # The other side has no line of the prompts that ask for Korean in English.
    assert "lcpr_t0" not in metrics and "in ko" in result.unavailable["lcpr_t0"]


def test_a_side_that_says_nothing_in_a_language_leaves_no_mean_over_languages(
    tmp_path: Path,
) -> None:
    silent = MockClient("pruned", habits=Habits())
    silent.reply = lambda request: Answer(text="")
    with comparing(tmp_path, MockClient("original", habits=Habits()), silent, limit=20) as context:
        result = SUITE.run(context)
    assert result.unavailable["lcpr_t0"] == "one side has no answer in en with anything to judge"
    assert metrics_of(reported(result))["empty_t0"].verdict == "worse"


def test_answers_all_in_the_wrong_language_are_measured_as_none_that_passed(
    tmp_path: Path,
) -> None:
    result = compared(SUITE, tmp_path, Habits(), Habits(wrong_language=1.0), limit=40)
    lcpr = metrics_of(reported(result))["lcpr_t0"]
    assert lcpr.effect.value == -1
    assert lcpr.verdict == "worse"


@pytest.mark.slow
def test_two_equal_models_that_sample_differ_in_nothing_significant(tmp_path: Path) -> None:
    """Twelve A/A runs of flawed endpoints: at 95 %, with all metrics of a report corrected, one in
    twenty is to be expected; three or more would be once in fifty."""
    found = []
    for seed in range(12):
        sides = (Habits(salt=f"{side}{seed}", wrong_language=0.1, hanja=0.1) for side in ("a", "b"))
        result = compared(SUITE, tmp_path / str(seed), *sides, seed=seed, limit=40)
        metrics = metrics_of(reported(result, seed=seed)).values()
        found += [m.name for m in metrics if m.p_adjusted is not None and m.p_adjusted < 0.05]
    assert len(found) <= 2, found
