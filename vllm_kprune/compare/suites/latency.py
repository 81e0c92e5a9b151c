"""Latency and throughput of two endpoints, on one noisy machine or across a network.

The statistical item is the round. In a round, both sides get the same prompts, one side right after
the other (A B, B A, A B, ...), so that drift affects both and the ratio of a round is a paired one.
The requests of a round run concurrently and are streamed. The client's own clock measures the time
to the first token, the gaps between tokens, and the total time. Decode speed is the concurrency
divided by the mean gap, so it does not include the prefill. Every round has new prompts, which no
prefix cache contains. A round in which a request was retried, because of a rate limit or a lost
connection, measured waiting: it is repeated, and left out if that does not help.

`vllm bench serve` is not used: it needs the tokenizer folder of each side, which a hosted endpoint
does not provide, and it computes for seconds on the very cores that are measured.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import Answer, EndpointDied, Request
from vllm_kprune.compare.measurements import Measurement, SuiteResult
from vllm_kprune.compare.options import MEASURED, CommonOptions
from vllm_kprune.compare.run import Amount, Context, Suite
from vllm_kprune.compare.suites.latency_metrics import Turn, is_whole, measure, turn_of
from vllm_kprune.compare.suites.prompts import PROMPTS
from vllm_kprune.options import option

__all__ = ["Latency"]

# For about a second after its last request, a vLLM server busy-waits for more, on cores that the
# other server's threads need.
SETTLE_SECONDS = 1.2
_WARM_UP_TOKENS = 8
_TRIES = 3  # of a round


@dataclass(frozen=True)
class Latency(Suite):
    """The suite `latency`."""

    @dataclass(frozen=True)
    class Options:
        """Its own options."""

        batches: tuple[int, ...] = option(
            (1, 8),
            "latency: number of concurrent requests, that of the main metric first; repeat for "
            "several.",
            flags=("--batch",),
            least=1,
            most=256,
            least_items=1,
            group=MEASURED,
        )
        rounds: int = option(10, "latency: rounds of each batch.", least=1, group=MEASURED)
        tokens: int = option(
            24,
            "latency: tokens of an answer.",
            flags=("--latency-tokens",),
            least=2,
            group=MEASURED,
        )

    options: Options = Options()
    name = "latency"
    more = "--rounds"
    metrics = ("decode_ratio*", "throughput*", "ttft_*", "itl_*", "e2e_*")
    help = "time to first token, between tokens and in total; throughput; the decode ratio"

    def amount(self, common: CommonOptions) -> Amount:
        """Rounds of each batch."""
        rounds = min(self.options.rounds, common.limit or self.options.rounds)
        return Amount(
            rounds,
            rounds * sum(self.options.batches),
            self.options.tokens,
            alone=rounds * self.options.batches.count(1),
            pause_seconds=rounds * len(self.options.batches) * SETTLE_SECONDS,
        )

    def run(self, context: Context) -> SuiteResult:
        """Measure every concurrency in rounds."""
        reason = context.missing("stream")
        if reason:
            return SuiteResult(self.name, (), unavailable={"*": reason})
        measurements: list[Measurement] = []
        unavailable: dict[str, str] = {}
        count = min(self.options.rounds, context.options.limit or self.options.rounds)
        notes = list(_notes(context, self.options, count))
        for number, batch in enumerate(self.options.batches):
            rounds = list(self._rounds(context, number, count))
            found, reasons = measure(rounds, batch, f"@{batch}" if number else "")
            measurements += found
            unavailable |= reasons
            notes += _disturbed(rounds, batch)
        return SuiteResult(self.name, tuple(measurements), (), unavailable, tuple(notes))

    def _rounds(self, context: Context, number: int, count: int) -> Iterator[tuple[Turn, Turn]]:
        """The rounds of one concurrency: kept ones, then new ones until a server dies.

        Only complete rounds are kept: the next run measures the others again.
        """
        batches = self.options.batches
        with _Rounds.opened(context, batches[number], self.options.tokens) as rounds:
            for n in range(count):
                key = f"{context.pair_key}{batches[number]}/{n}"
                kept = context.journal.get(self.name, key)
                if kept is None and context.recorded:
                    continue
                if kept is None:
                    if context.dead_endpoints:
                        return
                    try:
                        kept = rounds.measure(n)
                    except EndpointDied as error:
                        context.dead_endpoints.append(str(error))
                        return
                    if is_whole([_turn(turn) for turn in kept]):
                        context.journal.put(self.name, key, kept)
                yield _turn(kept[0]), _turn(kept[1])
                context.progress(self.name, number * count + n + 1, count * len(batches))


@dataclass
class _Rounds:
    """Measures rounds, with clients of its own that send a whole round at once.

    The clients of the run may allow fewer requests at a time. The servers are warmed up before the
    first round.
    """

    context: Context
    batch: int
    tokens: int
    clients: tuple[Client, ...]
    warm: bool = False

    @classmethod
    @contextmanager
    def opened(cls, context: Context, batch: int, tokens: int) -> Iterator["_Rounds"]:
        """With its own connections, which are closed at the end."""
        clients = tuple(client.again(concurrency=batch) for client in context.clients)
        try:
            yield cls(context, batch, tokens, clients)
        finally:
            for client in clients:
                context.wait(client.close())

    def measure(self, number: int) -> list[dict[str, Any]]:
        """Both sides, one right after the other.

        A round begins with the side that ended the one before. If a request was retried, the round
        is repeated with other prompts.
        """
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
        settle = SETTLE_SECONDS if _must_settle(self.context) else 0.0
        requests = _requests(self.context, self.batch, number, self.tokens, again)
        turns = {}
        # A B, B A, A B: the side that ended a round begins the next one, so drift hits both.
        for place, side in enumerate((0, 1) if number % 2 == 0 else (1, 0)):
            # The first side of a round also ended the round before, so the other server is idle
            # already, except after the warm-up and in a repeated round.
            if settle and (place or again or not settled):
                # Blocking is right: no request is in flight.
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
    """Beginnings of texts in the compared languages; a number in front makes each one new."""
    options = context.options
    draw = random.Random(f"{options.seed}/{batch}/{number}" + f"/{again}" * bool(again))
    groups = [PROMPTS[code] for code in options.languages if code in PROMPTS] or [*PROMPTS.values()]
    # Alternates the languages: ko, en, ko, en, ...
    texts = [text for group in zip(*groups, strict=True) for text in group]
    chosen = [texts[(number + n) % len(texts)] for n in range(batch)]
    prompts = [f"{draw.randrange(10**6, 10**7)}. {text}" for text in chosen]
    # Both sides must write the same number of tokens, or the total times compare lengths.
    extra = {"ignore_eos": True} if _is_vllm(context) else {}
    common: dict[str, Any] = {"max_tokens": tokens, "stream": True, "seed": options.seed}
    if context.missing("completion"):
        turns = [({"role": "user", "content": prompt},) for prompt in prompts]
        return [Request("chat", messages=turn, extra=extra, **common) for turn in turns]
    return [Request("completion", prompt=prompt, extra=extra, **common) for prompt in prompts]


def _is_vllm(context: Context) -> bool:
    """Whether both sides support vLLM's own fields, such as prompt log-probabilities."""
    return context.missing("prompt_logprobs") is None


def _must_settle(context: Context) -> bool:
    """Whether a vLLM server that was just asked would still occupy the other one's cores."""
    one, other = context.endpoints
    return one.is_local and other.is_local and one.root != other.root and _is_vllm(context)


def _turn(value: Mapping[str, Any]) -> Turn:
    """A turn from the journal."""
    lists = {name: tuple(value[name]) for name in ("ttft_ms", "itl_ms", "e2e_ms")}
    return Turn(**(dict(value) | lists))


def _disturbed(rounds: Sequence[tuple[Turn, Turn]], batch: int) -> Iterator[str]:
    again = sum(pair[0].again for pair in rounds)
    out = sum(not is_whole(pair) for pair in rounds)
    if again:
        yield f"{batch} at once: {again} rounds were repeated because a request was retried"
    if out:
        whole = f"{out} of {len(rounds)} rounds"
        yield f"{batch} at once: {whole} are left out: a request failed or was retried"


def _notes(context: Context, options: Latency.Options, count: int) -> Iterator[str]:
    yield (
        f"{count} rounds of {' and '.join(map(str, options.batches))} concurrent requests, "
        f"{options.tokens} tokens each, greedy, streamed; the sides alternate (A B, B A, ...)"
    )
    if not _is_vllm(context):
        yield "an endpoint is not a vLLM server: answers may end early and differ in length"
