"""Features and their subspace: LSAR's own steps, laws, a case by hand, folders against memory."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.tiny_architectures import ARCHITECTURES, BODIES, MIXTURES
from support.tiny_tokenizers import SENTENCES

from vllm_kprune.analyze import layers as layers_module
from vllm_kprune.analyze.features import Embeddings, compare_features, embed_prompts
from vllm_kprune.analyze.layers import FolderLayers, open_layers
from vllm_kprune.analyze.prompts import LanguagePrompt, make_prompts
from vllm_kprune.analyze.subspace import specific_basis, split
from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.run import sparsify_model
from vllm_kprune.tokenizer.encoder import load_encoder

Saved = Callable[[str], Path]
TEXTS = {"xx": SENTENCES[:3], "yy": SENTENCES[3:5]}


def algorithm_1(columns: Any, rank: int) -> Any:
    """LSAR as its authors write it: means as columns; gives M_s M_s^T."""
    ones = np.ones(columns.shape[1])
    mean = columns @ ones / len(ones)
    left, sizes, right = np.linalg.svd(columns - np.outer(mean, ones), full_matrices=False)
    low = np.outer(mean, ones) + left[:, :rank] * sizes[:rank] @ right[:rank]
    weights = np.linalg.pinv(low.T) @ ones
    common = weights / (weights @ weights)
    left, *_ = np.linalg.svd(low - np.outer(common, ones), full_matrices=False)
    return left[:, :rank] @ left[:, :rank].T


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_projection_is_that_of_both_steps_of_the_paper(rank: int) -> None:
    means = np.random.default_rng(0).normal(size=(4, 12)) + 3
    basis = specific_basis(means, rank)
    assert basis.shape == (12, rank)
    assert basis @ basis.T == pytest.approx(algorithm_1(means.T, rank), abs=1e-9)


sizes = st.floats(-10, 10)


@given(arrays(np.float64, (3, 6), elements=sizes), arrays(np.float64, (5, 6), elements=sizes))
@pytest.mark.slow
def test_laws_of_the_projection(means: Any, embeddings: Any) -> None:
    basis = specific_basis(means)
    agnostic, specific = split(embeddings, basis)
    assert agnostic + specific == pytest.approx(embeddings)
    again = split(specific, basis)
    assert again[1] == pytest.approx(specific, abs=1e-9)  # idempotent
    assert again[0] == pytest.approx(np.zeros_like(specific), abs=1e-9)
    assert (agnostic * specific).sum(axis=1) == pytest.approx(np.zeros(5), abs=1e-6)
    # With all dimensions, the languages' means have the same agnostic part.
    common, _ = split(means, basis)
    assert common == pytest.approx(np.broadcast_to(common[0], common.shape), abs=1e-6)


def test_a_case_worked_out_by_hand() -> None:
    """Two languages, whose means differ in the first of two directions.

    Original: a = (1, 1), (3, 1); b = (-2, 1). Pruned: a moves by (3, 0) and (0, 4), b by (3, 4).
    The specific part is the first direction, the agnostic part the second.
    """
    original = Embeddings(("a", "a", "b"), np.array([[[1, 1], [3, 1], [-2, 1]]], np.float32))
    moves = np.array([[[3, 0], [0, 4], [3, 4]]], np.float32)
    change = compare_features(original, Embeddings(original.languages, original.values + moves))
    (agnostic,), (specific,) = change.agnostic, change.specific
    assert (change.languages, change.rank) == (("a", "b"), 1)
    assert agnostic.difference == pytest.approx((2, 4)) and agnostic.size == pytest.approx((1, 1))
    assert specific.difference == pytest.approx((1.5, 3))
    assert specific.size == pytest.approx((2, 2))
    assert specific.relative == pytest.approx((0.75, 1.5))
    # Norms 0 and 4: a standard deviation of sqrt(8), over two prompts.
    assert agnostic.standard_error[0] == pytest.approx(math.sqrt(8) / math.sqrt(2))
    assert agnostic.standard_error[1] is None
    assert change.document()["specific"][0]["relative"] == pytest.approx((0.75, 1.5))


def test_changes_that_cancel_out_are_seen_by_norms_and_not_by_means() -> None:
    values = np.array([[[0, 1], [0, 1], [4, 1]]], np.float32)
    moves = np.array([[[0, 2], [0, -2], [0, 0]]], np.float32)
    languages = ("a", "a", "b")
    change = compare_features(Embeddings(languages, values), Embeddings(languages, values + moves))
    assert change.agnostic[0].difference == pytest.approx((2, 0))
    assert change.agnostic[0].mean_difference == pytest.approx((0, 0))


def test_bad_input() -> None:
    one = Embeddings(("a", "a"), np.zeros((1, 2, 3), np.float32))
    with pytest.raises(KPruneError, match="texts of at least two languages"):
        compare_features(one, one)
    with pytest.raises(KPruneError, match="given other prompts"):
        compare_features(one, Embeddings(("a", "b"), one.values))
    with pytest.raises(KPruneError, match="a rank of 2 with 2 languages: expected 1 to 1"):
        specific_basis(np.zeros((2, 3)), 2)


def prompts_of(folder: Path, length: int = 20) -> list[LanguagePrompt]:
    return make_prompts(load_encoder(folder), open_layers(folder, "cpu").config, TEXTS, length)


def hidden_states(folder: Path, prompts: list[LanguagePrompt]) -> Any:
    """Means over the text's tokens of what transformers calls hidden states: [layers, prompts].

    Its last one is after the final norm, so only the others can be compared.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        with torch.no_grad():
            states = model(
                input_ids=torch.from_numpy(prompt.ids)[None], output_hidden_states=True
            ).hidden_states
        found.append([state[0, prompt.begin :].mean(0).numpy() for state in states[1:-1]])
    return model, np.array(found).swapaxes(0, 1)


DENSE = [name for name in ARCHITECTURES if name not in MIXTURES]


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.slow
def test_embeddings_are_mean_hidden_states(saved: Saved, name: str) -> None:
    prompts = prompts_of(saved(name))
    model, states = hidden_states(saved(name), prompts)
    found = embed_prompts(str(saved(name)), prompts)
    assert found.values[:-1] == pytest.approx(states, rel=1e-3, abs=1e-4)
    assert found.of("yy").shape == (2, 2, 64)
    if name in DENSE:
        memory = embed_prompts(model, prompts)
        assert memory.languages == found.languages
        assert memory.values == pytest.approx(found.values, rel=1e-3, abs=1e-4)


def test_prompts_pass_in_groups_that_fit_into_memory(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(saved("gemma3-text"))
    whole = embed_prompts(saved("gemma3-text"), prompts)
    monkeypatch.setattr(layers_module, "_MOST_HIDDEN_BYTES", 64 * 4 * 25)
    assert len(list(layers_module._groups(list(enumerate(prompts)), 64 * 4))) > 2
    shares: list[float] = []
    parts = embed_prompts(
        saved("gemma3-text"), prompts, progress=lambda step, share: shares.append(share)
    )
    assert parts.values == pytest.approx(whole.values, rel=1e-5)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_pruned_model_changes_and_the_same_model_does_not(saved: Saved, tmp_path: Path) -> None:
    folder = tmp_path / "sparse"
    options = SparsifyOptions(method="magnitude", sparsity=0.3, device="cpu")
    sparsify_model(saved("llama-3.2"), folder, options)
    prompts = prompts_of(folder)
    original, pruned = embed_prompts(saved("llama-3.2"), prompts), embed_prompts(folder, prompts)
    same = compare_features(original, original)
    assert all(set(part.difference) == {0.0} for part in same.agnostic + same.specific)
    change = compare_features(original, pruned)
    assert all(0 < one < 3 for part in change.agnostic for one in part.relative)


def test_a_damaged_model_is_refused(saved: Saved) -> None:
    source = FolderLayers(saved("llama-3.2"), "cpu")
    prompts = [LanguagePrompt("xx", np.array([1, 2, 3]), 1)]

    class Poison:
        def attach(self, layer: int, module: Any) -> list[Any]:
            return [module.register_forward_hook(lambda m, a, output: output * float("nan"))]

        def begin(self, number: int, prompt: LanguagePrompt) -> None: ...
        def passed(self, layer: int, hidden: torch.Tensor) -> None: ...

    with pytest.raises(KPruneError, match=r"layer 0 of llama-3\.2 gives NaN or infinity"):
        source.walk(prompts, Poison())


def test_prompts_begin_and_end_where_they_should(saved: Saved) -> None:
    encoder = load_encoder(saved("gemma3-text"))
    config: Any = SimpleNamespace()
    prompts = make_prompts(encoder, config, {"xx": [SENTENCES[0], ""], "yy": "a"}, 8)
    assert [prompt.language for prompt in prompts] == ["xx", "yy"]
    whole = encoder.encode(SENTENCES[0]).ids
    assert prompts[0].ids.tolist() == whole[:8] and prompts[0].begin == 1
    with pytest.raises(KPruneError, match="the text of xx is empty"):
        make_prompts(encoder, config, {"xx": [""]}, 8)
    with pytest.raises(KPruneError, match="a prompt of 1 tokens has no room"):
        make_prompts(encoder, config, {"xx": ["a"]}, 1)
