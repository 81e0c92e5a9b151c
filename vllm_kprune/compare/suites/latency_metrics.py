"""The metrics of `latency`, from the timings of rounds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

import numpy as np

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.measurements import Floats, Measurement, Metric

__all__ = ["Turn", "is_whole", "measure", "turn_of"]

_QUANTILES = ("p50", "p95", "p99")
_NAN = float("nan")


@dataclass(frozen=True)
class Turn:
    """The requests of one side in a round: times of each in milliseconds, and of all together.

    `seconds` is the wall time of all requests. `tokens` is None if the endpoint does not report
    them, and `untimed` says why there are no times between tokens. `retries` counts failed
    attempts, and `again` how often the round was repeated because of them.
    """

    seconds: float
    ttft_ms: tuple[float, ...] = ()
    itl_ms: tuple[float, ...] = ()
    e2e_ms: tuple[float, ...] = ()
    tokens: int | None = 0
    failed: int = 0
    untimed: str | None = None
    retries: int = 0
    again: int = 0

    @property
    def decode_rate(self) -> float:
        """Tokens per second that all sequences together produce while they decode.

        Based on the mean gap: a busy server sends several tokens at once, so most gaps are 0. With
        3 sequences and a mean gap of 10 ms, the rate is 3 / 0.01 = 300 tokens per second.
        """
        if not any(self.itl_ms):
            return _NAN
        # Milliseconds. One entry of `e2e_ms` for each sequence that was answered.
        return 1000 * len(self.e2e_ms) / mean(self.itl_ms)


def turn_of(answers: Sequence[Answer], seconds: float) -> Turn:
    """The turn that the answers of one side make up; failed ones are counted but not timed."""
    good = [answer for answer in answers if answer.error is None]
    # One answer whose gaps are unknown is enough: the others would be a selection.
    untimed = next((answer.untimed for answer in good if answer.untimed), None)
    gaps = () if untimed else tuple(gap for a in good for gap in a.itl_ms)
    counts = [_tokens(answer) for answer in good]
    return Turn(
        seconds=seconds,
        ttft_ms=tuple(a.ttft_ms for a in good if a.ttft_ms is not None),
        itl_ms=gaps if any(gaps) else (),  # one burst says nothing about the time per token
        e2e_ms=tuple(a.e2e_ms for a in good if a.e2e_ms is not None),
        tokens=None if None in counts else sum(count or 0 for count in counts),
        failed=len(answers) - len(good),
        untimed=untimed,
        retries=sum(answer.retries for answer in answers),
    )


def _tokens(answer: Answer) -> int | None:
    """The number of tokens as the endpoint counts them, or of its token ids."""
    if answer.completion_tokens is not None:
        return answer.completion_tokens
    return None if answer.ids is None else len(answer.ids)


def is_whole(turns: Sequence[Turn]) -> bool:
    """Whether every request was answered at the first attempt."""
    return not any(turn.failed or turn.retries for turn in turns)


def measure(
    rounds: Sequence[tuple[Turn, Turn]], batch: int, suffix: str
) -> tuple[list[Measurement], dict[str, str]]:
    """All metrics of one concurrency, the decode ratio first, and why any are unavailable."""
    whole = [(n, turns) for n, turns in enumerate(rounds) if is_whole(turns)]
    if not whole:
        return [], {
            f"decode_ratio{suffix}": "in no round were all requests answered at the first attempt"
        }
    items = tuple(f"{batch} at once, round {n + 1}" for n, _ in whole)
    found, reasons = [], {}
    for row in _METRICS:
        name = f"{row.name}{suffix}"
        sides = [_features([row.features(turns[side]) for _, turns in whole]) for side in (0, 1)]
        # No value in any round: this side never reports what the metric needs.
        if any(np.isnan(side).all() for side in sides):
            reasons[name] = row.reason([turn for _, turns in whole for turn in turns])
            continue
        metric = Metric(
            name,
            f"{row.title}, {batch} at once",
            row.unit,
            row.better,
            row.margin,
            row.aggregate,
            "ratio",
            detail=row.aggregate in _QUANTILES,
        )
        found.append(Measurement(metric, items, sides[0], sides[1]))
    return found, reasons


@dataclass(frozen=True)
class _LatencyMetric:
    """A metric: the features that a turn gives, and how they are summed up over rounds."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    margin: float
    aggregate: str
    features: Callable[[Turn], Sequence[float]]

    def reason(self, turns: Sequence[Turn]) -> str:
        """Why a side has no features."""
        if self.name == "throughput":
            return "an endpoint does not report how many tokens its answers have"
        untimed = next((turn.untimed for turn in turns if turn.untimed), None)
        if untimed and self.name.startswith(("decode_", "itl_")):
            return f"an endpoint {untimed}"
        return "an endpoint did not stream token by token"


def _table() -> Iterator[_LatencyMetric]:
    yield _LatencyMetric(
        *("decode_ratio", "decode speed", "tokens/s", "higher", 0.02, "mean"),
        lambda t: [t.decode_rate],
    )
    yield _LatencyMetric(
        *("throughput", "output tokens per second of wall time", "tokens/s", "higher"),
        *(0.02, "ratio"),
        lambda t: [_NAN, _NAN] if t.tokens is None else [t.tokens, t.seconds],
    )
    for name, title, times in (
        ("ttft", "time to first token", lambda t: t.ttft_ms),
        ("itl", "time between tokens", lambda t: t.itl_ms),
        ("e2e", "time to the whole answer", lambda t: t.e2e_ms),
    ):
        average = _sum_and_count(times)
        yield _LatencyMetric(
            f"{name}_mean", f"{title}, mean", "ms", "lower", 0.05, "ratio", average
        )
        for quantile in _QUANTILES:
            # Quantiles are informational: only the mean is judged, once.
            yield _LatencyMetric(
                f"{name}_{quantile}", f"{title}, {quantile}", "ms", "neither", 0.05, quantile, times
            )


def _sum_and_count(times: Callable[[Turn], Sequence[float]]) -> Callable[[Turn], list[float]]:
    def both(turn: Turn) -> list[float]:
        found = times(turn)
        return [sum(found), len(found)] if found else [_NAN, _NAN]

    return both


_METRICS = tuple(_table())


def _features(rows: Sequence[Sequence[float]]) -> Floats:
    """[rounds, features]; shorter rows are padded with NaN."""
    width = max(1, *(len(row) for row in rows))
    filled = [[*row, *[_NAN] * (width - len(row))] for row in rows]
    return np.array(filled, np.float64)
