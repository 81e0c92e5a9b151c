"""One cell of `sparsity_paper.py`: prune a model with one calibration, measure it, keep figures.

A cell's file has parts, each with the amounts that it was measured with. A part that is missing, or
was measured with other amounts, is measured again; for that the model is pruned again.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packed_likelihood import Probe, Target, Variant
from sparsity_paper_data import Question, Texts

from vllm_kprune.analyze.features import embed_prompts
from vllm_kprune.analyze.masks import PackedMasks
from vllm_kprune.analyze.neurons import count_active
from vllm_kprune.analyze.perplexity import measure_perplexity
from vllm_kprune.analyze.prompts import LanguagePrompt, make_prompts
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.run import sparsify_model
from vllm_kprune.storage.folders import new_file

__all__ = ["PARTS", "Cell", "Workplace", "missing_parts", "run_cell"]

# Short enough for the sliding windows of Gemma-3, which see 512 tokens.
_WINDOW = 512


@dataclass(frozen=True)
class Cell:
    """A pruned model; without a method, the original."""

    model: str
    method: str = "original"
    language: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the cell's files."""
        if self.method == "original":
            return self.method
        return f"{self.method}-{self.language}-{self.seed}"


@dataclass(frozen=True)
class Workplace:
    """A model, the texts to prune and measure it with, and where that is done and kept."""

    base: Path
    folder: Path
    scratch: Path
    device: str
    amounts: Mapping[str, Any]
    calibration: Mapping[tuple[str, int], Path]
    texts: Mapping[str, Texts]


def missing_parts(cell: Cell, place: Workplace, wanted: list[str]) -> list[str]:
    """The parts that are still to be measured."""
    found = _read(place.folder / f"{cell.name}.json").get("parts", {})
    applicable = [part for part in wanted if part != "masks" or cell.method != "original"]
    return [p for p in applicable if found.get(p, {}).get("amounts") != _amounts(p, place)]


def run_cell(cell: Cell, place: Workplace, parts: list[str]) -> None:
    """Measure parts of a cell, and write them to its file."""
    scratch = place.scratch
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    folder = place.base if cell.method == "original" else _prune(cell, place, scratch)
    dtype = getattr(torch, place.amounts["dtype"])
    target = Target(folder, scratch / "likelihoods", dtype, _WINDOW, place.device)
    path = place.folder / f"{cell.name}.json"
    found = _read(path) or {**asdict(cell), "parts": {}}
    for part in parts:
        values = PARTS[part].measure(target, cell, place)
        found["parts"][part] = {"amounts": _amounts(part, place), "values": values}
    with new_file(path) as stream:
        stream.write(json.dumps(found).encode())
    shutil.rmtree(scratch)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def _prune(cell: Cell, place: Workplace, scratch: Path) -> Path:
    options = SparsifyOptions(
        method=cell.method,  # type: ignore[arg-type]
        calibration=(f"{cell.language}={place.calibration[cell.language, cell.seed]}",),
        samples=place.amounts["samples"],
        length=place.amounts["length"],
        seed=cell.seed,
        device=place.device,  # type: ignore[arg-type]
    )
    folder = scratch / cell.name
    sparsify_model(place.base, folder, options)
    return folder


def _perplexity(target: Target, cell: Cell, place: Workplace) -> dict[str, Any]:
    texts = {language: one.perplexity for language, one in place.texts.items()}
    found = measure_perplexity(target.model, target.tokenizer, texts, length=_WINDOW)
    return {language: asdict(one) for language, one in found.items()}


def _tasks(target: Target, cell: Cell, place: Workplace) -> dict[str, Any]:
    return {language: _answered(target, one.questions) for language, one in place.texts.items()}


def _answered(target: Target, questions: tuple[Question, ...]) -> list[dict[str, Any]]:
    """For each question: negative log-likelihood (nats) and characters of each of its answers."""
    probes = {q: [Probe(q.prompt, answer) for answer in q.answers] for q in questions}
    passages: dict[str, list[Probe]] = {q.passage: [] for q in questions}
    for question, asked in probes.items():
        passages[question.passage] += asked
    target.compute([Variant(passage, tuple(asked)) for passage, asked in passages.items()])
    return [
        {
            "task": q.task,
            "right": q.right,
            "nats": [-_known(target, q.passage, probe) for probe in probes[q]],
            "characters": [len(answer.strip()) for answer in q.answers],
        }
        for q in questions
    ]


def _known(target: Target, passage: str, probe: Probe) -> float:
    value = target.known(passage, probe)
    assert value is not None
    return value[0]


def _masks(target: Target, cell: Cell, place: Workplace) -> dict[str, Any]:
    """Store the zeros of each matrix as bits, beside the cell's file."""
    masks = PackedMasks.of_model(target.model, cell.name, (cell.language,))
    masks.save(place.folder / f"{cell.name}.masks.npz")
    return {"matrices": len(masks.shapes)}


def _features(target: Target, cell: Cell, place: Workplace) -> dict[str, Any]:
    """Store the embeddings of the parallel prompts; tables compare them with the original's."""
    found = embed_prompts(target.model, _prompts(target, place))
    _save(place.folder / f"{cell.name}.embeddings.npz", values=found.values)
    return {"languages": found.languages}


def _neurons(target: Target, cell: Cell, place: Workplace) -> dict[str, Any]:
    """Store for how many tokens each neuron is active."""
    found = count_active(target.model, _prompts(target, place))
    _save(place.folder / f"{cell.name}.neurons.npz", active=found.active.astype(np.int32))
    sites = [[one.layer, one.place, one.neurons] for one in found.sites]
    return {"languages": found.languages, "tokens": found.tokens, "sites": sites}


def _prompts(target: Target, place: Workplace) -> list[LanguagePrompt]:
    texts = {language: one.parallel for language, one in place.texts.items()}
    return make_prompts(target.tokenizer, target.model.config, texts, _WINDOW)


def _save(path: Path, **arrays: Any) -> None:
    with new_file(path) as stream:
        np.savez_compressed(stream, **arrays)


@dataclass(frozen=True)
class _Part:
    """How a part is measured, and the amounts that it depends on besides the calibration."""

    measure: Callable[[Target, Cell, Workplace], dict[str, Any]]
    amounts: tuple[str, ...]


PARTS: Mapping[str, _Part] = {
    "perplexity": _Part(_perplexity, ("perplexity_passages",)),
    "tasks": _Part(
        _tasks, ("xquad_passages", "xquad_questions_each", "mgsm_problems", "boolq_questions")
    ),
    "masks": _Part(_masks, ()),
    "features": _Part(_features, ("parallel_lines",)),
    "neurons": _Part(_neurons, ("parallel_lines",)),
}


def _amounts(part: str, place: Workplace) -> dict[str, Any]:
    names = ("samples", "length", "dtype", *PARTS[part].amounts)
    return {name: place.amounts[name] for name in names}
