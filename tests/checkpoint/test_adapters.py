"""LoRA adapters fit a pruned model if they leave the vocabulary alone, in any of PEFT's forms."""

from pathlib import Path
from typing import Any

import pytest
from support.tiny_adapters import ATTENTION, save_adapter

from vllm_kprune.checkpoint.adapters import check_adapter
from vllm_kprune.errors import KPruneError


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear", "model.layers.*q_proj"])
def test_an_adapter_of_the_body_fits(targets: Any, tmp_path: Path) -> None:
    check_adapter(save_adapter(tmp_path / "a", {ATTENTION: (8, 8)}, target_modules=targets))


def test_modules_whose_names_only_resemble_the_vocabulary_fit(tmp_path: Path) -> None:
    names = {"model.embed_tokens_norm": (8, 8), "vision.patch_embed.lm_head_proj": (8, 8)}
    check_adapter(save_adapter(tmp_path / "a", names))


@pytest.mark.parametrize(
    "tensor",
    [
        "lm_head.lora_A.weight",
        "language_model.lm_head.lora_B.weight",
        "lm_head.base_layer.weight",
        "lm_head.weight",
        "model.embed_tokens.lora_embedding_A",
        "model.language_model.embed_tokens.lora_embedding_B",
        "model.embed_tokens.weight",
        "model.embed_tokens.token_adapter.trainable_tokens_delta",
    ],
)
def test_an_adapter_with_weights_of_the_vocabulary_is_refused(tensor: str, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a", {ATTENTION: (8, 8)}, {tensor: (4, 8)})
    with pytest.raises(KPruneError, match=r"changes the vocabulary .*serve the original") as caught:
        check_adapter(folder)
    assert tensor in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: embed_tokens"),
        ({"modules_to_save": ["model.lm_head"]}, "modules_to_save: model.lm_head"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules: lm_head"),
        ({"trainable_token_indices": [3, 4]}, "trainable_token_indices"),
    ],
)
def test_an_adapter_configured_for_the_vocabulary_is_refused(
    settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "a", {ATTENTION: (8, 8)}, **settings)
    with pytest.raises(KPruneError, match="changes the vocabulary") as caught:
        check_adapter(folder)
    assert named in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickled_adapter_is_refused_unread(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(KPruneError, match="pickled"):
        check_adapter(tmp_path)


def test_damaged_adapters_are_refused_on_one_line(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "a", {ATTENTION: (8, 8)})
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(KPruneError, match="not readable JSON"):
        check_adapter(folder)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 99)
    with pytest.raises(KPruneError, match="not a readable safetensors file"):
        check_adapter(folder)


def test_a_folder_without_an_adapter_is_left_to_vllm(tmp_path: Path) -> None:
    check_adapter(tmp_path)
    check_adapter(tmp_path / "nowhere")
