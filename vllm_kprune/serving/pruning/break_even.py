"""Measure, when a server starts, from how many tokens on pruning saves time on its engine.

The engine and the ranker are timed on prompts of two lengths; `cost` has the formula. Because of
attention, reading a token takes longer in a longer prompt, so the true break-even is not later than
the measured one.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.compat.prompts import engine_input
from vllm_kprune.serving.pruning.cost import KEEP, NEVER, Line, break_even_tokens
from vllm_kprune.serving.pruning.service import PromptPruning

__all__ = ["BreakEven", "measure_break_even", "settle"]

# A fast scorer "pays" from a few tokens on, where the difference is too small to notice.
_LEAST = 64
_SHORT = 128
_LONGEST = 2048
_ROUNDS = 2
_LONG_SECONDS = 0.6  # what the longer of the two prompts should take to read
_GIVE_UP_SECONDS = 30.0
_TEXT = (
    "the river of stone carried seven letters past Marseille while quantum engineers discussed "
    "vineyards and obsolete parliaments under copper lamps without noticing how quickly violet "
    "evening fell over unfinished bridges"
)


@dataclass(frozen=True)
class BreakEven:
    """`tokens` is None if pruning never pays. `keep` is the share that was assumed."""

    tokens: int | None
    keep: float
    prefill: Line
    ranking: Line

    def as_dict(self) -> dict[str, Any]:
        """The answer of `GET /kprune`, in milliseconds, rounded."""
        return {
            "tokens": self.tokens,
            "keep": self.keep,
            "prefill_ms": _milliseconds(self.prefill),
            "ranking_ms": _milliseconds(self.ranking),
        }


async def settle(engine_client: Any, pruning: PromptPruning) -> BreakEven | None:
    """Measure, and set where `pruning` begins. If that fails, its constant stays."""
    try:
        # Awaited while the server starts, so it must come to an end.
        found = await asyncio.wait_for(measure_break_even(engine_client, pruning), _GIVE_UP_SECONDS)
    except Exception as error:
        logger.warning(
            "kprune: the break-even of input pruning could not be measured (%s: %s), so %d tokens "
            "are assumed; --kprune-min-tokens sets another number",
            type(error).__name__,
            error,
            pruning.min_tokens,
        )
        return None
    if found.tokens is None:
        logger.warning(
            "kprune: input pruning saves no time here: reading a token takes %.3f ms, ranking one "
            "takes %.3f ms. Only requests that give kprune_min_tokens are pruned; "
            "--kprune-min-tokens N prunes all from N tokens on",
            found.prefill.per_token * 1e3,
            found.ranking.per_token * 1e3,
        )
    else:
        logger.info("kprune: input pruning pays from %d tokens on (keep %g)", found.tokens, KEEP)
    pruning.min_tokens = NEVER if found.tokens is None else found.tokens
    return found


async def measure_break_even(engine_client: Any, pruning: PromptPruning) -> BreakEven:
    """Time prompts of two lengths in the engine and the ranker. Takes about two seconds."""
    rows = engine_client.model_config.get_vocab_size()
    longest = min(_LONGEST, engine_client.model_config.max_model_len - 2)
    short = min(_SHORT, longest)

    async def prefill(tokens: int) -> tuple[int, float]:
        ids = random.Random(tokens).choices(range(rows // 4, rows // 2), k=tokens)
        return tokens, await _fastest(lambda: _prefill(engine_client, ids))

    async def rank(tokens: int) -> tuple[int, float]:
        text = " ".join(random.Random(tokens).choices(_TEXT.split(), k=tokens))
        # A word is not a token: the line needs what the target counts. Counted in the worker's
        # thread, where ranking counts too.
        size = await pruning.worker.run(lambda cancelled: pruning.count(text))
        return size, await _fastest(lambda: _rank(pruning, text))

    first = await prefill(short)
    # 128 tokens in 0.1 s: 768 tokens take about 0.6 s. A fast engine gets 2048, a slow one 256.
    long = int(min(longest, max(short * 2, short * _LONG_SECONDS / max(first[1], 1e-6))))
    first_rank = await rank(short)
    prefill_line = Line.through(first, await prefill(long))
    ranking_line = Line.through(first_rank, await rank(long))
    tokens = break_even_tokens(prefill_line, ranking_line)
    return BreakEven(
        None if tokens is None else max(tokens, _LEAST), KEEP, prefill_line, ranking_line
    )


async def _fastest(run: Callable[[], Awaitable[None]]) -> float:
    """The seconds of the fastest of two runs, after a run to warm up."""
    times = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        await run()
        times.append(time.perf_counter() - started)
    # The fastest, because whatever else the machine does can only make a run slower.
    return min(times[1:])


async def _prefill(engine_client: Any, ids: list[int]) -> None:
    from vllm.sampling_params import SamplingParams

    # A salt of its own: with a cached prefix, the second run would read nothing.
    name = f"kprune-{uuid.uuid4().hex}"
    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    async for _ in engine_client.generate(engine_input(ids, salt=name), params, name):
        pass


async def _rank(pruning: PromptPruning, text: str) -> None:
    assert pruning.ranker
    # Not by a `PruneJob`, whose cache would answer the second run.
    pruner, options = pruning.ranker.pruner, PruneOptions(keep=KEEP)
    count, query = pruning.target_count, _TEXT
    await pruning.worker.run(
        lambda cancelled: pruner.prune(text, options, query=query, count=count, cancelled=cancelled)
    )


def _milliseconds(line: Line) -> dict[str, float]:
    return {name: round(seconds * 1e3, 4) for name, seconds in asdict(line).items()}
