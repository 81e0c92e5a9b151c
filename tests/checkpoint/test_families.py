"""Families are found by architecture; one that is not known says how to add it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_architectures import ARCHITECTURES, NOT_SERVED

from vllm_kprune.checkpoint.base import open_base
from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.families import FAMILIES, REFUSED, find_family, with_implied_ids
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.sizes import Change, weight_sizes
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_a_family_is_found_by_its_architecture(architecture: str) -> None:
    assert find_family({"architectures": ["X", architecture]}, "x").architecture == architecture


def test_an_unknown_family_names_the_known_ones_and_the_table() -> None:
    with pytest.raises(KPruneError, match=r"family Novel \(known: Cohere.*checkpoint/families.py"):
        find_family({"architectures": ["Novel"]}, "config.json")


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_a_family_that_cannot_be_pruned_is_refused_with_the_reason(architecture: str) -> None:
    with pytest.raises(KPruneError, match=f"cannot prune {architecture}: [a-z]") as refused:
        find_family({"architectures": [architecture]}, "config.json")
    assert REFUSED[architecture] in str(refused.value) and "\n" not in str(refused.value)


def test_no_family_is_both_known_and_refused() -> None:
    assert not FAMILIES.keys() & REFUSED.keys()


def test_what_a_row_says_of_vllm_is_what_the_tests_serve() -> None:
    served = {tiny.architecture for name, tiny in ARCHITECTURES.items() if name not in NOT_SERVED}
    assert served == {name for name, family in FAMILIES.items() if not family.not_served}


def test_what_is_shown_and_what_is_assumed_are_told_apart() -> None:
    gemma, gpt, deepseek = (
        FAMILIES[name]
        for name in ("Gemma3ForCausalLM", "GptOssForCausalLM", "DeepseekV3ForCausalLM")
    )
    assert gemma.shown[1] == "published weights: Gemma-3 270M"
    assert gemma.assumed == (
        "other published weights than Gemma-3 270M behave as the tiny model does",
    )
    assert any("sparsify, heal, analyze" in one for one in gpt.assumed)
    assert any("MTP" in one for one in deepseek.assumed)


MTP = ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight")


def with_tensors(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """A tiny DeepSeek-V3 with further tensors of the embedding's shape, and all its tensors."""
    ARCHITECTURES["deepseek-v3"].save(folder)
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    shape = tensors["model.embed_tokens.weight"].shape
    draw = torch.Generator().manual_seed(1)
    tensors |= {name: torch.randn(shape, generator=draw) for name in names}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def test_embedding_and_head_of_mtp_layers_lose_the_same_rows(tmp_path: Path) -> None:
    tensors = with_tensors(tmp_path / "original", *MTP)
    profile = Profile(name="tiny", languages=("th",), genres=())
    manifest = build_overlay(str(tmp_path / "original"), profile, tmp_path / "pruned")
    rows = list(manifest.kept_rows)
    assert set(manifest.vocabulary_tensors) == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        *MTP,
    }
    assert len(rows) < manifest.original_rows
    export_overlay(tmp_path / "pruned", tmp_path / "exported")
    written = load_file(tmp_path / "exported" / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        cut = name in manifest.vocabulary_tensors
        assert torch.equal(written[name], tensor[rows] if cut else tensor), name


def test_what_mtp_layers_hold_is_counted_but_not_read_in_a_step(tmp_path: Path) -> None:
    with_tensors(tmp_path / "original", *MTP)
    base = open_base(tmp_path / "original")
    sizes = weight_sizes(base)
    matrix = base.rows * 64 * 4
    assert sizes.vocabulary_bytes == Change(4 * matrix)
    assert sizes.bytes.original - sizes.step_bytes.original == 3 * matrix


def test_an_embedding_that_the_family_is_not_known_to_have_is_refused(tmp_path: Path) -> None:
    with_tensors(tmp_path / "original", "model.second_embedding.weight")
    with pytest.raises(
        KPruneError, match=r"second_embedding.weight has the shape of the embedding"
    ):
        open_base(tmp_path / "original")


@pytest.mark.parametrize("value", [None, [], "LlamaForCausalLM", {}])
def test_a_config_without_architectures_is_refused(value: Any) -> None:
    with pytest.raises(KPruneError, match="no 'architectures'"):
        find_family({"architectures": value}, "config.json")


def test_architectures_of_another_type_are_refused() -> None:
    with pytest.raises(KPruneError, match="does not know the family"):
        find_family({"architectures": [{}, 1]}, "config.json")


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "lm_head.weight"),
    ],
)
def test_both_spellings_of_multimodal_gemma_are_known(embedding: str, head: str) -> None:
    family = FAMILIES["Gemma3ForConditionalGeneration"].spelled_in({embedding, head, "other"})
    assert (family.embedding, family.head) == (embedding, head)


IMPLIED = {"boi_token_index": 3, "eos_token_id": 2, "text_config": {"pad_token_id": 0}}


@pytest.mark.parametrize(
    ("config", "filled"),
    [
        ({}, {"boi_token_index": 3, "eos_token_id": 2, "text_config": {"pad_token_id": 0}}),
        (
            {"eos_token_id": None, "boi_token_id": 7, "text_config": {"a": 1}},
            {"eos_token_id": None, "boi_token_id": 7, "text_config": {"a": 1, "pad_token_id": 0}},
        ),
        (
            {"eos_token_id": [5], "text_config": {"pad_token_id": 6}},
            {"eos_token_id": [5], "boi_token_index": 3, "text_config": {"pad_token_id": 6}},
        ),
    ],
)
def test_ids_that_a_config_leaves_out_are_filled_in_and_no_other_is_touched(
    config: dict[str, Any], filled: dict[str, Any]
) -> None:
    assert with_implied_ids(config, IMPLIED, range(10)) == filled


def test_an_implied_id_that_the_tokenizer_lacks_stays_out() -> None:
    assert with_implied_ids({}, {"bos_token_id": 5, "eos_token_id": 255_001}, range(10)) == {
        "bos_token_id": 5
    }


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_implied_ids_and_tying_are_those_of_the_configuration_class(architecture: str) -> None:
    """What transformers assumes of a config.json that says nothing."""
    import transformers

    family = FAMILIES[architecture]
    config = getattr(transformers, architecture).config_class()
    text = config.get_text_config()
    assert text.tie_word_embeddings is family.ties_by_default
    named = dict(family.implied_ids)
    in_text = named.pop(family.text_config, named) if family.text_config else named
    assert {key: getattr(config, key) for key in named} == named
    ids = {key: getattr(text, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    assert {key: value for key, value in ids.items() if value is not None} == in_text
