"""Which features of kprune a server or an `LLM` asked for: those that it must not start without."""

import os
from typing import Any, Literal

from vllm_kprune.checkpoint.manifest import is_overlay
from vllm_kprune.serving.compat import features
from vllm_kprune.serving.compat.installer import require
from vllm_kprune.serving.compat.seam import Feature
from vllm_kprune.serving.compat.version import check_version
from vllm_kprune.serving.options import NAMED, read_options

__all__ = ["asked_features", "require_asked"]

FrontEnd = Literal["server", "offline"]


def require_asked(
    model: str, additional_config: Any, *, lora: bool = False, front_end: FrontEnd | None = None
) -> None:
    """Raise `KPruneError` if this vLLM cannot give what was asked for; nothing without kprune."""
    options = read_options(additional_config)
    if options.given or is_overlay(model):
        check_version()
    require(asked_features(model, additional_config, lora=lora, front_end=front_end))


def asked_features(
    model: str, additional_config: Any, *, lora: bool = False, front_end: FrontEnd | None = None
) -> list[Feature]:
    """The features that a model and its options ask for; none without kprune.

    `front_end` None: unknown, and features of a particular one are left out. `--plugin kprune` lets
    requests ask for more, and it is for `attach` to answer them where that is not possible.
    """
    options = read_options(additional_config)
    named = "kprune" in os.environ.get(NAMED, "").split(",")
    pruned = options.prunes or is_overlay(model)
    guarded, prunes_input = bool(options.guard), options.input_pruner is not None
    asked = {
        features.VOCABULARY: pruned,
        features.LORA: pruned and lora,
        features.GUARD: guarded,
        features.REQUESTS: guarded or prunes_input or named,
        features.FAILURES: guarded and front_end == "server",
        features.METRICS: guarded and front_end == "server",
        features.ONLINE: prunes_input and front_end == "server",
        features.OFFLINE: prunes_input and front_end == "offline",
        features.ROUTES: named and front_end == "server",
    }
    return [feature for feature, is_asked in asked.items() if is_asked]
