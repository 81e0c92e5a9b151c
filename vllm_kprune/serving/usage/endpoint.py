"""`GET /kprune/usage`: how often each token occurs in this server's answers.

It asks for the API key itself, as `POST /kprune/prune` does: the counts tell something about what
users write. On a server of a pruned vocabulary the ids are translated to the original's.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request, Response

from vllm_kprune.arrays import Integers
from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.serving.compat.prompts import accepts_key
from vllm_kprune.serving.counter_files import counter_folder
from vllm_kprune.serving.error_response import error_response
from vllm_kprune.serving.settings import settings_of
from vllm_kprune.serving.usage.counts import released
from vllm_kprune.serving.usage.hooks import tokenizer_file
from vllm_kprune.storage.digest import sha256_file
from vllm_kprune.vocabulary.usage import TokenUsage, make_usage

__all__ = ["UsageView", "answer", "usage_status", "usage_view"]


@dataclass(frozen=True, eq=False)
class UsageView:
    """What of a server's counts is told.

    `ids` has the original's id of each of the first ids that are counted; others are no tokens.
    """

    folder: Path
    rows: int
    floor: int
    tokenizer_sha256: str
    ids: Integers
    vocabulary: int

    def read(self) -> TokenUsage:
        """The usage of now, or as it was at most `floor` requests ago."""
        totals = released(self.folder, self.rows, self.floor)
        occurrences, in_requests = np.zeros((2, self.vocabulary), np.uint64)
        occurrences[self.ids] = totals.occurrences[: len(self.ids)]
        in_requests[self.ids] = totals.in_requests[: len(self.ids)]
        return make_usage(
            occurrences,
            in_requests,
            requests=totals.requests,
            floor=self.floor,
            tokenizer_sha256=self.tokenizer_sha256,
        )


def usage_view(vllm_config: Any) -> UsageView | None:
    """The view of a server that counts; None for others."""
    settings = settings_of(vllm_config).usage if vllm_config else None
    folder = counter_folder()
    if settings is None or not settings.counted or folder is None:
        return None
    config = vllm_config.model_config
    rows = config.get_vocab_size()
    if not is_overlay(config.model):
        digest = sha256_file(tokenizer_file(vllm_config))
        return UsageView(folder, rows, settings.floor, digest, np.arange(rows), rows)
    manifest = load_manifest(Path(config.model))
    return UsageView(
        folder,
        rows,
        settings.floor,
        manifest.base.files["tokenizer.json"].sha256,
        np.array(manifest.kept_rows, np.int64),
        manifest.original_rows,
    )


def usage_status(view: UsageView | None) -> dict[str, Any]:
    """What `GET /kprune` tells of it: whether answers are counted, and which tokens are named."""
    return {"active": False} if view is None else {"active": True, "floor": view.floor}


async def answer(request: Request) -> Response:
    """Answer `GET /kprune/usage`."""
    state = request.app.state
    if not accepts_key(state.args, request.headers):
        return error_response(401, "Unauthorized")
    view: UsageView | None = state.kprune_usage
    if view is None:
        return error_response(
            404, "this server does not count tokens; start it with --kprune-usage"
        )
    # Megabytes are read and added up.
    text = await asyncio.to_thread(lambda: view.read().model_dump_json())
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})
