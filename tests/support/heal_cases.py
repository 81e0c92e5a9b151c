"""Runs of `heal_model` on small models: options, and what they give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_kprune.heal.options import HealOptions

# From a model and options: the new folder, and its record.
Healed = Callable[..., tuple[Path, dict[str, Any]]]


def heal_options(text: Path, **options: Any) -> HealOptions:
    """Options for a small run on the CPU."""
    small = {"what": "all", "steps": 16, "length": 32, "learning_rate": 5e-3}
    small |= {"distillation": 0.5, "device": "cpu"}
    return HealOptions(**{"text": (str(text),), **small, **options})
