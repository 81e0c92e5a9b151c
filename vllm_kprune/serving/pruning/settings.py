"""The input pruner's settings: the server's, and what a single request changes.

vllm serve MODEL --kprune-input-pruner self --kprune-keep 0.8
extra_body={"vllm_xargs": {"kprune_keep": 0.6, "kprune_force_digits": 1}}
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.options import make, options_of
from vllm_kprune.prompt.layer_config import Precision
from vllm_kprune.prompt.options import PruneRequest, parse_prune_request, prune_options
from vllm_kprune.serving.options import FLAG_PREFIX, FORM, PREFIX
from vllm_kprune.serving.pruning.options import PrunerOptions
from vllm_kprune.serving.request_options import FORM as REQUEST
from vllm_kprune.serving.request_options import UNFIXED_NAMES, of_pruner

__all__ = [
    "UNMEASURED_MIN_TOKENS",
    "PrunerSettings",
    "RequestOptions",
    "pruner_settings",
    "request_options",
]

# With `--kprune-min-tokens auto` where nothing can be measured: without `--plugin kprune`, offline.
UNMEASURED_MIN_TOKENS = 512
_MOST_DEFAULT_THREADS = 4
_MIN_TOKENS = "min_tokens"


@dataclass(frozen=True)
class PrunerSettings:
    """`ranker` is a folder, a hub id or "self"; `min_tokens` None is to be measured.

    `fixed`: requests cannot choose. `seconds`: about how long ranking one request may take.

    A request with fewer tokens to prune than `min_tokens` is left alone. That counts all of its
    segments together, so the `min_tokens` of each in `default` is 0.
    """

    ranker: str
    default: PruneRequest
    min_tokens: int | None
    cache_bytes: int
    threads: int
    window: int | None
    precision: Precision
    fixed: bool = False
    seconds: float = 2.0


@dataclass(frozen=True)
class RequestOptions:
    """What one request gets. `min_tokens` None: the server's. `off`: not even marked spans.

    `fixed`: marks cannot name a rate.
    """

    request: PruneRequest
    min_tokens: int | None = None
    off: bool = False
    fixed: bool = False


def pruner_settings(values: Mapping[str, Any]) -> PrunerSettings | None:
    """The settings in a server's options; None without a pruner. `KPruneError` for wrong ones."""
    own = {one.name for one in options_of(PrunerOptions)}
    given = {name: value for name, value in values.items() if name in own}
    server = make(PrunerOptions, given, form=FORM, prefix=FLAG_PREFIX)
    if server.input_pruner is None:
        return None
    asked = {one.name_in(FORM) for one in prune_options(FORM)}
    requests = {name: value for name, value in values.items() if name in asked}
    # "auto" is None here, as is an option that was not given.
    default, least = _parsed(requests, PruneRequest(), FORM)
    return PrunerSettings(
        ranker=server.input_pruner,
        default=default,
        min_tokens=least,
        cache_bytes=int(server.pruner_cache * 2**20),
        threads=server.pruner_threads or _default_threads(),
        window=server.pruner_window,
        precision=server.pruner_precision,
        fixed=server.pruner_fixed,
        seconds=server.pruner_seconds,
    )


def request_options(
    settings: PrunerSettings | None, extra_args: Mapping[str, Any] | None
) -> RequestOptions:
    """What a request asks for. Raises `KPruneError` for what it may not ask, or not here."""
    given = of_pruner(extra_args)
    keep = given.get("keep")
    # Looked at before parsing, which turns "off" into 1.0: that still prunes marked spans with a
    # rate.
    off = isinstance(keep, str) and keep.strip().lower() == "off"
    if settings is None:
        # Marks are removed on every server, so it is no mistake to say how they are read.
        harmless = {"marks", "strict", *(["keep"] if off else [])}
        if asked := sorted(given.keys() - harmless):
            raise KPruneError(
                f"vllm_xargs: {PREFIX}{asked[0]}: this server has no input pruner; "
                "it needs --kprune-input-pruner MODEL, or self for the served model"
            )
    fixed = settings is not None and settings.fixed
    if fixed and (asked := sorted(given.keys() - set(UNFIXED_NAMES))):
        raise KPruneError(
            f"vllm_xargs: this server's input pruner is fixed; leave {PREFIX}{asked[0]} out"
        )
    default = settings.default if settings else PruneRequest()
    try:
        request, least = _parsed(given, default, REQUEST)
    except KPruneError as error:
        raise KPruneError(f"vllm_xargs: {error}") from None
    return RequestOptions(request, least, off or settings is None, fixed)


def _parsed(
    given: Mapping[str, Any], default: PruneRequest, form: str
) -> tuple[PruneRequest, int | None]:
    """A request, and apart from it the `min_tokens` of all of its segments; None if not given."""
    prefix = FLAG_PREFIX if form == FORM else PREFIX
    parsed = parse_prune_request(given, default, form=form, prefix=prefix)
    least = parsed.options.min_tokens if _MIN_TOKENS in given else None
    # 0 for each segment, because the bound is for their sum (see `PrunerSettings`).
    return replace(parsed, options=replace(parsed.options, min_tokens=0)), least


def _default_threads() -> int:
    # The CPUs that this process may use: after `taskset`, fewer than the machine has.
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_MOST_DEFAULT_THREADS, (available or 1) // 2))
