"""Neurons: counts against transformers' own modules, LAPE by hand, laws."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.tiny_architectures import BODIES
from support.tiny_tokenizers import SENTENCES
from torch import nn

from vllm_kprune.analyze.lape import compare_neurons, lape, specific_neurons
from vllm_kprune.analyze.layers import open_layers
from vllm_kprune.analyze.neurons import NeuronActivity, NeuronSite, count_active
from vllm_kprune.analyze.prompts import LanguagePrompt, make_prompts
from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.encoder import load_encoder

Saved = Callable[[str], Path]


def dense_counts(model: Any, prompts: list[LanguagePrompt]) -> Any:
    """For how many tokens each output of each activation function is positive."""
    seen: list[Any] = []
    for layer in model.get_decoder().layers:
        layer.mlp.act_fn.register_forward_hook(lambda m, a, output: seen.append(output))
    counts = 0
    for prompt in prompts:
        seen.clear()
        with torch.no_grad():
            model(input_ids=torch.from_numpy(prompt.ids)[None])
        counts = counts + np.array([(one[0, prompt.begin :] > 0).sum(0).numpy() for one in seen])
    return counts


def expert_counts(model: Any, prompts: list[LanguagePrompt]) -> Any:
    """The same for experts, from their fused weights: [layers, experts, neurons]."""
    seen: list[Any] = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda m, args: seen.append((m, *args)))
    counts: Any = 0
    for prompt in prompts:
        seen.clear()
        with torch.no_grad():
            model(input_ids=torch.from_numpy(prompt.ids)[None])
        active = []
        for experts, hidden, chosen, _ in seen:
            gates, _ = experts.gate_up_proj.chunk(2, dim=1)
            positive = torch.nn.functional.silu(torch.einsum("th,enh->etn", hidden, gates)) > 0
            used = (chosen[:, None, :] == torch.arange(len(gates))[None, :, None]).any(-1).T
            active.append((positive & used[:, :, None])[:, prompt.begin :].sum(1).numpy())
        counts = counts + np.array(active)
    return counts


# The others have experts beside dense layers, shared ones, or (Phi) gate and up in one matrix.
COUNTED = [one for one in BODIES if one.id not in ("deepseek-v3", "qwen3-next", "phi4")]


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_those_of_the_whole_model(saved: Saved, name: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = saved(name)
    texts = {"xx": SENTENCES[:2], "yy": SENTENCES[2:3]}
    prompts = make_prompts(load_encoder(folder), open_layers(folder, "cpu").config, texts, 24)
    activity = count_active(folder, prompts)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    moe = name == "qwen3-moe"
    memory = None if moe else count_active(model, prompts)
    count = expert_counts if moe else dense_counts
    for number, language in enumerate(("xx", "yy")):
        mine = [prompt for prompt in prompts if prompt.language == language]
        expected = count(model, mine).reshape(-1)
        # Rounding may turn over a sum that is almost 0.
        differing = np.abs(activity.active[number] - expected)
        assert differing.max() <= 1 and differing.sum() <= 2
        assert memory is None or np.abs(memory.active[number] - expected).sum() <= 2
        assert activity.tokens[number] == sum(len(one.ids) - one.begin for one in mine)
    assert memory is None or memory.sites == activity.sites
    places = [site.place for site in activity.sites if site.layer == 1]
    assert places == ([f"mlp.experts.{n}" for n in range(4)] if moe else ["mlp"])
    assert activity.probability().max() <= 1
    assert len(activity.layers()) == activity.active.shape[1]


def test_lape_worked_out_by_hand() -> None:
    """Shares 1/2 and 1/2: ln 2. 3/4 and 1/4: 3/4 ln 4/3 + 1/4 ln 4. One language: 0."""
    probability = np.array([[0.4, 0.3, 0.2, 0.0], [0.4, 0.1, 0.0, 0.0]])
    found = lape(probability)
    assert found[:3] == pytest.approx(
        [math.log(2), 0.75 * math.log(4 / 3) + 0.25 * math.log(4), 0.0]
    )
    assert math.isnan(found[3])


@given(arrays(np.int64, (4, 9), elements=st.integers(0, 50)))
def test_bounds_of_the_entropy(active: Any) -> None:
    probability = active / 50
    found = lape(probability)
    silent = probability.sum(axis=0) == 0
    assert np.array_equal(np.isnan(found), silent)
    assert np.all(found[~silent] >= 0) and np.all(found[~silent] <= math.log(4) + 1e-12)
    assert lape(probability[::-1])[~silent] == pytest.approx(found[~silent])
    assert lape(probability / 2)[~silent] == pytest.approx(found[~silent], abs=1e-6)


def test_specific_neurons_worked_out_by_hand() -> None:
    """The 75 % quantile of the 8 probabilities is 0.4875. Neuron 0 is above it for the first
    language, neuron 2 for the second; their entropies are 0.637 and 0.673 nats."""
    probability = np.array([[0.9, 0.1, 0.4, 0.0], [0.45, 0.1, 0.6, 0.3]])
    own = specific_neurons(probability, share=0.25, quantile=0.75)
    assert [list(one) for one in own] == [[0], []]
    own = specific_neurons(probability, share=0.5, quantile=0.75)
    assert [list(one) for one in own] == [[0], [2]]


def activity(active: Any, tokens: tuple[int, ...] = (10, 10)) -> NeuronActivity:
    sites = (NeuronSite(0, "mlp", 2), NeuronSite(1, "mlp", 2))
    return NeuronActivity(("ko", "en"), tokens, sites, np.array(active))


def test_a_comparison_worked_out_by_hand() -> None:
    """ko is at or above the mean for neurons 0 (entropy 0) and 1 (ln 2), en for 1, 2; 3 is silent.

    Above the 95 % quantile of the 8 probabilities (0.9) is none but neuron 0 with 1.0, ko's own.
    """
    before = activity([[10, 5, 2, 0], [0, 5, 6, 0]])
    after = activity([[4, 6, 0, 0], [0, 4, 0, 0]])
    change = compare_neurons(before, after, groups=2)
    assert (change.neurons, change.silent_before, change.silent_after) == (4, 1, 2)
    first, second = change.languages["ko"].groups
    assert (first.neurons, first.entropy_before, first.before, first.after) == (1, 0, 1, 0.4)
    assert (second.before, second.after) == (0.5, 0.6)
    assert second.entropy_before == pytest.approx(math.log(2))
    own = change.languages["ko"].specific
    assert (own.by_layer, own.neurons, own.before, own.after) == ((1, 0), 1, 1.0, 0.4)
    assert change.languages["en"].specific.neurons == 0
    first, second = change.languages["en"].groups
    assert (first.before, first.after, first.entropy_after) == (0.6, 0.0, None)  # neuron 2
    assert json.loads(json.dumps(change.document(), allow_nan=False))["neurons"] == 4
    (both,) = compare_neurons(before, after, groups=1).languages["ko"].groups
    assert (both.before, both.after) == (0.75, 0.5)
    assert both.before_margin == pytest.approx(1.959964 * math.sqrt(0.125) / math.sqrt(2))


def test_nothing_changes_if_nothing_was_pruned() -> None:
    one = activity([[9, 5, 2, 0], [1, 5, 4, 0]])
    for language in compare_neurons(one, one).languages.values():
        for group in language.groups:
            assert (group.before, group.entropy_before) == (group.after, group.entropy_after)


def test_bad_input(saved: Saved) -> None:
    one = activity([[9, 5, 2, 0], [1, 5, 4, 0]])
    with pytest.raises(KPruneError, match="given other prompts, or have other layers"):
        compare_neurons(one, activity(one.active, (10, 11)))
    alone = NeuronActivity(("ko",), (10,), one.sites, one.active[:1])
    with pytest.raises(KPruneError, match="texts of at least two languages"):
        compare_neurons(alone, alone)

    class Layer(nn.Module):
        """Without a gate, as in GPT-2."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer()])
            self.config: Any = type("Config", (), {"get_text_config": lambda self: self})()
            self.embedding = nn.Embedding(2, 2)

        def get_decoder(self) -> nn.Module:
            return self

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

    with pytest.raises(KPruneError, match="layer 0 has no gated feed-forward network"):
        count_active(Model(), [LanguagePrompt("ko", np.array([0, 1]), 1)])
