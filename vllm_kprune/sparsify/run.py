"""Sparsify a model layer by layer, into a folder that appears when all layers are done.

The weight files are copied first; then each layer's matrices are overwritten in place. A run that
was killed goes on after the last finished layer: it sends the text through the finished layers
again, from the copied files, so it needs no other state and gives the same bytes.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vllm_kprune.checkpoint.export import refuse_base
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import Progress, Tell, silent
from vllm_kprune.sparsify.activations import Activations
from vllm_kprune.sparsify.body import ModelBody, checked_dtype, open_body, write_tensor
from vllm_kprune.sparsify.budget import Budget, available_memory, plan_budget
from vllm_kprune.sparsify.calibration import Calibration, draw_calibration, parse_calibration
from vllm_kprune.sparsify.device import device_name, pick_device
from vllm_kprune.sparsify.files import copy_other_files, copy_shards, missing_bytes, sync_file
from vllm_kprune.sparsify.layer import LayerPruner
from vllm_kprune.sparsify.methods import METHODS
from vllm_kprune.sparsify.network import Network, build_network, matrices_of
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.pattern import SparsityPattern
from vllm_kprune.sparsify.record import (
    NOTES_NAME,
    SPARSITY_NAME,
    LayerReport,
    RunNotes,
    described_base,
    sparsity_record,
)
from vllm_kprune.sparsify.sparsegpt import BLOCK_COLUMNS, DAMPING
from vllm_kprune.storage.folders import new_file, resumable_folder
from vllm_kprune.tokenizer.encoder import load_encoder

__all__ = ["sparsify_model"]

_GB = 1e9
_SHARE_OF_MEMORY = 0.8
_ACTIVATIONS_NAME = ".activations.f32"


def sparsify_model(
    model: str | Path,
    output: str | Path,
    options: SparsifyOptions,
    *,
    revision: str | None = None,
    force: bool = False,
    progress: Progress = silent,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Set weights of `model` (a folder or a hub id) to zero and write the checkpoint to `output`.

    This is what `kprune sparsify` does. Returns the content of `kprune-sparsity.json`.

    `tell` gets warnings. `force` replaces what an earlier run wrote to `output`, and an interrupted
    run with other options. A run that was interrupted goes on if it is called again.

    Raises `KPruneError` for a model, a text or options that do not fit.

    >>> record = sparsify_model(model, output, SparsifyOptions(method="magnitude", sparsity=0.25))
    >>> record["sparsity"]
    0.25
    """
    output, pattern = Path(output), options.checked_pattern()
    parse_calibration(options.calibration)  # a mistake here is found before the model is read
    device = pick_device(options.device)
    body = open_body(model, revision)
    refuse_base(output, body.base.folder)
    network = build_network(body, device)
    _check_matrices(network, pattern)
    with resumable_folder(output, SPARSITY_NAME if force else None) as folder:
        text = _draw(options, network, progress, tell) if options.calibration else None
        budget = _budget(options, network)
        settings = _settings(body, options, pattern, text, device, progress)
        notes = RunNotes.open(folder, settings, force)
        budget.check_disk(folder, missing_bytes(body, folder))
        notes.save()
        copy_shards(body, folder, progress)
        run = _Run(network, LayerPruner(network, options.method, pattern), notes, tell)
        run.layers(text, budget, progress)
        return _finish(run, folder, device)


def _draw(
    options: SparsifyOptions, network: Network, progress: Progress, tell: Tell
) -> Calibration:
    """The calibration samples, checked to be what the network can take."""
    most, body = network.most_positions, network.body
    if most is not None and options.length > most:
        raise KPruneError(
            f"--length {options.length} is more than the {most} positions of the model; lower it"
        )
    progress("read calibration text", 0.0)
    text = draw_calibration(
        parse_calibration(options.calibration),
        load_encoder(body.base.folder),
        samples=options.samples,
        length=options.length,
        seed=options.seed,
        tell=tell,
    )
    if (largest := int(text.ids.max())) >= body.base.rows:
        raise KPruneError(
            f"the tokenizer gives the id {largest}, but the embedding has {body.base.rows} rows; "
            "is tokenizer.json that of this model?"
        )
    return text


def _budget(options: SparsifyOptions, network: Network) -> Budget:
    given = options.memory and int(options.memory * _GB)
    memory = given or int(available_memory() * _SHARE_OF_MEMORY)
    statistic = METHODS[options.method].statistic
    return plan_budget(network, statistic, (options.samples, options.length), memory)


@dataclass(frozen=True)
class _Run:
    """A run whose weight files are in the folder of `notes`."""

    network: Network
    pruner: LayerPruner
    notes: RunNotes
    tell: Tell

    def layers(self, text: Calibration | None, budget: Budget, progress: Progress) -> None:
        """Prune all layers that are not finished."""
        activations = self._embedded(text, budget) if text else None
        count, finished = self.network.body.num_layers, len(self.notes.layers)
        samples = len(activations) if activations is not None else 0
        # Of a finished layer only its output is wanted, and of the last one only its weights.
        total = max(1, (2 * count - finished - 1) * samples)
        done = 0

        def sample_done() -> None:
            nonlocal done
            done += 1
            progress("sparsify layers", min(done / total, 1.0))

        for layer in range(count):
            folder = self.notes.folder if layer < finished else self.network.body.base.folder
            self.network.load(layer, folder)
            if layer >= finished:
                self.notes.add(self._pruned(layer, activations, sample_done))
            if activations is not None and layer + 1 < count:
                self.pruner.forward(layer, activations, sample_done)
            self.network.unload(layer)
            progress("sparsify layers", done / total if samples else (layer + 1) / count)

    def _embedded(self, text: Calibration, budget: Budget) -> Activations:
        samples, length = text.ids.shape
        self.network.prepare(length)
        path = self.notes.folder / _ACTIVATIONS_NAME if budget.on_disk else None
        activations = Activations(samples, length, self.network.hidden_size, path)
        for sample, ids in enumerate(text.ids):
            activations[sample] = self.network.embed(torch.from_numpy(ids))
        return activations

    def _pruned(
        self, layer: int, activations: Activations | None, sample_done: Callable[[], None]
    ) -> LayerReport:
        """Prune a layer and store it; what is recorded of each matrix."""
        stored, report = self.network.stored(layer), {}
        unseen = 0
        for name, values, found in self.pruner.prune(layer, activations, sample_done):
            shard, info = stored[f"{name}.weight"]
            kept = values.to("cpu", torch.float32).to(checked_dtype(info))
            write_tensor(self.notes.folder / shard, info, kept)
            # The next layers see what is stored, not what it was before rounding.
            values.copy_(kept)
            zeros = int((kept == 0).sum())
            report[info.name] = {
                "shape": list(info.shape),
                "weights": info.parameters,
                "zeros": zeros,
                "sparsity": zeros / info.parameters,
                **found,
            }
            unseen += bool(found.get("no_inputs"))
        for shard in {shard for shard, _ in stored.values()}:
            sync_file(self.notes.folder / shard)
        if unseen:
            self.tell(
                f"layer {layer}: {unseen} matrices of experts got no token of the text and were "
                "pruned by magnitude; more --samples reach more experts"
            )
        return report


def _finish(run: _Run, folder: Path, device: torch.device) -> dict[str, Any]:
    """Turn the folder of a finished run into a checkpoint."""
    copy_other_files(run.network.body, folder)
    record = sparsity_record(run.notes, device_name(device))
    with new_file(folder / SPARSITY_NAME) as stream:
        stream.write((json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode())
    (folder / _ACTIVATIONS_NAME).unlink(missing_ok=True)
    (folder / NOTES_NAME).unlink()
    return record


def _settings(
    body: ModelBody,
    options: SparsifyOptions,
    pattern: SparsityPattern,
    text: Calibration | None,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """Everything that the result depends on: a run goes on only with the same."""
    settings: dict[str, Any] = {
        "method": options.method,
        "pattern": pattern.name,
        "device_type": device.type,
        "base": described_base(body.base, progress),
    }
    if options.method == "sparsegpt":
        settings |= {"block_columns": BLOCK_COLUMNS, "damping": DAMPING}
    if text is None:
        return settings
    return settings | {
        "seed": options.seed,
        "samples": options.samples,
        "length": options.length,
        "calibration": list(text.files),
        "calibration_ids_sha256": hashlib.sha256(text.ids.astype("<i8").tobytes()).hexdigest(),
    }


def _check_matrices(network: Network, pattern: SparsityPattern) -> None:
    """Raise `KPruneError` if a tensor is missing or unlike, or a width does not fit."""
    for layer in range(network.body.num_layers):
        network.stored(layer)
        for name, matrix in matrices_of(network.skeleton(layer)).items():
            pattern.check(network.body.layer_prefix(layer) + name, matrix.in_features)
