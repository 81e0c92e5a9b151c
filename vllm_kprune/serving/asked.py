"""Which features of kprune a server or an `LLM` asked for: those that it must not start without."""

from typing import Literal

from vllm_kprune.serving.compat import features
from vllm_kprune.serving.compat.installer import require
from vllm_kprune.serving.compat.seam import Feature
from vllm_kprune.serving.compat.version import check_version
from vllm_kprune.serving.settings import ServerSettings

__all__ = ["asked_features", "require_asked"]

FrontEnd = Literal["server", "offline"]


def require_asked(
    settings: ServerSettings, *, lora: bool = False, front_end: FrontEnd | None = None
) -> None:
    """Raise `KPruneError` if this vLLM cannot give what was asked for; nothing without kprune."""
    if settings.given or settings.overlay:
        check_version()
    require(asked_features(settings, lora=lora, front_end=front_end))


def asked_features(
    settings: ServerSettings, *, lora: bool = False, front_end: FrontEnd | None = None
) -> list[Feature]:
    """The features that a model and its options ask for; none without kprune.

    `front_end` None: unknown, and features of a particular one are left out. `--plugin kprune` lets
    requests ask for more, and it is for `attach` to answer them where that is not possible.
    """
    named, pruned = settings.named, settings.prunes or settings.overlay
    guarded, prunes_input = settings.guard.policies.guard, settings.pruner is not None
    heads = bool(settings.vocabulary.head) or settings.vocabulary.draft_head is not None
    asked = {
        features.VOCABULARY: pruned,
        features.HEAD: heads,
        # Where no rows are cut, kprune has nothing to check about an adapter.
        features.LORA: (pruned or bool(settings.vocabulary.head)) and lora,
        features.GUARD: guarded,
        features.REQUESTS: guarded or prunes_input or named,
        features.FAILURES: guarded and front_end == "server",
        features.METRICS: guarded and front_end == "server",
        features.ONLINE: prunes_input and front_end == "server",
        features.OFFLINE: prunes_input and front_end == "offline",
        features.ROUTES: named and front_end == "server",
    }
    return [feature for feature, is_asked in asked.items() if is_asked]
