"""A whole comparison of invented results: every suite, Korean and English, made from a seed."""

from collections.abc import Iterator

import numpy as np

from support.synthetic_measurements import Floats, latencies, measured, paired_shares, passes
from vllm_kprune.compare.measurements import Example, Measurement, Metric, Span, SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import EndpointReport, MetricReport, Report

ENDPOINTS = (
    EndpointReport(
        name="original",
        url="http://localhost:8000/v1",
        model="Qwen2.5-Coder-1.5B-Instruct",
        description={"vllm": "0.32.0", "vocabulary": "151,936 tokens"},
    ),
    EndpointReport(
        name="pruned",
        url="http://localhost:8001/v1",
        model="Qwen2.5-Coder-1.5B-Instruct-EnKo",
        description={"vllm": "0.32.0", "profile": "enko", "vocabulary": "68,214 tokens"},
    ),
)
SETTINGS = {"limit": 400, "concurrency": 4, "languages": ["ko", "en"], "max_tokens": 256}


def synthetic_report(seed: int = 1, resamples: int = 2000) -> Report:
    """What `kprune compare` could have found."""
    return build_report(
        synthetic_results(seed),
        endpoints=ENDPOINTS,
        settings=SETTINGS,
        versions={"python": "3.12.11", "openai": "2.25.0", "sacrebleu": "2.5.1"},
        seed=seed,
        resamples=resamples,
    )


def reported(*results: SuiteResult, seed: int = 0) -> Report:
    """The report of these results alone."""
    return build_report(results, endpoints=[], settings={}, versions={}, seed=seed, resamples=1000)


def metrics_of(report: Report) -> dict[str, MetricReport]:
    """All metrics of a report by name."""
    return {metric.name: metric for suite in report.suites for metric in suite.metrics}


def synthetic_results(seed: int = 1) -> tuple[SuiteResult, ...]:
    rng = np.random.default_rng(seed)
    makers = (_stability, _translation, _accuracy, _exactness, _latency, _memory, _input)
    return tuple(make(rng) for make in makers)


def _stability(rng: np.random.Generator) -> SuiteResult:
    measurements = []
    for temperature in (0, 1):
        before, after = (passes(rng, 240, 4, share) for share in (0.93, 0.985))
        words = [passes(rng, 240, 4, share) for share in (0.95, 0.99)]
        both = np.hstack([before, words[0]]), np.hstack([after, words[1]])
        title = f"LCPR, T = {temperature}"
        lcpr = Metric(f"lcpr@{temperature}", title, "share", "higher", 0.01, "harmonic")
        lpr = Metric(
            f"lpr@{temperature}", f"LPR, T = {temperature}", "share", "higher", 0.01, "ratio"
        )
        measurements += [measured(lcpr, *both), measured(lpr, before, after)]
    for language in ("en", "ko"):
        for temperature in (0, 1):
            title = f"LPR ({language}, T = {temperature})"
            name = f"lpr_{language}_t{temperature}"
            own = Metric(name, title, "share", "neither", 0.01, "ratio", detail=True)
            measurements.append(measured(own, passes(rng, 120, 4, 0.9), passes(rng, 120, 4, 0.9)))
    leaks = Metric("foreign", "Answers with a foreign character", "share", "lower", 0.005)
    leaked = (rng.random(240) < 0.06).astype(float)
    measurements.append(measured(leaks, leaked, np.zeros(240)))
    loops = Metric("loops", "Answers that repeat themselves", "share", "lower", 0.01)
    measurements.append(measured(loops, *paired_shares(rng, 240, 0.03, alike=0.95)))
    return SuiteResult(
        "stability",
        tuple(measurements),
        tuple(_stability_examples()),
        {"benchmark": "no CSV file of the language confusion benchmark was given"},
        ("240 prompts of our own, four samples each at T = 1.",),
    )


_LEAKS = (
    (
        "서울의 대표적인 궁궐 세 곳을 소개해 주세요.",
        "경복궁은 朝鮮의 법궁이며, 창덕궁과 창경궁이 있습니다.",
    ),
    (
        "김치찌개를 끓이는 방법을 알려 줘.",
        "먼저 김치를 볶고, 물을 부은 다음 煮 오래 끓입니다. 🍲 끝!",
    ),
    (
        "환경 보호가 왜 중요한지 설명해 주세요.",
        "환경은 우리 삶의 기반이며, 生態系가 무너지면 人間도 위험합니다.",
    ),
)


def _stability_examples() -> Iterator[Example]:
    for number in range(30):
        prompt, original = _LEAKS[number % 3]
        pruned = "".join(c for c in original if not _is_han(c))
        spans = tuple(
            Span(at, at + 1, "Han character in a Korean answer")
            for at, c in enumerate(original)
            if _is_han(c)
        )
        labels = {"language": "ko", "temperature": str(number % 2), "verdict": "different"}
        item = f"ko-{number:03d}"
        yield Example(item, prompt, (original, pruned), labels, (spans, ()))
    for number in range(12):
        answer = "The committee meets every second Tuesday; minutes are published within a week."
        labels = {"language": "en", "temperature": "0", "verdict": "identical"}
        prompt = "When does the committee meet, and where can I read what was decided?"
        yield Example(f"en-{number:03d}", prompt, (answer, answer), labels)


def _is_han(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


def _translation(rng: np.random.Generator) -> SuiteResult:
    def corpus(columns: int, share: float) -> Floats:
        length = rng.integers(12, 40, 180).astype(float)
        rows = [length, length]
        if columns == 10:
            totals = [np.maximum(length - order, 1) for order in range(4)]
            hits = [np.round(t * share**order) for order, t in enumerate(totals, start=1)]
            return np.column_stack([*rows, *hits, *totals])
        triples = [[length * 4, length * 4, np.round(length * 4 * share)] for _ in range(8)]
        return np.column_stack([column for triple in triples for column in triple])

    found = []
    for direction in ("en→ko", "ko→en"):
        for name, columns in (("chrf", 24), ("bleu", 10)):
            first = corpus(columns, 0.6)
            second = first.copy()
            changed = rng.choice(180, 30, replace=False)
            second[changed] = corpus(columns, 0.6)[changed]
            title = f"{'chrF++' if name == 'chrf' else 'BLEU'}, {direction}"
            metric = Metric(f"{name}@{direction}", title, "points", "higher", 0.5, name)
            found.append(measured(metric, first, second))
    examples = tuple(
        Example(
            f"en-ko-{number:02d}",
            "The museum is closed on Mondays.",
            ("박물관은 월요일에 문을 닫습니다.", "박물관은 월요일에 휴관합니다."),
            {"language": "en-ko", "verdict": "different"},
            reference="그 박물관은 월요일마다 휴관한다.",
        )
        for number in range(5)
    )
    missing = {"comet": "unbabel-comet is not installed: pip install unbabel-comet"}
    # As sacrebleu signs: long, and without a space to break at.
    signature = "nrefs:1|case:mixed|eff:no|tok:char|smooth:exp|version:2.6.0"
    return SuiteResult(
        "translation", tuple(found), examples, missing, notes=(f"en-ko: {signature}",)
    )


def _accuracy(rng: np.random.Generator) -> SuiteResult:
    tasks = (("kobest", 0.0), ("haerae", 0.0), ("click", 0.08), ("arc_easy", 0.0), ("ifeval", 0.0))
    found = []
    for name, worse in tasks:
        metric = Metric(name, name.replace("_", " "), "share", "higher", 0.02)
        items = 400 if name != "ifeval" else 60
        found.append(measured(metric, *paired_shares(rng, items, 0.55, worse, alike=0.96)))
    return SuiteResult(
        "accuracy", tuple(found), (), {"kmmlu": "the data set is not on this machine"}
    )


def _exactness(rng: np.random.Generator) -> SuiteResult:
    same = Metric("identical", "Greedy answers that are identical", "share", "neither", 0.0)
    tie = Metric("tie", "… that part at a numerical tie", "share", "neither", 0.0)
    flags = (rng.random(200) < 0.94).astype(float)
    found = (
        measured(same, flags, None),
        measured(tie, (1 - flags) * (rng.random(200) < 0.8), None),
    )
    missing = {"prompt_logprobs": "the original endpoint gives no prompt log-probabilities"}
    return SuiteResult("exactness", found, (), missing)


def _latency(rng: np.random.Generator) -> SuiteResult:
    found: list[Measurement] = []
    speed = Metric("decode_ratio", "Decode speed", "tokens/s", "higher", 0.02, "mean", "ratio")
    slow, fast = latencies(rng, 96, 1 / 1.42)
    found.append(measured(speed, 30_000 / slow, 30_000 / fast))
    for name, title, scale in (("ttft", "Time to first token", 0.2), ("e2e", "End to end", 4.0)):
        first, second = latencies(rng, 96, 0.97 if name == "ttft" else 0.71)
        for aggregate, words in (
            ("mean", "mean"),
            ("p50", "median"),
            ("p95", "p95"),
            ("p99", "p99"),
        ):
            metric = Metric(
                f"{name}_{aggregate}", f"{title}, {words}", "ms", "lower", 0.02, aggregate, "ratio"
            )
            found.append(measured(metric, first * scale, second * scale))
    return SuiteResult(
        "latency", tuple(found), notes=("Concurrency 4, 96 requests of 128 tokens.",)
    )


def _memory(rng: np.random.Generator) -> SuiteResult:
    weights = Metric("weights", "Weights, loaded", "bytes", "lower", 0.01, "exact", "ratio")
    disk = Metric("disk", "Weights on disk", "bytes", "lower", 0.01, "exact", "ratio")
    room = Metric("kv_tokens", "Room in the KV cache", "tokens", "higher", 0.01, "exact", "ratio")
    found = (
        measured(weights, [3.087e9], [2.573e9]),
        measured(disk, [3.087e9], [2.573e9]),
        measured(room, [182_400], [201_312]),
    )
    return SuiteResult("memory", found, (), {"gpu": "no GPU: device memory was not read"})


def _input(rng: np.random.Generator) -> SuiteResult:
    found = []
    for keep in (0.9, 0.8, 0.6, 0.4):
        saved = Metric(f"saved@{keep}", f"Prompt tokens saved, keep {keep}", "share", "neither", 0)
        quality = Metric(f"quality@{keep}", f"Right answers, keep {keep}", "share", "higher", 0.02)
        found.append(
            measured(quality, *paired_shares(rng, 150, 0.7, 0.25 * (1 - keep) ** 2, alike=0.95))
        )
        found.append(measured(saved, np.clip(rng.normal(1 - keep, 0.03, 150), 0, 1), None))
    return SuiteResult("input", tuple(found))
