"""The options of the input pruner, as vLLM's users give them.

    vllm serve MODEL --plugin kprune --kprune-input-pruner self --kprune-keep 0.8

Those that a request can give too are the defaults of requests; their values are checked where they
become one (`pruning.settings`).
"""

from dataclasses import dataclass, fields
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.layer_config import PRECISIONS
from vllm_kprune.serving.option_fields import flag, option

__all__ = ["AUTO", "MIDDLEWARE", "SELF", "PrunerOptions", "check_pruner_options"]

AUTO = "auto"
SELF = "self"
# What adds the response headers, as vLLM's --middleware names it.
MIDDLEWARE = "vllm_kprune.serving.pruning.headers.PruneHeaders"
_SWITCHES = ("force_digits", "pruner_strict")


@dataclass(frozen=True)
class PrunerOptions:
    """A field is an option: name, default and help together."""

    input_pruner: str | None = option(
        None,
        "MODEL|self",
        "Prune prompts before the model reads them: this model (a folder or a hub id; only its "
        "tokenizer and what the scorer needs of its weights are read), or the served model itself, "
        "ranks the tokens on the CPU. A request asks for it with "
        'vllm_xargs={"kprune_keep": 0.8}; --kprune-keep asks for all. The other options '
        "of the input pruner need this one.",
    )
    keep: float | str | None = option(
        None,
        "SHARE",
        "Share of the tokens to keep where a request names none (0.8); 1 or off: only requests "
        "that ask, and marked spans that name a share, are pruned.",
    )
    scorer: str | None = option(
        None,
        "NAME",
        "How tokens are ranked, unless a request says otherwise: rarity (the default: rare words "
        "stay), question (and what shares words with the question), attention (received in the "
        "first layer, as in the paper) or random.",
    )
    unit: str | None = option(
        None,
        "token|word",
        "What is kept or dropped as a whole, unless a request says otherwise.",
    )
    min_tokens: int | str | None = option(
        None,
        "auto|N",
        "Requests with fewer tokens to prune, marked spans too, are left alone, unless they name "
        "a number themselves. auto: where ranking begins to cost "
        "less than it saves, measured when the server starts with --plugin kprune; 512 without.",
    )
    force_tokens: tuple[str, ...] = option(
        (),
        "TEXT",
        "Texts that are kept wherever they occur, unless a request names its own.",
        nargs="+",
        action="extend",
    )
    force_digits: bool = option(
        False,
        None,
        "Keep every token with a digit, unless a request says otherwise.",
        action="store_const",
        const=True,
    )
    prune_roles: str | tuple[str, ...] | None = option(
        None,
        "user,assistant",
        "Roles whose chat messages before the last user message are pruned; any of user, "
        "assistant, tool, system and developer.",
    )
    pruner_cache: float | None = option(
        None,
        "MIB",
        "Memory for remembering pruned segments, in MiB (64); 0 remembers none.",
        type=float,
    )
    pruner_threads: int | None = option(
        None,
        "N",
        "CPU threads that ranking may use, in each API server; by default half of the CPUs, at "
        "most 4.",
        type=int,
    )
    pruner_strict: bool = option(
        False,
        None,
        "A request whose pruning fails is answered with an error; by default its prompt is sent "
        "unpruned, and the failure counted and logged.",
        action="store_const",
        const=True,
    )
    pruner_window: int | None = option(
        None,
        "N",
        "Rank a token by the attention from tokens at most N away, which makes long segments "
        "cheaper; those of up to N tokens are ranked exactly.",
        type=int,
    )
    pruner_precision: str | None = option(
        None,
        "float32|int8",
        "How the scorer attention multiplies queries with keys: exactly (float32), or of segments "
        "of 512 tokens or more in half the time, with rounding (int8).",
    )


def check_pruner_options(options: PrunerOptions) -> None:
    """Raise `KPruneError` for types and numbers that cannot be, and options without a pruner."""
    ranker = options.input_pruner
    if ranker is not None and not (isinstance(ranker, str) and ranker):
        raise KPruneError(f"{flag('input_pruner')}: expected a model or self, got {ranker!r}")
    for name in _SWITCHES:
        if not isinstance(value := getattr(options, name), bool):
            raise KPruneError(f"{flag(name)}: expected true or false, got {value!r}")
    cache = options.pruner_cache
    if cache is not None and (not _is_number(cache) or not 0 <= cache <= 1 << 20):
        raise KPruneError(f"{flag('pruner_cache')}: expected MiB, 0 or more, got {cache!r}")
    if options.pruner_precision not in (None, *PRECISIONS):
        raise KPruneError(
            f"{flag('pruner_precision')}: expected {' or '.join(PRECISIONS)}, "
            f"got {options.pruner_precision!r}"
        )
    for name in ("pruner_threads", "pruner_window"):
        value = getattr(options, name)
        if value is not None and (not isinstance(value, int) or not _is_number(value) or value < 1):
            raise KPruneError(f"{flag(name)}: expected a number from 1, got {value!r}")
    if ranker is None:
        for field in fields(PrunerOptions):
            if getattr(options, field.name) != field.default:
                raise KPruneError(
                    f"{flag(field.name)} needs --kprune-input-pruner MODEL, or self for the served "
                    "model"
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
