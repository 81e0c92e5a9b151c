"""The input pruner's settings: the server's, and what a single request makes of them.

vllm serve MODEL --kprune-input-pruner self --kprune-keep 0.8
extra_body={"vllm_xargs": {"kprune_keep": 0.6, "kprune_force_digits": 1}}
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.layer_config import Precision
from vllm_kprune.prompt.options import OFF, PruneRequest, parse_prune_request
from vllm_kprune.serving.options import PREFIX, read_options
from vllm_kprune.serving.pruning.options import AUTO, PrunerOptions
from vllm_kprune.serving.request_options import of_pruner

__all__ = ["UNMEASURED_MIN_TOKENS", "PrunerSettings", "Wish", "pruner_settings", "wish_of"]

# With `--kprune-min-tokens auto` where nothing can be measured: without `--plugin kprune`, offline.
UNMEASURED_MIN_TOKENS = 512
_DEFAULT_CACHE_MIB = 64
_MOST_DEFAULT_THREADS = 4


@dataclass(frozen=True)
class PrunerSettings:
    """`ranker` is a folder, a hub id or "self"; `min_tokens` None is to be measured.

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


@dataclass(frozen=True)
class Wish:
    """What one request gets. `min_tokens` None: the server's. `off`: not even marked spans."""

    request: PruneRequest
    min_tokens: int | None = None
    off: bool = False


def pruner_settings(additional_config: Any) -> PrunerSettings | None:
    """The settings in `additional_config["kprune"]`; None without a pruner.

    Raises `KPruneError` for wrong ones, named as on the command line.
    """
    options = read_options(additional_config)
    if options.input_pruner is None:
        return None
    given = _given(options)
    least = given.pop("min_tokens", AUTO)
    try:
        if least != AUTO:
            least = parse_prune_request({"min_tokens": least}).options.min_tokens
        default = parse_prune_request(given)
    except KPruneError as error:
        raise KPruneError(f"--kprune-* options of the input pruner: {error}") from None
    mib = _DEFAULT_CACHE_MIB if options.pruner_cache is None else options.pruner_cache
    return PrunerSettings(
        ranker=options.input_pruner,
        default=default,
        min_tokens=None if least == AUTO else least,
        cache_bytes=int(mib * 2**20),
        threads=options.pruner_threads or _default_threads(),
        window=options.pruner_window,
        precision="int8" if options.pruner_precision == "int8" else "float32",
    )


def wish_of(settings: PrunerSettings | None, extra_args: Mapping[str, Any] | None) -> Wish:
    """What a request asks for. `KPruneError` for what it may not ask, or not here."""
    given = of_pruner(extra_args)
    keep = given.get("keep")
    off = isinstance(keep, str) and keep.strip().lower() == OFF
    if settings is None:
        # Marks are taken away on every server, so to ask how they are read is no mistake.
        harmless = {"marks", "strict", *(["keep"] if off else [])}
        if asked := sorted(given.keys() - harmless):
            raise KPruneError(
                f"vllm_xargs: {PREFIX}{asked[0]}: this server has no input pruner; "
                "it needs --kprune-input-pruner MODEL, or self for the served model"
            )
        return Wish(_parsed(given, PruneRequest()), off=True)
    least = given.pop("min_tokens", None)
    request = _parsed(given, settings.default)
    if least is not None:
        least = _parsed({"min_tokens": least}, PruneRequest()).options.min_tokens
    return Wish(request, least, off)


def _parsed(given: Mapping[str, Any], default: PruneRequest) -> PruneRequest:
    try:
        return parse_prune_request(given, default)
    except KPruneError as error:
        raise KPruneError(f"vllm_xargs, {PREFIX}*: {error}") from None


def _given(options: PrunerOptions) -> dict[str, Any]:
    """The server's defaults by the names of a request's options."""
    values = {
        "keep": options.keep,
        "scorer": options.scorer,
        "unit": options.unit,
        "min_tokens": options.min_tokens,
        "force_tokens": options.force_tokens or None,
        "force_digits": options.force_digits or None,
        "roles": options.prune_roles,
        "strict": options.pruner_strict or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _default_threads() -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_MOST_DEFAULT_THREADS, (available or 1) // 2))
