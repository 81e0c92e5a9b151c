"""`kprune-sparsity.json`: how a checkpoint was sparsified; and the notes of a run on its way there.

The notes are written after each layer, beside the weights. A run that finds notes of the same
settings goes on after the last layer in them.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from vllm_kprune import __version__
from vllm_kprune.checkpoint.base import BaseModel
from vllm_kprune.checkpoint.manifest import SPARSITY_NAME
from vllm_kprune.checkpoint.overlay import digest_base
from vllm_kprune.checkpoint.places import public_name, remember_place
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.progress import Progress
from vllm_kprune.storage.bounded import NOTES, read_object
from vllm_kprune.storage.cache import cache_dir
from vllm_kprune.storage.folders import new_file

__all__ = [
    "NOTES_NAME",
    "SPARSITY_NAME",
    "LayerReport",
    "RunNotes",
    "described_base",
    "earlier_notes",
    "sparsity_record",
]

NOTES_NAME = ".kprune-sparsify.json"
_FORMAT = 1

# Matrix name -> shape, zeros and so on.
LayerReport = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RunNotes:
    """The settings of a run, and what it did to each finished layer."""

    folder: Path
    settings: Mapping[str, Any]
    layers: list[LayerReport] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], start_anew: bool) -> Self:
        """The notes in a folder, or new ones. Notes of other settings are refused, unless
        `start_anew`."""
        # As JSON: a tuple would differ from the list that was read.
        settings = json.loads(json.dumps(settings))
        found = earlier_notes(folder / NOTES_NAME, settings, start_anew)
        if found is not None:
            layers = found.get("layers")
            if not isinstance(layers, list) or not all(isinstance(one, dict) for one in layers):
                raise KPruneError(f"the notes in {folder} are damaged; use --force to start anew")
            return cls(folder, settings, layers)
        for old in folder.iterdir():
            old.unlink()
        return cls(folder, settings)

    def add(self, report: LayerReport) -> None:
        """Note that the next layer is finished, after its weights are on the disk."""
        self.layers.append(report)
        self.save()

    def save(self) -> None:
        """Write the notes, so that a later run finds its settings here."""
        with new_file(self.folder / NOTES_NAME) as stream:
            stream.write(json.dumps({"settings": self.settings, "layers": self.layers}).encode())


def earlier_notes(
    path: Path, settings: Mapping[str, Any], start_anew: bool
) -> dict[str, Any] | None:
    """The notes of an interrupted run with these settings; None to start anew.

    Notes of other settings are refused, unless `start_anew`.
    """
    if not path.is_file():
        return None
    found = read_object(path, NOTES)
    changed = _changed_setting(found.get("settings"), settings)
    if changed is None:
        return found
    if not start_anew:
        raise KPruneError(
            f"{path.parent} has an interrupted run with other options ({changed}); give the same "
            "options to go on with it, or --force to start anew"
        )
    return None


def _changed_setting(old: Any, new: Mapping[str, Any]) -> str | None:
    """The first setting that differs; None if all are the same."""
    if not isinstance(old, Mapping):
        return "its notes are damaged"
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = old.get(name), new.get(name)
        if before != now:
            plain = not isinstance(before, dict | list) and not isinstance(now, dict | list)
            return f"{name} was {shown(before)}, now {shown(now)}" if plain else f"another {name}"
    return None


def described_base(base: BaseModel, progress: Progress) -> dict[str, Any]:
    """Public name and SHA-256 of every file of a model, as records have them."""
    digests = digest_base(base, progress, memory=cache_dir() / "digests")
    files = {name: digest.sha256 for name, digest in digests.items()}
    remember_place(files, base.folder)
    name = public_name(base.reference, base.folder.absolute())
    return {"reference": name, "revision": base.revision, "files": files}


def sparsity_record(notes: RunNotes, device: str) -> dict[str, Any]:
    """What is kept beside the weights: recipe, sparsity of each matrix, base, versions."""
    matrices = {name: one for report in notes.layers for name, one in report.items()}
    weights = sum(one["weights"] for one in matrices.values())
    zeros = sum(one["zeros"] for one in matrices.values())
    return {
        "format": _FORMAT,
        **notes.settings,
        "device": device,
        "sparsity": zeros / weights,
        "weights": weights,
        "zeros": zeros,
        "matrices": matrices,
        "versions": {
            "kprune": __version__,
            "python": platform.python_version(),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
    }
