"""Heal a pruned model, into a folder that appears when the training is over.

The order: everything is checked, text read, both models loaded, trained; then the files of the
model are copied and the best state's tensors are written in their places. What is written is read
and measured once more, so the figures in the record are those of the checkpoint.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vllm_kprune.checkpoint.export import refuse_base
from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.budget import TrainingBudget, plan_training
from vllm_kprune.heal.judge import Judge, interval_of
from vllm_kprune.heal.masks import ZeroMasks, find_zeros
from vllm_kprune.heal.network import TextModel, load_text_model, stored_places
from vllm_kprune.heal.notes import HealNotes
from vllm_kprune.heal.options import HealOptions
from vllm_kprune.heal.parts import check_adapters, choose_trained
from vllm_kprune.heal.picture import check_drawing, draw_curve
from vllm_kprune.heal.record import HEAL_NAME, PICTURE_NAME, heal_record
from vllm_kprune.heal.teacher import Teacher, find_teacher
from vllm_kprune.heal.text import HealText, parse_texts, read_heal_text
from vllm_kprune.heal.training import Training
from vllm_kprune.progress import Progress, Tell, silent
from vllm_kprune.sparsify.body import ModelBody, open_body, write_tensor
from vllm_kprune.sparsify.device import device_name, pick_device
from vllm_kprune.sparsify.files import copy_other_files, copy_shards, missing_bytes, sync_file
from vllm_kprune.sparsify.record import SPARSITY_NAME, described_base
from vllm_kprune.storage.folders import new_file, resumable_folder
from vllm_kprune.tokenizer.encoder import load_encoder

__all__ = ["heal_model"]

# Settings that say where and how large, and do not change what comes out.
_NOT_RECORDED = ("text", "held_out", "memory", "device")


def heal_model(
    model: str | Path,
    output: str | Path,
    options: HealOptions,
    *,
    teacher: str | Path | None = None,
    revision: str | None = None,
    force: bool = False,
    progress: Progress = silent,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Train a pruned model for a short time and write the healed checkpoint to `output`.

    This is what `kprune heal` does. `model` is a folder that `kprune export` or `kprune sparsify`
    made, or a hub id of any model; `teacher` is the original, which by default is the model that
    the folder says it was made from. Returns the content of `kprune-heal.json`.

    `tell` gets warnings. `force` replaces what an earlier run wrote to `output`, and an interrupted
    run with other options. A run that was interrupted goes on if it is called again, and with
    `steps` gives the same bytes as one that was not.

    Raises `KPruneError` for a model, a text or options that do not fit, and if no state of the
    training was better than the model before.

    >>> options = HealOptions(text=(text,), steps=8, length=16, learning_rate=0.01)
    >>> record = heal_model(sparse, output, options)
    >>> record["stopped"], record["steps_done"]
    ('finished', 8)
    >>> record["healed"]["text.txt"]["bits_per_character"] < record["start"]["text.txt"]
    True
    """
    output = Path(output)
    options.check()
    parse_texts(options)  # a mistake here is found before the model is read
    check_drawing()
    if options.what == "lora":
        check_adapters()
    device = pick_device(options.device)
    body = open_body(model, revision, work="heal")
    sparsified = (body.base.folder / SPARSITY_NAME).is_file()
    options = options.for_model(sparsified=sparsified)
    guide = find_teacher(body, teacher, None) if options.distillation else None
    for base in (body, *((guide.body,) if guide else ())):
        refuse_base(output, base.base.folder)
    with resumable_folder(output, HEAL_NAME if force else None) as folder:
        budget = plan_training(body, guide, options)
        progress("read text", 0.0)
        text = read_heal_text(options, load_encoder(body.base.folder), tell)
        settings = _settings(body, guide, options, text, device, progress)
        notes = HealNotes.open(folder, settings, force)
        _check_room(body, budget, notes)
        _check_ids(text, body.base.rows)
        run = _Run(body, guide, options, text, device, progress, tell)
        zeros = run.train(notes)
        _refuse_nothing(notes, options)
        return run.write(notes, zeros)


class _Run:
    """A run whose folder is ready."""

    def __init__(
        self,
        body: ModelBody,
        teacher: Teacher | None,
        options: HealOptions,
        text: HealText,
        device: torch.device,
        progress: Progress,
        tell: Tell,
    ) -> None:
        self.body, self.teacher, self.options, self.text = body, teacher, options, text
        self.device, self.progress, self.tell = device, progress, tell
        self.judge = Judge(
            load_encoder(body.base.folder),
            text.held_out,
            options.languages,
            options.limits,
            options.length,
        )

    def train(self, notes: HealNotes) -> dict[str, int]:
        """Train from where the notes are; the number of zeros of each sparse matrix."""
        self.progress("load models", 0.0)
        model = load_text_model(self.body, self.device)
        masks = find_zeros(model)
        trained = choose_trained(model, masks, self.options)
        Training(
            model,
            self._loaded_teacher(),
            trained,
            masks,
            self.text,
            self.judge,
            self.options,
            notes,
            self.progress,
            self.tell,
        ).run()
        return _counts(model, masks)

    def _loaded_teacher(self) -> TextModel | None:
        if self.teacher is None:
            return None
        return load_text_model(self.teacher.body, self.device, self.teacher.rows)

    def write(self, notes: HealNotes, zeros: Mapping[str, int]) -> dict[str, Any]:
        """Turn the folder into a checkpoint."""
        folder = notes.folder
        copy_shards(self.body, folder, self.progress)
        self.progress("write weights", 0.0)
        _write_best(self.body, notes)
        copy_other_files(self.body, folder)
        self.progress("measure the result", 0.0)
        written = load_text_model(open_body(folder), self.device)
        found = _counts(written, find_zeros(written))
        if found != zeros:
            raise KPruneError(
                f"{folder}: other weights are zero than before the training; please report this"
            )
        healed = interval_of(self.judge.measure(written))
        record = heal_record(notes, healed, zeros, device_name(self.device))
        draw_curve(notes, folder / PICTURE_NAME)
        with new_file(folder / HEAL_NAME) as stream:
            stream.write((json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode())
        notes.finish()
        return record


def _write_best(body: ModelBody, notes: HealNotes) -> None:
    """Put the tensors of the best state into the copied files."""
    touched = set()
    for name, values in notes.load_best().items():
        for shard, info in stored_places(body, name):
            write_tensor(notes.folder / shard, info, values)
            touched.add(shard)
    for shard in touched:
        sync_file(notes.folder / shard)


def _counts(model: TextModel, masks: ZeroMasks) -> dict[str, int]:
    """Tensor of the checkpoint -> number of its zeros, for matrices that have some."""
    return {model.body.prefix + name: int(mask.sum()) for name, mask in masks.masks.items()}


def _refuse_nothing(notes: HealNotes, options: HealOptions) -> None:
    """Raise `KPruneError` if no state was accepted, and leave nothing behind."""
    if notes.best:
        return
    too_bad = sorted({name for one in notes.judged for name in one["too_bad"]})
    lower = f"try a lower --learning-rate than {options.learning_rate:g}, more steps or other text"
    reason = notes.stopped if notes.stopped.startswith("diverged") else ""
    if not reason and too_bad:
        reason = f"--keep-within was not met for {', '.join(too_bad)}"
    scores = ", ".join(f"{one['score']:.3f}" for one in notes.judged) or "none"
    notes.clear()
    raise KPruneError(
        f"no state of the training is better than the model before ({reason or 'finished'}; "
        f"held-out bits per character over those before: {scores}), so nothing was written; {lower}"
    )


def _check_room(body: ModelBody, budget: TrainingBudget, notes: HealNotes) -> None:
    needed = missing_bytes(body, notes.folder) + budget.disk
    free = shutil.disk_usage(notes.folder).free
    if needed > free:
        raise KPruneError(
            f"the run needs {needed / 1e9:,.2f} GB of disk, but {free / 1e9:,.2f} GB are free; "
            "make room, name a folder on another disk, or try --what lora, whose states are small"
        )


def _check_ids(text: HealText, rows: int) -> None:
    largest = max(int(windows.max()) for windows in text.windows)
    if largest >= rows:
        raise KPruneError(
            f"the tokenizer gives the id {largest}, but the embedding has {rows} rows; is "
            "tokenizer.json that of this model?"
        )


def _settings(
    body: ModelBody,
    teacher: Teacher | None,
    options: HealOptions,
    text: HealText,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Everything that the result depends on: a run goes on only with the same."""
    chosen = {k: v for k, v in asdict(options).items() if k not in _NOT_RECORDED}
    return {
        **chosen,
        "texts": list(text.notes),
        "device_type": device.type,
        "base": described_base(body.base, progress),
        "teacher": teacher and described_base(teacher.body.base, progress),
    }
