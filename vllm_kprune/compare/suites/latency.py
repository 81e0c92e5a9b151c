"""Latency and throughput of two endpoints on one noisy machine, or across a network.

The statistics' item is the round: both sides get the same prompts, one side right after the other
(A B, B A, A B, ...), so that drift hits both; a ratio of rounds is a paired one. Requests of a
round run side by side (its concurrency) and are streamed: the client's own clocks give the time to
the first token, the gaps between tokens and the end. Decode speed is the concurrency over the mean
gap: no prefill in it. Prompts are new in every round, so that a prefix cache knows none of them.
A round in which a request was tried again, of a rate limit or a lost connection, tells of waiting:
it is measured again, and left out if that does not help.

`vllm bench serve` is not used: it needs each side's tokenizer folder, which a hosted endpoint does
not give, and starts for seconds on the very cores that are measured.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

import numpy as np

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.decode_speed import SETTLE_SECONDS
from vllm_kprune.compare.endpoint.messages import Answer, EndpointDied, Request
from vllm_kprune.compare.measurements import Floats, Measurement, Metric, SuiteResult
from vllm_kprune.compare.run import CompareOptions, Context
from vllm_kprune.compare.suites.prompts import PROMPTS

__all__ = ["Latency", "Turn"]

_WARM_UP_TOKENS = 8
_QUANTILES = ("p50", "p95", "p99")
_TRIES = 3  # of a round


@dataclass(frozen=True)
class Turn:
    """One side's requests of a round: milliseconds of each, tokens, and the wall time of all.

    `tokens` is None where the endpoint does not tell; `untimed` says why there are no gaps.
    `retries` counts the attempts that were not answered, `again` how often the round was measured
    anew because of such.
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
        """Tokens per second that the sequences produce together while they decode.

        By the mean gap: a busy server sends several tokens at once, and then most gaps are nothing.
        """
        if not any(self.itl_ms):
            return float("nan")
        return 1000 * len(self.e2e_ms) / mean(self.itl_ms)


@dataclass(frozen=True)
class Latency:
    """The suite `latency`."""

    name: str = "latency"
    metrics: tuple[str, ...] = ("decode_ratio*", "throughput*", "ttft_*", "itl_*", "e2e_*")
    help: str = "time to first token, between tokens and in all; throughput; the decode ratio"

    def run(self, context: Context) -> SuiteResult:
        """Measure every concurrency in rounds."""
        reason = context.missing("stream")
        if reason:
            return SuiteResult(self.name, (), unavailable={"*": reason})
        measurements: list[Measurement] = []
        unavailable: dict[str, str] = {}
        notes = list(_notes(context))
        for number, batch in enumerate(context.options.batches):
            rounds = list(_rounds(context, batch))
            suffix = f"@{batch}" if number else ""
            found, reasons = measure(rounds, batch, suffix)
            measurements += found
            unavailable |= reasons
            notes += _disturbed(rounds, batch)
        return SuiteResult(self.name, tuple(measurements), (), unavailable, tuple(notes))


def turn_of(answers: Sequence[Answer], seconds: float) -> Turn:
    """What the answers of one side's requests tell; a failed one is counted and not timed."""
    good = [answer for answer in answers if answer.error is None]
    untimed = next((answer.untimed for answer in good if answer.untimed), None)
    gaps = () if untimed else tuple(gap for a in good for gap in a.itl_ms)
    counts = [_tokens(answer) for answer in good]
    return Turn(
        seconds=seconds,
        ttft_ms=tuple(a.ttft_ms for a in good if a.ttft_ms is not None),
        itl_ms=gaps if any(gaps) else (),  # everything in one burst tells nothing of tokens
        e2e_ms=tuple(a.e2e_ms for a in good if a.e2e_ms is not None),
        tokens=None if None in counts else sum(count or 0 for count in counts),
        failed=len(answers) - len(good),
        untimed=untimed,
        retries=sum(answer.retries for answer in answers),
    )


def _tokens(answer: Answer) -> int | None:
    """As the endpoint counts them, or by their ids."""
    if answer.completion_tokens is not None:
        return answer.completion_tokens
    return None if answer.ids is None else len(answer.ids)


def measure(
    rounds: Sequence[tuple[Turn, Turn]], batch: int, suffix: str
) -> tuple[list[Measurement], dict[str, str]]:
    """All figures of one concurrency; the decode ratio is the first."""
    whole = [(n, turns) for n, turns in enumerate(rounds) if _is_whole(turns)]
    if not whole:
        return [], {
            f"decode_ratio{suffix}": "no round was answered as a whole, at the first attempt"
        }
    items = tuple(f"{batch} at once, round {n + 1}" for n, _ in whole)
    found, reasons = [], {}
    for row in _TABLE:
        name = f"{row.name}{suffix}"
        sides = [_features([row.values(turns[side]) for _, turns in whole]) for side in (0, 1)]
        if any(np.isnan(side).all() for side in sides):
            reasons[name] = row.reason([turn for _, turns in whole for turn in turns])
            continue
        title = f"{row.title}, {batch} at once"
        detail = row.aggregate in _QUANTILES
        metric = Metric(
            name, title, row.unit, row.better, row.margin, row.aggregate, "ratio", detail
        )
        found.append(Measurement(metric, items, sides[0], sides[1]))
    return found, reasons


@dataclass(frozen=True)
class _Row:
    """A figure: how a turn gives its values, and how statistics sum rounds up."""

    name: str
    title: str
    unit: str
    better: Any
    margin: float
    aggregate: str
    values: Callable[[Turn], Sequence[float]]

    def reason(self, turns: Sequence[Turn]) -> str:
        """Why a side has no values."""
        if self.name == "throughput":
            return "an endpoint does not tell how many tokens its answers have"
        untimed = next((turn.untimed for turn in turns if turn.untimed), None)
        if untimed and self.name.startswith(("decode_", "itl_")):
            return f"an endpoint {untimed}"
        return "an endpoint did not stream token by token"


def _is_whole(turns: Sequence[Turn]) -> bool:
    return not any(turn.failed or turn.retries for turn in turns)


def _table() -> Iterator[_Row]:
    yield _Row(
        "decode_ratio",
        "decode speed",
        "tokens/s",
        "higher",
        0.02,
        "mean",
        lambda t: [t.decode_rate],
    )
    yield _Row(
        "throughput",
        "output tokens per second of wall time",
        "tokens/s",
        "higher",
        0.02,
        "ratio",
        lambda t: [float("nan")] * 2 if t.tokens is None else [t.tokens, t.seconds],
    )
    for name, title, values in (
        ("ttft", "time to first token", lambda t: t.ttft_ms),
        ("itl", "time between tokens", lambda t: t.itl_ms),
        ("e2e", "time to the whole answer", lambda t: t.e2e_ms),
    ):
        average = _sum_and_count(values)
        yield _Row(f"{name}_mean", f"{title}, mean", "ms", "lower", 0.05, "ratio", average)
        for quantile in _QUANTILES:
            # Quantiles are told and drawn; the mean decides, once.
            title_q = f"{title}, {quantile}"
            yield _Row(f"{name}_{quantile}", title_q, "ms", "neither", 0.05, quantile, values)


def _sum_and_count(values: Callable[[Turn], Sequence[float]]) -> Callable[[Turn], list[float]]:
    def both(turn: Turn) -> list[float]:
        found = values(turn)
        return [sum(found), len(found)] if found else [float("nan"), float("nan")]

    return both


_TABLE = tuple(_table())


def _features(rows: Sequence[Sequence[float]]) -> Floats:
    """[rounds, values], short rows filled up with NaN."""
    width = max(1, *(len(row) for row in rows))
    filled = [[*row, *[float("nan")] * (width - len(row))] for row in rows]
    return np.array(filled, np.float64)


def _num_rounds(options: CompareOptions) -> int:
    return min(options.latency_rounds, options.limit or options.latency_rounds)


def _rounds(context: Context, batch: int) -> Iterator[tuple[Turn, Turn]]:
    """The rounds of one concurrency: kept ones, then new ones until a server dies.

    Only whole ones are kept: the next run measures the others again.
    """
    options, suite = context.options, Latency.name
    count = _num_rounds(options)
    total, before = count * len(options.batches), options.batches.index(batch) * count
    with _Rounds.opened(context, batch) as rounds:
        for number in range(count):
            key = f"{batch}/{number}"
            kept = context.journal.get(suite, key)
            if kept is None:
                if context.deaths:
                    return
                try:
                    kept = rounds.measure(number)
                except EndpointDied as error:
                    context.deaths.append(str(error))
                    return
                if _is_whole([_turn(turn) for turn in kept]):
                    context.journal.put(suite, key, kept)
            yield _turn(kept[0]), _turn(kept[1])
            context.tell(suite, before + number + 1, total)


@dataclass
class _Rounds:
    """What measures rounds: clients that let a whole round through at once, which the run's own
    need not; warmed up before the first round."""

    context: Context
    batch: int
    clients: tuple[Client, ...]
    warm: bool = False

    @classmethod
    @contextmanager
    def opened(cls, context: Context, batch: int) -> Iterator["_Rounds"]:
        """With its own connections, which are given back."""
        clients = tuple(client.again(concurrency=batch) for client in context.clients)
        try:
            yield cls(context, batch, clients)
        finally:
            for client in clients:
                context.wait(client.close())

    def measure(self, number: int) -> list[dict[str, Any]]:
        """Both sides, one right after the other; a round begins with the side that ended the one
        before. Once more, with other prompts, if a request was tried again."""
        first = not self.warm
        if first:  # the first requests of a shape are slower
            for side in (0, 1):
                self._turn(side, _requests(self.context, self.batch, -1, _WARM_UP_TOKENS))
            self.warm = True
        for again in range(_TRIES):
            turns = self._both(number, again, settled=not first)
            if not any(turn.retries for turn in turns):
                break
        return [asdict(replace(turn, again=again)) for turn in turns]

    def _both(self, number: int, again: int, *, settled: bool) -> list[Turn]:
        tokens = self.context.options.latency_tokens
        settle = SETTLE_SECONDS if _settles(self.context) else 0.0
        requests = _requests(self.context, self.batch, number, tokens, again)
        turns = {}
        for place, side in enumerate((0, 1) if number % 2 == 0 else (1, 0)):
            if settle and (place or again or not settled):
                time.sleep(settle)
            turns[side] = self._turn(side, requests)
        return [turns[0], turns[1]]

    def _turn(self, side: int, requests: Sequence[Request]) -> Turn:
        async def ask_all() -> tuple[float, list[Answer]]:
            started = time.perf_counter()
            answers = await asyncio.gather(*map(self.clients[side].ask, requests))
            return time.perf_counter() - started, answers

        seconds, answers = self.context.wait(ask_all())
        return turn_of(answers, seconds)


def _requests(
    context: Context, batch: int, number: int, tokens: int, again: int = 0
) -> list[Request]:
    """Beginnings to continue, in the languages compared; numbers in front make them new."""
    options = context.options
    draw = random.Random(f"{options.seed}/{batch}/{number}" + f"/{again}" * bool(again))
    groups = [PROMPTS[code] for code in options.languages if code in PROMPTS] or [*PROMPTS.values()]
    texts = [text for group in zip(*groups, strict=True) for text in group]
    chosen = [texts[(number + n) % len(texts)] for n in range(batch)]
    prompts = [f"{draw.randrange(10**6, 10**7)}. {text}" for text in chosen]
    extra = {"ignore_eos": True} if _is_vllm(context) else {}
    common: dict[str, Any] = {"max_tokens": tokens, "stream": True, "seed": options.seed}
    if context.missing("completion"):
        turns = [({"role": "user", "content": prompt},) for prompt in prompts]
        return [Request("chat", messages=turn, extra=extra, **common) for turn in turns]
    return [Request("completion", prompt=prompt, extra=extra, **common) for prompt in prompts]


def _is_vllm(context: Context) -> bool:
    """Whether both sides take vLLM's own fields, which prompt log-probabilities are one of."""
    return context.missing("prompt_logprobs") is None


def _settles(context: Context) -> bool:
    """Whether a vLLM server that has just been asked would take the other one's cores."""
    one, other = context.endpoints
    return one.is_local and other.is_local and one.root != other.root and _is_vllm(context)


def _turn(value: Mapping[str, Any]) -> Turn:
    """A turn as the journal has it."""
    lists = {name: tuple(value[name]) for name in ("ttft_ms", "itl_ms", "e2e_ms")}
    return Turn(**(dict(value) | lists))


def _disturbed(rounds: Sequence[tuple[Turn, Turn]], batch: int) -> Iterator[str]:
    again = sum(pair[0].again for pair in rounds)
    out = sum(not _is_whole(pair) for pair in rounds)
    if again:
        yield f"{batch} at once: {again} rounds were measured again, as a request was tried again"
    if out:
        whole = f"{out} of {len(rounds)} rounds"
        yield f"{batch} at once: {whole} are left out: a request failed or was tried again"


def _notes(context: Context) -> Iterator[str]:
    options = context.options
    count = _num_rounds(options)
    yield (
        f"{count} rounds of {' and '.join(map(str, options.batches))} requests at once, "
        f"{options.latency_tokens} tokens each, greedy, streamed; in turns (A B, B A, ...)"
    )
    if not _is_vllm(context):
        yield "an endpoint is not vLLM's: answers may end early, and so differ in length"
