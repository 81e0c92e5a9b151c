"""kprune: keep only the tokens that your languages need, and serve the smaller model with vLLM.

What is listed in `__all__` is the Python API: it needs no vLLM, and each name documents itself.
Importing the package imports none of it; a name loads its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_kprune.checkpoint.export import export_overlay as export_overlay
    from vllm_kprune.checkpoint.manifest import Manifest as Manifest
    from vllm_kprune.checkpoint.overlay import build_overlay as build_overlay
    from vllm_kprune.checkpoint.verify import LawResult as LawResult
    from vllm_kprune.checkpoint.verify import verify_overlay as verify_overlay
    from vllm_kprune.compare.comparing import compare_endpoints as compare_endpoints
    from vllm_kprune.errors import KPruneError as KPruneError
    from vllm_kprune.guard.automaton import Automaton as Automaton
    from vllm_kprune.guard.automaton import build_automaton as build_automaton
    from vllm_kprune.guard.policy import GuardPolicy as GuardPolicy
    from vllm_kprune.guard.spelling import load_spellings as load_spellings
    from vllm_kprune.heal.options import HealOptions as HealOptions
    from vllm_kprune.heal.run import heal_model as heal_model
    from vllm_kprune.profile import Profile as Profile
    from vllm_kprune.profile import load_profile as load_profile
    from vllm_kprune.prompt.pruner import InputPruner as InputPruner
    from vllm_kprune.sparsify.options import SparsifyOptions as SparsifyOptions
    from vllm_kprune.sparsify.run import sparsify_model as sparsify_model

__all__ = [
    "Automaton",
    "GuardPolicy",
    "HealOptions",
    "InputPruner",
    "KPruneError",
    "LawResult",
    "Manifest",
    "Profile",
    "SparsifyOptions",
    "__version__",
    "build_automaton",
    "build_overlay",
    "compare_endpoints",
    "export_overlay",
    "heal_model",
    "load_profile",
    "load_spellings",
    "sparsify_model",
    "verify_overlay",
]

__version__ = "0.1.0"

# Name -> the module that it is loaded from. A test compares this with the imports above.
_HOMES = {
    "Automaton": "guard.automaton",
    "GuardPolicy": "guard.policy",
    "HealOptions": "heal.options",
    "InputPruner": "prompt.pruner",
    "KPruneError": "errors",
    "LawResult": "checkpoint.verify",
    "Manifest": "checkpoint.manifest",
    "Profile": "profile",
    "SparsifyOptions": "sparsify.options",
    "build_automaton": "guard.automaton",
    "build_overlay": "checkpoint.overlay",
    "compare_endpoints": "compare.comparing",
    "export_overlay": "checkpoint.export",
    "heal_model": "heal.run",
    "load_profile": "profile",
    "load_spellings": "guard.spelling",
    "sparsify_model": "sparsify.run",
    "verify_overlay": "checkpoint.verify",
}


def __getattr__(name: str) -> Any:
    """Load a name of the API when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
