"""The teacher of a pruned model: its predictions by the original's ids, and who it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_architectures import BODIES
from support.tiny_folders import edit
from torch.nn import functional
from transformers import AutoModelForCausalLM

from vllm_kprune.checkpoint.manifest import EXPORT_NAME, load_manifest
from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.loss import chunked_loss
from vllm_kprune.heal.network import load_text_model
from vllm_kprune.heal.teacher import find_teacher
from vllm_kprune.sparsify.body import open_body
from vllm_kprune.sparsify.record import SPARSITY_NAME

Saved = Callable[[str], Path]
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", BODIES)
def test_the_network_gives_the_logits_of_transformers(name: str, saved: Saved) -> None:
    body = open_body(saved(name))
    ours = load_text_model(body, CPU)
    theirs = AutoModelForCausalLM.from_pretrained(saved(name)).eval()
    ids = torch.arange(20, 44)
    with torch.no_grad():
        logits = ours.head.logits(ours.hidden(ids))
        expected = theirs(ids[None]).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert set(ours.parameters()) >= {"embed_tokens.weight", "norm.weight"}


def test_distillation_is_the_divergence_from_the_original_on_the_kept_tokens(
    sparse_export: Path, saved: Saved
) -> None:
    student = open_body(sparse_export)
    found = find_teacher(student, None, None)
    assert found.body.base.folder == saved("qwen3-tied")
    kept = load_manifest(sparse_export, EXPORT_NAME).kept_ids
    ours, teacher = load_text_model(student, CPU), load_text_model(found.body, CPU, found.rows)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, student.base.rows, 24))
    with torch.no_grad():
        guide = (teacher.hidden(ids)[:-1], teacher.head)
        parts = chunked_loss(ours.hidden(ids)[:-1], ours.head, ids[1:], guide, 1.0, None)
        # By hand: the original reads the same tokens by its own ids, and loses the other logits.
        original = AutoModelForCausalLM.from_pretrained(saved("qwen3-tied")).eval()
        logits = original(torch.tensor(kept)[ids][None]).logits[0, :-1]
        wanted = functional.softmax(logits[:, list(kept)], dim=-1)
        pruned = AutoModelForCausalLM.from_pretrained(sparse_export).eval()
        mine = functional.log_softmax(pruned(ids[None]).logits[0, :-1], dim=-1)
    divergence = (wanted * (wanted.log() - mine)).sum().item()
    assert len(kept) < original.config.vocab_size
    assert divergence > 1
    assert parts.distillation == pytest.approx(divergence, rel=1e-4)


def test_a_model_that_only_lost_vocabulary_begins_with_its_teachers_predictions(
    export: Path,
) -> None:
    student = open_body(export)
    found = find_teacher(student, None, None)
    ours, teacher = load_text_model(student, CPU), load_text_model(found.body, CPU, found.rows)
    ids = torch.arange(24)
    with torch.no_grad():
        guide = (teacher.hidden(ids), teacher.head)
        parts = chunked_loss(ours.hidden(ids), ours.head, ids, guide, 1.0, None)
    assert parts.distillation == pytest.approx(0, abs=1e-4)


def test_who_the_teacher_is(
    sparse_export: Path, export: Path, sparse: Saved, saved: Saved, tmp_path: Path
) -> None:
    # By default the original, also of an export that was sparsified afterwards.
    assert find_teacher(open_body(sparse("llama-3.2")), None, None).body.base.folder == saved(
        "llama-3.2"
    )
    # The export that was sparsified has the same ids.
    assert find_teacher(open_body(sparse_export), export, None).rows is None
    with pytest.raises(KPruneError, match=r"has other tokens than .* --distillation 0"):
        find_teacher(open_body(export), saved("gemma3-text"), None)
    with pytest.raises(KPruneError, match="does not say what it was made from; name the original"):
        find_teacher(open_body(saved("llama-3.2")), None, None)
    moved = Path(shutil.copytree(sparse("llama-3.2"), tmp_path / "moved"))
    edit(moved / SPARSITY_NAME, base={"files": {"config.json": "0"}})
    with pytest.raises(KPruneError, match="not where it was, or was never here; give its folder"):
        find_teacher(open_body(moved), None, None)
