"""`kprune-heal.json`: how a checkpoint was healed, and what came of it."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from vllm_kprune import __version__
from vllm_kprune.checkpoint.manifest import HEAL_NAME
from vllm_kprune.heal.notes import HealNotes

__all__ = ["HEAL_NAME", "PICTURE_NAME", "heal_record"]

PICTURE_NAME = "kprune-heal.svg"
_FORMAT = 1
_LIBRARIES = ("torch", "transformers")


def heal_record(
    notes: HealNotes, healed: Mapping[str, Any], zeros: Mapping[str, int], device: str
) -> dict[str, Any]:
    """What is kept beside the weights: recipe, losses, evaluations, result, versions.

    `healed` is measured on the checkpoint as it was written.
    """
    assert notes.best is not None
    libraries = (*_LIBRARIES, "peft") if notes.settings["what"] == "lora" else _LIBRARIES
    return {
        "format": _FORMAT,
        **notes.settings,
        "device": device,
        "steps": notes.steps,
        "steps_done": notes.step,
        "stopped": notes.stopped,
        "best_step": notes.best["step"],
        "start": notes.start,
        "healed": dict(healed),
        "zeros": dict(zeros),
        "evaluations": notes.judged,
        "curve": notes.curve,
        "versions": {
            "kprune": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in libraries},
        },
    }
