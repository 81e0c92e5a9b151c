"""Tiny models of the known classes in vLLM: the pruned one answers as the masked original.

So does the original with a pruned head, in the ids of the original.

The classes here differ in how vLLM loads their vocabulary: tied and untied, one shard and several,
experts, Cohere's scaled logits, a text model inside a multimodal one. The live servers serve the
text model of Gemma-3.
"""

import importlib.util
import json
import os
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.forks import ask
from support.offline_pairs import PROFILE, TEXTS, Pair, make_pair, masked_greedy
from support.run_limits import EXHAUSTIVE
from support.tiny_adapters import ATTENTION, save_adapter
from support.tiny_architectures import ARCHITECTURES, NOT_SERVED

from vllm_kprune.checkpoint.head import head_rows
from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.profile import load_profile

pytestmark = [pytest.mark.server, pytest.mark.slow]

SERVED = ("qwen3-moe", "llama-3.1", "aya-expanse", "gemma3-multimodal")
# Llama's engines take LoRA adapters too: the first fits the body, the second changes the head.
ADAPTED = "llama-3.1"
MODULES = ({ATTENTION: (64, 64)}, {ATTENTION: (64, 64), "lm_head": (64, 9)})
LORA = {"options": {"enable_lora": True}}
# vLLM's own class needs torchvision, which the CPU build here lacks.
WITHOUT_TORCHVISION = {"model_impl": "transformers", "skip_tokenizer_init": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "gemma3-multimodal": {} if importlib.util.find_spec("torchvision") else WITHOUT_TORCHVISION
}

CPUS = sorted(os.sched_getaffinity(0))
TWO_RANKS = {
    "options": {"tensor_parallel_size": 2},
    "environment": {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, CPUS[:2]))},
}
TOKENS = 32  # long enough for a tiny model to repeat itself, which n-gram drafts need
# What an engine of its own would repeat: untied heads are Llama's, drafts are EAGLE's, and heads in
# two ranks are those with several profiles.
OTHERS = tuple(name for name in ARCHITECTURES if name not in (*SERVED, *NOT_SERVED))
REPEATED = (
    *OTHERS,
    *(f"{name} head" for name in ("qwen3-moe", *OTHERS)),
    *("n-gram", "draft model", "llama-3.1 head in two ranks", "aya-expanse head in two ranks"),
)


def with_repeated(*names: str) -> list[Any]:
    """Cases as parameters of a test."""
    return [
        pytest.param(name, marks=pytest.mark.exhaustive if name in REPEATED else [])
        for name in names
    ]


def moved_base_job(pair: Pair, folder: Path) -> dict[str, Any]:
    """An overlay whose base was moved, as the configuration says."""
    base, overlay = copytree(pair.original, folder / "base"), folder / "overlay"
    profile = load_manifest(pair.overlay).profile
    build_overlay(str(base), profile, overlay, corpora=[pair.original.parent / "corpus.txt"])
    options = {"additional_config": {"kprune": {"base": str(base.rename(folder / "moved"))}}}
    return {"model": str(overlay), "prompts": pair.prompts, "options": options}


def head_job(pair: Pair, **more: Any) -> dict[str, Any]:
    """The original with a pruned head: it keeps the tokens that the overlay keeps."""
    folder = pair.original.parent
    profile = folder / "head.json"  # JSON is YAML, too
    profile.write_text(
        json.dumps({"languages": PROFILE.languages, "genres": [], "target_size": len(pair.kept)})
    )
    ours = {"head": str(profile), "corpus": str(folder / "corpus.txt")}
    options = {"additional_config": {"kprune": ours}, **more.pop("options", {})}
    prompts = [pair.original_ids(ids) for ids in pair.prompts]
    return {"model": str(pair.original), "prompts": prompts, "options": options, **more}


def mixed_jobs(pair: Pair, **more: Any) -> list[dict[str, Any]]:
    """Requests with three profiles in one batch of a pruned head; the same masked one by one."""
    job = head_job(pair, **more)
    ours = job["options"]["additional_config"]["kprune"]
    small = pair.original.parent / "small.json"
    given = json.loads(Path(ours["head"]).read_text())
    small.write_text(json.dumps({**given, "target_size": len(pair.kept) - 20}))
    ours["head"] = [str(small), ours["head"], "original"]
    profiles = [load_profile(name) for name in ours["head"]]
    rows = head_rows(pair.original, profiles, corpora=[Path(ours["corpus"])])
    assert rows.tokens[0] == len(pair.kept) - 20 and len(rows.ids) == rows.tokens[2]
    # One that asks for nothing gets the first profile.
    asked = [(0, None), *((n, {"kprune_head": name}) for n, name in enumerate(rows.profiles))]
    prompts, each, masked = [], [], []
    for prompt in job["prompts"]:
        for number, extra in asked:
            prompts.append(prompt)
            each.append({"extra_args": extra})
            allowed = None if number == 2 else rows.kept(number).tolist()
            masked.append({"allowed_token_ids": allowed})
    # Neither drafts nor ranks change an answer.
    original = {"model": job["model"], "prompts": prompts, "each": masked}
    return [
        {**job, "prompts": prompts, "each": each},
        {**original, "tokens": job.get("tokens", 16)},
    ]


def drafters(pair: Pair, eagle: Path) -> dict[str, dict[str, Any]]:
    """Ways of speculative decoding; the drafter is an original, and knows of no profile."""
    few = {"num_speculative_tokens": 2}
    return {
        "n-gram": {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1, **few},
        "draft model": {"model": str(pair.original), "method": "draft_model", **few},
        "eagle": {"model": str(eagle), "method": "eagle", **few},
    }


def draft_head_jobs(pair: Pair, eagle: Path) -> dict[str, list[dict[str, Any]]]:
    """The original with a drafter whose head is pruned: its own, and one that is the target's."""
    job = head_job(pair, tokens=TOKENS)
    ours = job["options"]["additional_config"]["kprune"]
    ours["draft_head"] = ours.pop("head")
    drafts = drafters(pair, eagle)
    cases: dict[str, list[dict[str, Any]]] = {}
    for name in ("draft model", "eagle"):
        options = {"speculative_config": drafts[name], "disable_log_stats": False}
        cases[f"{name}, draft head"] = [{**job, "options": {**job["options"], **options}}]
    return cases


def save_eagle(folder: Path, original: Path) -> Path:
    """An EAGLE drafter: a layer of the model, and a matrix for embedding and hidden state."""
    config = json.loads((original / "config.json").read_text())
    index = json.loads((original / "model.safetensors.index.json").read_text())["weight_map"]
    begin, weights = "model.layers.0.", {}
    for name, file in index.items():
        # The first layer of a drafter has no norm before it.
        if name.startswith(begin) and "input_layernorm" not in name:
            with safe_open(original / file, "pt") as stored:
                weights[name.removeprefix("model.")] = stored.get_tensor(name)
    hidden = config["hidden_size"]
    weights["fc.weight"] = torch.eye(hidden, dtype=torch.float32).repeat(1, 2) / 2
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def pairs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Pair]:
    """Each model, and its overlay."""
    others = OTHERS if request.config.getoption(EXHAUSTIVE) else ()
    folders = {name: tmp_path_factory.mktemp(name) for name in (*SERVED, *others)}
    return {
        name: make_pair(ARCHITECTURES[name].save(folder / "original"), folder)
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def answers(
    request: pytest.FixtureRequest,
    pairs: dict[str, Pair],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[dict[str, Any]]]:
    """The answers of overlays and originals: of each model, and of Llama in more settings."""
    folder = tmp_path_factory.mktemp("jobs")
    adapters = [str(save_adapter(folder / f"adapter{n}", m)) for n, m in enumerate(MODULES)]
    more: dict[str, Any] = {name: {"options": OPTIONS.get(name, {})} for name in pairs}
    more[ADAPTED] = {**LORA, "adapters": adapters}
    cases = {name: pair.jobs(**more[name]) for name, pair in pairs.items()}
    for name, pair in pairs.items():
        cases[f"{name} head"] = [head_job(pair, **more[name])]
    eagle = save_eagle(folder / "eagle", pairs["llama-3.1"].original)
    cases |= draft_head_jobs(pairs["llama-3.1"], eagle)
    cases["moved"] = [moved_base_job(pairs["llama-3.1"], folder)]
    for name, drafts in drafters(pairs["llama-3.1"], eagle).items():
        options = {"speculative_config": drafts, "disable_log_stats": False}
        jobs = pairs["llama-3.1"].jobs(options=options, tokens=TOKENS)[1:]
        cases[name] = [head_job(pairs["llama-3.1"], options=options, tokens=TOKENS), *jobs]
        if name == "n-gram":
            cases["profiles, drafts"] = mixed_jobs(
                pairs["llama-3.1"], options=options, tokens=TOKENS
            )
    if len(CPUS) > 1:
        cases["profiles, two ranks"] = mixed_jobs(pairs["aya-expanse"], **TWO_RANKS)
        cases["two ranks"] = pairs["llama-3.1"].jobs(**TWO_RANKS)[:1]
        for name in ("llama-3.1", "aya-expanse"):
            cases[f"{name} head in two ranks"] = [head_job(pairs[name], **TWO_RANKS)]
    if not request.config.getoption(EXHAUSTIVE):
        cases = {name: jobs for name, jobs in cases.items() if name not in REPEATED}
    found = iter(ask("offline_jobs.py", [job for jobs in cases.values() for job in jobs], folder))
    return {name: [next(found) for _ in jobs] for name, jobs in cases.items()}


@pytest.mark.parametrize("name", with_repeated(*SERVED, *OTHERS))
def test_an_overlay_answers_as_the_original_with_all_other_tokens_masked(
    name: str, pairs: dict[str, Pair], answers: dict[str, list[dict[str, Any]]]
) -> None:
    pruned, original = answers[name]
    assert "error" not in pruned and "error" not in original, (pruned, original)
    assert len({tuple(ids) for ids in original["ids"]}) == len(TEXTS)
    assert [pairs[name].original_ids(ids) for ids in pruned["ids"]] == original["ids"]


@pytest.mark.parametrize("case", with_repeated(*(f"{name} head" for name in (*SERVED, *OTHERS))))
def test_a_pruned_head_answers_as_the_original_with_all_other_tokens_masked(
    case: str, answers: dict[str, list[dict[str, Any]]]
) -> None:
    """Untied heads (Llama, Qwen3) and tied ones; ids, prompts and answers are the original's."""
    (head,), original = answers[case], answers[case.removesuffix(" head")][1]
    assert "error" not in head and "error" not in original, (head, original)
    assert head["ids"] == original["ids"]


def test_a_pruned_head_goes_with_lora_adapters_of_the_body_only(
    answers: dict[str, list[dict[str, Any]]],
) -> None:
    body, head = answers[f"{ADAPTED} head"][0]["adapted"]
    assert "error" not in body, body
    assert body["ids"] == answers[ADAPTED][1]["adapted"][0]["ids"]
    assert "changes the vocabulary (target_modules: lm_head)" in head["error"]


@pytest.mark.parametrize("drafts", with_repeated("n-gram", "draft model", "eagle"))
def test_a_pruned_head_accepts_as_many_drafts_as_the_masked_original(
    drafts: str, answers: dict[str, list[dict[str, Any]]]
) -> None:
    head, original = answers[drafts]
    assert "error" not in head and "error" not in original, (head, original)
    assert head["ids"] == original["ids"]
    assert head["drafts"] > 0 and head["accepted"] >= original["accepted"]


@pytest.mark.parametrize("drafter", ["draft model", "eagle"])
def test_a_pruned_draft_head_changes_no_answer(
    drafter: str, answers: dict[str, list[dict[str, Any]]]
) -> None:
    (drafted,), (_, plain) = answers[f"{drafter}, draft head"], answers["profiles, drafts"]
    assert "error" not in drafted and "error" not in plain, (drafted, plain)
    assert drafted["ids"] == plain["ids"][3::4]  # of requests without a mask
    if drafter == "draft model":
        # The drafter is the model itself, so a draft is wrong only where its token is not kept.
        assert 0 < drafted["accepted"] < drafted["drafts"]


@pytest.mark.parametrize("case", ["drafts", "two ranks"])
def test_requests_with_several_profiles_answer_as_the_original_masked_for_each(
    case: str, answers: dict[str, list[dict[str, Any]]]
) -> None:
    """An untied head with n-gram drafts, and a tied one in two ranks."""
    if f"profiles, {case}" not in answers:
        pytest.skip("vLLM's tensor parallel needs a CPU for each rank")
    mixed, masked = answers[f"profiles, {case}"]
    assert "error" not in mixed and "error" not in masked, (mixed, masked)
    assert mixed["ids"] == masked["ids"]
    # Without a choice as with the first profile, and otherwise than with the others.
    assert mixed["ids"][0::4] == mixed["ids"][1::4]
    assert len({str(mixed["ids"][n::4]) for n in (1, 2, 3)}) == 3


@pytest.mark.skipif(len(CPUS) < 2, reason="vLLM's tensor parallel needs a CPU for each rank")
@pytest.mark.parametrize(
    "case", with_repeated("llama-3.1 head in two ranks", "aya-expanse head in two ranks")
)
def test_a_pruned_head_is_shared_by_tensor_parallel_ranks(
    case: str, answers: dict[str, list[dict[str, Any]]]
) -> None:
    (head,), original = answers[case], answers[case.removesuffix(" head in two ranks")][1]
    assert "error" not in head, head
    assert head["ids"] == original["ids"]


def test_an_overlay_whose_base_was_moved_answers_as_the_masked_original_in_transformers(
    pairs: dict[str, Pair], answers: dict[str, list[dict[str, Any]]]
) -> None:
    pair, (moved,) = pairs["llama-3.1"], answers["moved"]
    assert "error" not in moved, moved
    expected = masked_greedy(pair, len(moved["ids"][0]))
    assert [pair.original_ids(ids) for ids in moved["ids"]] == expected


def test_a_lora_adapter_of_the_original_does_the_same_to_the_overlay(
    pairs: dict[str, Pair], answers: dict[str, list[dict[str, Any]]]
) -> None:
    pruned, original = (one["adapted"][0] for one in answers[ADAPTED])
    assert "error" not in pruned and "error" not in original, (pruned, original)
    assert [pairs[ADAPTED].original_ids(ids) for ids in pruned["ids"]] == original["ids"]
    assert original["ids"] != answers[ADAPTED][1]["ids"]


def test_a_lora_adapter_of_the_head_is_refused_with_the_reason(
    answers: dict[str, list[dict[str, Any]]],
) -> None:
    pruned = answers[ADAPTED][0]["adapted"][1]
    assert pruned["error"].startswith("RequestRefused: LoRA adapter ")
    assert "changes the vocabulary (target_modules: lm_head)" in pruned["error"]


@pytest.mark.skipif(len(CPUS) < 2, reason="vLLM's tensor parallel needs a CPU for each rank")
def test_an_overlay_in_two_tensor_parallel_ranks_answers_as_the_masked_original(
    pairs: dict[str, Pair], answers: dict[str, list[dict[str, Any]]]
) -> None:
    """The original in one rank: in float32 this model has no ties, and two give the same ids."""
    (pruned,), original = answers["two ranks"], answers["llama-3.1"][1]
    assert "error" not in pruned and "error" not in original, (pruned, original)
    assert len(pairs["llama-3.1"].kept) % 2 == 1  # the ranks hold different numbers of rows
    assert [pairs["llama-3.1"].original_ids(ids) for ids in pruned["ids"]] == original["ids"]
