"""The options of the input pruner that only a server has.

    vllm serve MODEL --plugin kprune --kprune-input-pruner self --kprune-keep 0.8

Those that a request can give as well are declared with it (`prompt.budget`, `prompt.options`).
"""

from dataclasses import dataclass

from vllm_kprune.options import option
from vllm_kprune.prompt.layer_config import Precision

__all__ = ["MIDDLEWARE", "SELF", "PrunerOptions"]

SELF = "self"
# What adds the response headers, as vLLM's --middleware names it.
MIDDLEWARE = "vllm_kprune.serving.pruning.headers.PruneHeaders"


@dataclass(frozen=True, kw_only=True)
class PrunerOptions:
    """The ranker, and what it may use of the machine."""

    input_pruner: str | None = option(
        None,
        "Prune prompts before the model reads them. This model (a folder or a hub id; only its "
        "tokenizer and the weights that the scorer needs are read), or the served model itself, "
        "ranks the tokens on the CPU. A request asks for pruning with "
        'vllm_xargs={"kprune_keep": 0.8}; --kprune-keep asks for all requests.',
        noun="a model or self",
        metavar="MODEL|self",
        forms=["server"],
    )
    pruner_cache: float = option(
        64.0,
        "Memory for remembering pruned segments, in MiB; 0 remembers none.",
        noun="MiB",
        least=0,
        most=1 << 20,
        metavar="MIB",
        forms=["server"],
    )
    pruner_threads: int | None = option(
        None,
        "CPU threads that ranking may use, in each API server.",
        least=1,
        default_text="half of the CPUs, at most 4",
        metavar="N",
        forms=["server"],
    )
    pruner_window: int | None = option(
        None,
        "Rank a token by the attention from tokens at most this far away, which makes long "
        "segments cheaper; shorter segments are ranked exactly.",
        noun="a number of tokens",
        least=1,
        metavar="N",
        forms=["server"],
    )
    pruner_precision: Precision = option(
        "float32",
        "How the scorer attention multiplies queries with keys: exactly (float32), or for segments "
        "of 512 tokens or more in half the time, with rounding (int8).",
        forms=["server"],
    )
    pruner_fixed: bool = option(
        False,
        "Requests cannot choose how they are pruned: one that gives a scorer, a rate or another "
        "option of the pruner, also in a mark, is answered with HTTP 400.",
        forms=["server"],
    )
    pruner_seconds: float = option(
        2.0,
        "A request whose ranking would take longer than this on one CPU core, estimated from its "
        "tokens and its scorer, is sent unpruned.",
        noun="seconds",
        least=0.01,
        most=600,
        metavar="SECONDS",
        forms=["server"],
    )
