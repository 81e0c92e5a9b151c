"""`POST /kprune/prune`: what would be dropped from a prompt, piece by piece. Nothing is generated.

    {"prompt": "…", "keep": 0.8}
    {"messages": […], "documents": […], "keep": 0.8, "prune_roles": "user"}

The options are those of `vllm_xargs` without their prefix. Unlike a request to generate, it prunes
every segment, however short. It asks for the API key itself: vLLM only guards its own paths.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request, Response

from vllm_kprune.errors import KPruneError, nearest, shown
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.cache import SegmentCache
from vllm_kprune.prompt.result import PrunedSegment
from vllm_kprune.prompt.segments import RequestTexts, SplitRequest
from vllm_kprune.serving.compat.prompts import accepts_key
from vllm_kprune.serving.error_response import error_response
from vllm_kprune.serving.options import PREFIX
from vllm_kprune.serving.pruning.service import PromptPruning, split_at_marks
from vllm_kprune.serving.pruning.settings import RequestOptions, request_options
from vllm_kprune.serving.pruning.worker import Busy
from vllm_kprune.serving.request_options import PRUNE_NAMES
from vllm_kprune.storage.bounded import Limits, Unfit, parse_json

__all__ = ["Preview", "preview", "read_body"]

_BODY = Limits(bytes=1 << 20, values=50_000, depth=32)
_MOST_TOKENS = 1 << 15
_TEXTS = ("prompt", "messages", "documents")
_OPTIONS = tuple(name for name in PRUNE_NAMES if name not in ("strict", "min_tokens"))


async def preview(request: Request) -> Response:
    """Answer `POST /kprune/prune`."""
    # Before the body is read, which may be long.
    if not accepts_key(request.app.state.args, request.headers):
        return error_response(401, "Unauthorized")
    pruning: PromptPruning | None = request.app.state.kprune_pruning
    if pruning is None or pruning.settings is None:
        return error_response(
            400, "this server has no input pruner; start it with --kprune-input-pruner"
        )
    try:
        split, asked = read_body(pruning, await _read(request))
        answer = await pruning.worker.run(
            lambda cancelled: Preview(pruning, asked)(split, cancelled),
            pruning.job([split], asked).expected_seconds,
        )
    except KPruneError as error:
        return error_response(400, str(error))
    except Busy as error:
        return error_response(503, str(error))
    return Response(answer, media_type="application/json")


async def _read(request: Request) -> Any:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        # Counted as it arrives: a `Content-Length` may be absent or wrong.
        if len(body) > _BODY.bytes:
            raise KPruneError(f"the body has more than {_BODY.bytes} bytes; send a shorter text")
    try:
        return parse_json(bytes(body), _BODY)
    except Unfit as error:
        raise KPruneError(
            f"the body is not JSON: {error}; expected an object such as "
            '{"prompt": "…", "keep": 0.8}'
        ) from None


def read_body(pruning: PromptPruning, body: Any) -> tuple[SplitRequest, RequestOptions]:
    """The texts and options in a request's body. Raises `KPruneError` if it has mistakes."""
    if not isinstance(body, Mapping):
        raise KPruneError('expected a JSON object, such as {"prompt": "…", "keep": 0.8}')
    # So options can be copied from `vllm_xargs` as they are.
    given = {str(key).removeprefix(PREFIX): value for key, value in body.items()}
    for name in given:
        if name not in (*_TEXTS, *_OPTIONS):
            raise KPruneError(f"unknown {shown(name)}; {nearest(name[:64], (*_TEXTS, *_OPTIONS))}")
    texts = _texts(given)
    options = {PREFIX + name: given[name] for name in _OPTIONS if name in given}
    asked = request_options(pruning.settings, options)
    [split] = split_at_marks([texts], asked)
    if asked.off or (asked.request.options.does_nothing and not split.marked):
        raise KPruneError("nothing to show: give keep, a share below 1 (0.8), or target_tokens")
    return split, asked


def _texts(given: Mapping[str, Any]) -> RequestTexts:
    if ("prompt" in given) == ("messages" in given):
        raise KPruneError("give either prompt, a text, or messages, a list")
    if "prompt" in given:
        if not isinstance(given["prompt"], str) or "documents" in given:
            raise KPruneError("prompt: expected one text; documents go with messages")
        return RequestTexts(prompt=given["prompt"])
    for name in ("messages", "documents"):
        parts = given.get(name, [])
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise KPruneError(f"{name}: expected a list of objects")
    return RequestTexts(given["messages"], given.get("documents"))


@dataclass
class Preview:
    """Prunes as a request would, and records every piece."""

    pruning: PromptPruning
    asked: RequestOptions
    _segments: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, split: SplitRequest, cancelled: Callable[[], bool]) -> bytes:
        """The answer as JSON. Writing a long one takes a while, so it is done in the thread too."""
        job = self.pruning.job([split], replace(self.asked, min_tokens=0))
        # The answer has an entry for each piece, so its limit is lower than that of a prompt.
        job.max_tokens = min(job.max_tokens, _MOST_TOKENS)
        assert self.pruning.settings
        # Nothing is taken from the cache here, so everything counts.
        job.most_seconds, job.cache = self.pruning.settings.seconds, SegmentCache(0)
        if reason := job.unfit():
            most = f"more than {job.max_tokens} tokens to prune"
            if reason == "too_costly":
                most = f"ranking would take more than {job.most_seconds:g} s with this scorer"
            raise KPruneError(f"{most}; send a shorter text")

        def record(text: str, options: PruneOptions, query: str | None) -> str:
            pruned = job.prune(text, options, query, cancelled)
            self._segments.append(_described(pruned, options))
            return pruned.text

        (texts,) = job.walk(record)
        return self._answer(texts)

    def _answer(self, texts: RequestTexts) -> bytes:
        found = {name: value for name in _TEXTS if (value := getattr(texts, name)) is not None}
        before, after = (
            sum(segment["tokens"][name] for segment in self._segments)
            for name in ("original", "kept")
        )
        answer = {
            **found,
            "ranker": self.pruning.ranker.name if self.pruning.ranker else None,
            "tokens": {"original": before, "kept": after},
            "segments": self._segments,
        }
        return json.dumps(answer, ensure_ascii=False).encode()


def _described(pruned: PrunedSegment, options: PruneOptions) -> dict[str, Any]:
    return {
        "text": pruned.original,
        "kept": pruned.text,
        "keep": options.keep if options.target_tokens is None else None,
        "target_tokens": options.target_tokens,
        "tokens": {"original": pruned.tokens_before, "kept": pruned.tokens_after},
        "left_whole": pruned.layout,
        "pieces": _pieces(pruned),
    }


def _pieces(pruned: PrunedSegment) -> list[dict[str, Any]]:
    scores = pruned.piece_scores
    shown_scores: Sequence[float | None] = (
        [None] * len(pruned.piece_kept)
        if scores is None
        else [round(s, 6) for s in scores.tolist()]
    )
    columns = zip(
        pruned.pieces.starts.tolist(),
        pruned.pieces.ends.tolist(),
        shown_scores,
        pruned.piece_kept.tolist(),
        pruned.piece_forced.tolist(),
        strict=True,
    )
    names = ("start", "end", "score", "kept", "forced")
    return [dict(zip(names, row, strict=True)) for row in columns]
