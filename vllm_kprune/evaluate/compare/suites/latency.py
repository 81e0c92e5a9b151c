"""Latency and throughput of two endpoints on one noisy machine, or across a network.

The statistics' item is the round: both sides get the same prompts, one side right after the other
(A B, B A, A B, ...), so that drift hits both; a ratio of rounds is a paired one. Requests of a
round run side by side (its concurrency) and are streamed: the client's own clocks give the time to
the first token, the gaps between tokens and the end. Decode speed is the concurrency over the
median gap, as in `decode_speed.py`: no prefill in it, and a moment in which something else had the
cores does not decide. Prompts are new in every round, so that a prefix cache knows none of them.

`vllm bench serve` is not used by default: it needs each side's tokenizer folder and starts for ten
seconds on the very cores that are measured; `bench_serve.py` runs it for those who ask.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from vllm_kprune.evaluate.compare.client import Client
from vllm_kprune.evaluate.compare.endpoint import Answer, Request
from vllm_kprune.evaluate.compare.run import Context
from vllm_kprune.evaluate.compare.values import Floats, Measurement, Metric, SuiteResult
from vllm_kprune.evaluate.decode_speed import SETTLE_SECONDS
from vllm_kprune.evaluate.prompts import PROMPTS

__all__ = ["Latency", "Turn"]

_WARM_UP_TOKENS = 8
_QUANTILES = ("p50", "p95", "p99")


@dataclass(frozen=True)
class Turn:
    """One side's requests of a round: milliseconds of each, tokens, and the wall time of all."""

    seconds: float
    ttft_ms: tuple[float, ...] = ()
    itl_ms: tuple[float, ...] = ()
    e2e_ms: tuple[float, ...] = ()
    tokens: int = 0
    failed: int = 0

    @property
    def decode_rate(self) -> float:
        """Tokens per second that the sequences produce together while they decode."""
        return 1000 * len(self.e2e_ms) / median(self.itl_ms) if self.itl_ms else float("nan")


@dataclass(frozen=True)
class Latency:
    """The suite `latency`."""

    name: str = "latency"
    metrics: tuple[str, ...] = ("decode_ratio*", "throughput*", "ttft_*", "itl_*", "e2e_*")
    help: str = "time to first token, between tokens and in all; throughput; the decode ratio"

    def run(self, context: Context) -> SuiteResult:
        """Measure every concurrency in rounds."""
        measurements: list[Measurement] = []
        unavailable: dict[str, str] = {}
        for number, batch in enumerate(context.options.batches):
            rounds = list(_rounds(context, batch))
            suffix = f"@{batch}" if number else ""
            found, reasons = measure(rounds, batch, suffix)
            measurements += found
            unavailable |= reasons
        return SuiteResult(self.name, tuple(measurements), (), unavailable, tuple(_notes(context)))


def turn_of(answers: Sequence[Answer], seconds: float) -> Turn:
    """What the answers of one side's requests tell; a failed one is counted and not timed."""
    good = [answer for answer in answers if answer.error is None]
    return Turn(
        seconds=seconds,
        ttft_ms=tuple(a.ttft_ms for a in good if a.ttft_ms is not None),
        itl_ms=tuple(gap for a in good for gap in a.itl_ms),
        e2e_ms=tuple(a.e2e_ms for a in good if a.e2e_ms is not None),
        tokens=sum(a.completion_tokens or len(a.itl_ms) + 1 for a in good),
        failed=len(answers) - len(good),
    )


def measure(
    rounds: Sequence[tuple[Turn, Turn]], batch: int, suffix: str
) -> tuple[list[Measurement], dict[str, str]]:
    """All figures of one concurrency; the decode ratio is the first."""
    whole = [(n, turns) for n, turns in enumerate(rounds) if not any(t.failed for t in turns)]
    if not whole:
        return [], {f"decode_ratio{suffix}": "in every round a request failed"}
    items = tuple(f"{batch} at once, round {n + 1}" for n, _ in whole)
    found, reasons = [], {}
    for row in _TABLE:
        name = f"{row.name}{suffix}"
        sides = [_features([row.values(turns[side]) for _, turns in whole]) for side in (0, 1)]
        if any(np.isnan(side).all() for side in sides):
            reasons[name] = "an endpoint did not stream token by token"
            continue
        title = f"{row.title}, {batch} at once"
        metric = Metric(name, title, row.unit, row.better, row.margin, row.aggregate, "ratio")
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
        lambda t: [t.tokens, t.seconds],
    )
    for name, title, values in (
        ("ttft", "time to first token", lambda t: t.ttft_ms),
        ("itl", "time between tokens", lambda t: t.itl_ms),
        ("e2e", "time to the whole answer", lambda t: t.e2e_ms),
    ):
        mean = _sum_and_count(values)
        yield _Row(f"{name}_mean", f"{title}, mean", "ms", "lower", 0.05, "ratio", mean)
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


def _rounds(context: Context, batch: int) -> Iterator[tuple[Turn, Turn]]:
    options, suite = context.options, Latency.name
    count = min(options.latency_rounds, options.limit or options.latency_rounds)
    total, done = count * len(options.batches), options.batches.index(batch) * count
    clients = _clients(context, batch)
    settle = SETTLE_SECONDS if _settles(context) else 0.0
    try:
        warm = False
        for number in range(count):
            key = f"{batch}/{number}"
            kept = context.journal.get(suite, key)
            if kept is None:
                if not warm:
                    _warm_up(context, clients, batch)
                    warm = True
                kept = _round(context, clients, batch, number, settle)
                context.journal.put(suite, key, kept)
            yield _turn(kept[0]), _turn(kept[1])
            context.tell(suite, done + number + 1, total)
    finally:
        for client in clients:
            context.wait(client.close())


def _round(
    context: Context, clients: Sequence[Client], batch: int, number: int, settle: float
) -> list[dict[str, Any]]:
    """Both sides, one right after the other; the next round begins with the one that ended this."""
    turns: list[dict[str, Any]] = [{}, {}]
    requests = _requests(context, batch, number, context.options.latency_tokens)
    for place, side in enumerate((0, 1) if number % 2 == 0 else (1, 0)):
        if settle and (place or not number):
            time.sleep(settle)
        turns[side] = asdict(context.wait(_timed(clients[side], requests)))
    return turns


async def _timed(client: Client, requests: Sequence[Request]) -> Turn:
    started = time.perf_counter()
    answers = await asyncio.gather(*map(client.ask, requests))
    return turn_of(answers, time.perf_counter() - started)


def _requests(context: Context, batch: int, number: int, tokens: int) -> list[Request]:
    """Beginnings to continue, in the languages compared; numbers in front make them new."""
    options = context.options
    draw = random.Random(f"{options.seed}/{batch}/{number}")
    groups = [PROMPTS[code] for code in options.languages if code in PROMPTS] or [*PROMPTS.values()]
    texts = [text for group in zip(*groups, strict=True) for text in group]
    chosen = [texts[(number + n) % len(texts)] for n in range(batch)]
    prompts = [f"{draw.randrange(10**6, 10**7)}. {text}" for text in chosen]
    chat = not all(client.abilities.can("completion") for client in context.clients)
    extra = {"ignore_eos": True} if _is_vllm(context) else {}
    common: dict[str, Any] = {"max_tokens": tokens, "stream": True, "seed": options.seed}
    if chat:
        turns = [({"role": "user", "content": prompt},) for prompt in prompts]
        return [Request("chat", messages=turn, extra=extra, **common) for turn in turns]
    return [Request("completion", prompt=prompt, extra=extra, **common) for prompt in prompts]


def _warm_up(context: Context, clients: Sequence[Client], batch: int) -> None:
    """The first requests of a shape are slower."""
    requests = _requests(context, batch, -1, _WARM_UP_TOKENS)
    for client in clients:
        context.wait(_timed(client, requests))


def _clients(context: Context, batch: int) -> tuple[Client, Client]:
    """Clients that let a whole round through at once, which the run's own need not."""
    made = tuple(Client(endpoint, concurrency=batch) for endpoint in context.endpoints)
    for client, known in zip(made, context.clients, strict=True):
        client.abilities = known.abilities
    return made[0], made[1]


def _is_vllm(context: Context) -> bool:
    """Whether both sides take vLLM's own fields, which prompt log-probabilities are one of."""
    return all(client.abilities.can("prompt_logprobs") for client in context.clients)


def _settles(context: Context) -> bool:
    """Whether a vLLM server that has just been asked would take the other one's cores."""
    one, other = context.endpoints
    return one.is_local and other.is_local and one.root != other.root and _is_vllm(context)


def _turn(value: Mapping[str, Any]) -> Turn:
    """A turn as the journal has it."""
    lists = {name: tuple(value[name]) for name in ("ttft_ms", "itl_ms", "e2e_ms")}
    return Turn(seconds=value["seconds"], tokens=value["tokens"], failed=value["failed"], **lists)


def _notes(context: Context) -> Iterator[str]:
    options = context.options
    count = min(options.latency_rounds, options.limit or options.latency_rounds)
    yield (
        f"{count} rounds of {' and '.join(map(str, options.batches))} requests at once, "
        f"{options.latency_tokens} tokens each, greedy, streamed; in turns (A B, B A, ...)"
    )
    if not _is_vllm(context):
        yield "an endpoint is not vLLM's: answers may end early, and so differ in length"
