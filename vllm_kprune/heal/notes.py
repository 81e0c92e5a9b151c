"""The state of a training on the disk: what a killed run goes on from.

Beside the notes (JSON) are two files of tensors, no pickle: what is trained, with the optimiser's
moments, and the weights of the best state so far, in the data types of the checkpoint. Both have
the step in their names, and the notes say which ones are valid. They are written first, so a run
that is killed in between goes on from the files before.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.files import sync_file
from vllm_kprune.sparsify.record import earlier_notes
from vllm_kprune.storage.folders import new_file

__all__ = ["NOTES_NAME", "HealNotes"]

NOTES_NAME = ".kprune-heal.json"

Tensors = Mapping[str, torch.Tensor]


@dataclass
class HealNotes:
    """What a run has done so far.

    `start` has the bits per character of each language before the first step, `curve` the losses
    of each step, `judged` the evaluations, `best` the accepted one of the best state. `stopped`
    says why a training ended.
    """

    folder: Path
    settings: Mapping[str, Any]
    steps: int = 0
    step: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    stopped: str = ""

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], start_anew: bool) -> Self:
        """The notes in a folder, or new ones. Notes of other settings are refused, unless
        `start_anew`."""
        settings = json.loads(json.dumps(settings))
        found = earlier_notes(folder / NOTES_NAME, settings, start_anew)
        if found is not None:
            return cls._read(folder, found)
        notes = cls(folder, settings)
        notes.clear()
        return notes

    @classmethod
    def _read(cls, folder: Path, found: Mapping[str, Any]) -> Self:
        new = cls(folder, {})
        kinds = {name: type(value) for name, value in vars(new).items() if name != "folder"}
        best = found.get("best")
        fits = found.keys() <= kinds.keys() and all(
            type(value) is kinds[name] for name, value in found.items() if name != "best"
        )
        if not fits or not (
            best is None or (isinstance(best, dict) and type(best.get("step")) is int)
        ):
            raise KPruneError(f"the notes in {folder} are damaged; use --force to start anew")
        return cls(folder, **found)

    def clear(self) -> None:
        """Remove everything that a run left."""
        for old in self.folder.iterdir():
            old.unlink()

    def save(self, state: Tensors) -> None:
        """Note the step that was reached, with the tensors to go on from."""
        _write(self._state, state)
        self._save()
        self._sweep()

    def _save(self) -> None:
        values = {name: value for name, value in vars(self).items() if name != "folder"}
        with new_file(self.folder / NOTES_NAME) as stream:
            stream.write(json.dumps(values).encode())

    def load(self) -> Tensors:
        """The tensors of the step that was reached."""
        return load_file(self._state)

    def save_best(self, weights: Tensors) -> None:
        """Keep the weights of `best`; the notes name them once they are saved."""
        _write(self._best, weights)

    def load_best(self) -> Tensors:
        """The weights of the best state, in the data types of the checkpoint."""
        return load_file(self._best)

    @property
    def _state(self) -> Path:
        return self.folder / f".state-{self.step}.safetensors"

    @property
    def _best(self) -> Path:
        assert self.best is not None
        return self.folder / f".best-{self.best['step']}.safetensors"

    def _sweep(self) -> None:
        valid = {self._state} | ({self._best} if self.best else set())
        for path in (*self.folder.glob(".state-*"), *self.folder.glob(".best-*")):
            if path not in valid:
                path.unlink()

    def finish(self) -> None:
        """Remove all notes from a finished checkpoint."""
        for pattern in (".state-*", ".best-*", NOTES_NAME):
            for path in self.folder.glob(pattern):
                path.unlink()


def _write(path: Path, tensors: Tensors) -> None:
    scratch = path.with_name(f"{path.name}.tmp")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, scratch)
    sync_file(scratch)
    scratch.rename(path)
