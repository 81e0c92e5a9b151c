"""A pruned model with a pruned draft model answers and accepts as the originals do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.forks import ask
from support.tiny_models import KEPT, UNTIED, overlay_by_hand, save_untied_model

from vllm_kprune.checkpoint.manifest import EXPORT_NAME, MANIFEST_NAME

pytestmark = [pytest.mark.server, pytest.mark.slow]

PROMPTS = [[3, 9, 27, 30], [0, 6, 12, 18, 24, 93]]
TOKENS = 48


def save_target(folder: Path) -> Path:
    """A model for which tokens that are not kept are never likely: their rows of the head are 0."""
    return _with_head(save_untied_model(folder), noise=0.0)


def save_draft(folder: Path) -> Path:
    """The same model with some noise, so that some drafts are refused."""
    return _with_head(save_untied_model(folder), noise=0.004)


def _with_head(folder: Path, noise: float) -> Path:
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    head = weights["lm_head.weight"]
    head += noise * torch.randn_like(head)
    head[[i for i in range(len(head)) if i not in KEPT]] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def export_by_hand(folder: Path, base: Path) -> Path:
    """A standalone checkpoint with the kept rows only, as `kprune export` makes it."""
    overlay_by_hand(folder, base, UNTIED)
    (folder / MANIFEST_NAME).rename(folder / EXPORT_NAME)
    weights = load_file(base / "model.safetensors")
    cut = {name: w[list(KEPT)].clone() if name in UNTIED else w for name, w in weights.items()}
    save_file(cut, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each pair of models answers, in ids of the original vocabulary."""
    folder = tmp_path_factory.mktemp("draft-models")
    target, draft = save_target(folder / "target"), save_draft(folder / "draft")
    overlay = str(overlay_by_hand(folder / "pruned", target, UNTIED))
    pairs = {
        "originals": (str(target), draft),
        "overlays": (overlay, overlay_by_hand(folder / "pruned-draft", draft, UNTIED)),
        "export as draft": (overlay, export_by_hand(folder / "exported-draft", draft)),
        "overlay alone": (overlay, None),
    }
    jobs = [
        {
            "model": model,
            "prompts": PROMPTS
            if model == str(target)
            else [list(map(KEPT.index, p)) for p in PROMPTS],
            "tokens": TOKENS,
            "options": _options(drafting),
        }
        for model, drafting in pairs.values()
    ]
    found = dict(zip(pairs, ask("offline_jobs.py", jobs, folder), strict=True))
    for name, answer in found.items():
        assert "error" not in answer, (name, answer)
        if name != "originals":
            answer["ids"] = [[KEPT[i] for i in ids] for ids in answer["ids"]]
    return found


def _options(draft: Path | None) -> dict[str, Any]:
    if draft is None:
        return {}
    drafts = {"model": str(draft), "num_speculative_tokens": 2}
    return {"speculative_config": drafts, "disable_log_stats": False}


def test_the_pruned_pair_answers_as_the_originals(answers: dict[str, dict[str, Any]]) -> None:
    expected = answers["originals"]["ids"]
    assert len({*expected[0], *expected[1]}) > 4
    assert all(answer["ids"] == expected for answer in answers.values())


@pytest.mark.parametrize("name", ["overlays", "export as draft"])
def test_as_many_drafts_are_accepted(name: str, answers: dict[str, dict[str, Any]]) -> None:
    originals = answers["originals"]
    assert 0 < originals["accepted"] < originals["drafts"]
    counts = ("drafts", "accepted")
    assert [answers[name][key] for key in counts] == [originals[key] for key in counts]
