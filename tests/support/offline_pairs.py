"""A tiny model and its overlay, and the jobs for `offline_jobs.py` that compare them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from support.tiny_folders import KOREAN
from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.profile import Profile

PROFILE = Profile(name="tiny", languages=("th",), genres=())
TEXTS = ("the weather in Seoul", "ภาษาไทย", "for item in items")


@dataclass(frozen=True)
class Pair:
    """A tiny model, its overlay, and the prompts for it as ids of the pruned vocabulary."""

    original: Path
    overlay: Path
    kept: tuple[int, ...]
    prompts: list[list[int]]

    def jobs(self, **more: Any) -> list[dict[str, Any]]:
        """Greedy generation by the pruned model, and by the original with other tokens masked."""
        originals = [self.original_ids(ids) for ids in self.prompts]
        return [
            {"model": str(self.overlay), "prompts": self.prompts, **more},
            {"model": str(self.original), "prompts": originals, "allowed": self.kept, **more},
        ]

    def original_ids(self, ids: list[int]) -> list[int]:
        """The same tokens in ids of the original vocabulary."""
        return [self.kept[i] for i in ids]


def masked_greedy(pair: Pair, tokens: int) -> list[list[int]]:
    """The answers of an original Llama in transformers, with all but the kept ids masked."""
    import torch
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM.from_pretrained(pair.original, dtype=torch.float32)
    prompts = [pair.original_ids(prompt) for prompt in pair.prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad():
        for prompt, ids in zip(prompts, answers, strict=True):
            for _ in range(tokens):
                logits = network(torch.tensor([prompt + ids])).logits[0, -1, list(pair.kept)]
                ids.append(pair.kept[int(logits.argmax())])
    return answers


def make_pair(original: Path, folder: Path) -> Pair:
    """Prune a tiny model; corpus and overlay are written into `folder`."""
    (folder / "corpus.txt").write_text(KOREAN, encoding="utf-8")
    overlay = folder / "pruned"
    corpora = [folder / "corpus.txt"]
    kept = build_overlay(str(original), PROFILE, overlay, corpora=corpora).kept_ids
    if len(kept) % 2 == 0:  # with an odd number, two ranks hold different numbers of rows
        odd = replace(PROFILE, target_size=len(kept) - 1)
        build_overlay(str(original), odd, overlay, corpora=corpora, force=True)
    tokenizer = Tokenizer.from_file(str(overlay / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in TEXTS]
    return Pair(original, overlay, load_manifest(overlay).kept_rows, prompts)
