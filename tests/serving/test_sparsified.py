"""A sparsified checkpoint, and a sparsified export, are ordinary models to vLLM."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.forks import ask
from support.offline_pairs import TEXTS
from support.sparsify_cases import small_options
from support.tiny_architectures import ARCHITECTURES
from support.tiny_tokenizers import SENTENCES

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.profile import Profile
from vllm_kprune.sparsify.run import sparsify_model
from vllm_kprune.tokenizer.encoder import load_encoder

pytestmark = [pytest.mark.server, pytest.mark.slow]

TOKENS = 20


def greedy(folder: Path, prompt: list[int]) -> list[int]:
    """What transformers continues a prompt with."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(TOKENS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_vllm_answers_as_transformers_does(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SENTENCES * 8), encoding="utf-8")
    model = ARCHITECTURES["qwen3-tied"].save(tmp_path / "model")
    profile = Profile(name="thai", languages=("th",), genres=())
    build_overlay(model, profile, tmp_path / "overlay", corpora=[text])
    export_overlay(tmp_path / "overlay", tmp_path / "export")
    jobs: list[dict[str, Any]] = []
    for base, options in ((model, {}), (tmp_path / "export", {"pattern": "2:4"})):
        output = tmp_path / f"{base.name}-sparse"
        sparsify_model(base, output, small_options("wanda", text, **options))
        prompt = load_encoder(output).encode(TEXTS[0]).ids
        jobs.append({"model": str(output), "prompts": [prompt], "tokens": TOKENS})
    answers = ask("offline_jobs.py", jobs, tmp_path)
    for job, answer in zip(jobs, answers, strict=True):
        assert answer.get("ids") == [greedy(Path(job["model"]), job["prompts"][0])], answer
