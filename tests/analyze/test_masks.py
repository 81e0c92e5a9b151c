"""Masks and their similarity: a case by hand, laws, folders against models in memory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vllm_kprune.analyze.mask_similarity import compare_masks
from vllm_kprune.analyze.masks import FolderMasks, MatrixName, PackedMasks, pack_zeros
from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.run import sparsify_model

Saved = Callable[[str], Path]
UP, DOWN = MatrixName(0, "mlp.up_proj"), MatrixName(1, "mlp.down_proj")


def masked(name: str, language: str, **matrices: Any) -> PackedMasks:
    """Masks of matrices `up` and `down`, whose zeros are where the numbers are."""
    weights = {
        {"up": UP, "down": DOWN}[key]: torch.tensor(values) for key, values in matrices.items()
    }
    return PackedMasks(
        name,
        (language,) if language else (),
        {matrix: tuple(values.shape) for matrix, values in weights.items()},
        {matrix: pack_zeros(values) for matrix, values in weights.items()},
    )


def test_a_case_worked_out_by_hand() -> None:
    """Zeros of `up`: {0, 1}, {1, 2}, {1, 2}; of `down`: {0}, {0}, {1}."""
    similarity = compare_masks(
        [
            masked("k0", "ko", up=[[0, 0, 1, 1]], down=[[0.0, 1.0]]),
            masked("k1", "ko", up=[[1, 0, 0, 1]], down=[[-0.0, 1.0]]),
            masked("d0", "de", up=[[1, 0, 0, 1]], down=[[1.0, 0.0]]),
        ]
    )
    assert [model.sparsity for model in similarity.models] == [0.5, 0.5, 0.5]
    first, second, third = similarity.pairs  # k0-k1, k0-d0, k1-d0
    assert first.iou(kind="mlp.up_proj") == pytest.approx(1 / 3)
    assert first.iou(layer=1) == 1.0
    assert first.iou() == pytest.approx(2 / 4)
    assert (second.iou(), third.iou()) == pytest.approx((1 / 5, 2 / 4))
    assert similarity.iou("ko", "ko") == pytest.approx(2 / 4)
    assert similarity.iou("ko", "de") == similarity.iou("de", "ko") == pytest.approx(0.35)
    assert similarity.iou("de", "ko", layer=1) == 0.0
    assert similarity.iou("de", "de") is None
    # By chance, 2 x 2 / 4 and 1 x 1 / 2 zeros of each pair are in both.
    assert first.chance() == pytest.approx(1.5 / 4.5)
    found = similarity.document()
    assert found["languages"]["names"] == ("de", "ko")
    assert json.loads(json.dumps(found))["pairs"][0]["by_layer"] == {"0": 1 / 3, "1": 1.0}


masks = arrays(np.int8, (3, 5), elements=st.integers(0, 1))


@given(masks, masks)
def test_laws(first: Any, second: Any) -> None:
    first[0, 0] = second[0, 0] = 0  # both have zeros
    one, two = masked("a", "ko", up=first), masked("b", "de", up=second)
    (pair,) = compare_masks([one, two]).pairs
    (turned,) = compare_masks([two, one]).pairs
    assert pair.iou() == turned.iou()
    union = ((first == 0) | (second == 0)).sum()
    assert pair.iou() == pytest.approx(((first == 0) & (second == 0)).sum() / union)
    assert compare_masks([one, one]).pairs[0].iou() == 1.0
    assert 0 <= pair.iou() <= 1 and 0 <= pair.chance() <= 1


def test_independent_masks_are_as_alike_as_chance_says() -> None:
    random = np.random.default_rng(0)
    made = [
        masked(str(share), "ko", up=(random.random((400, 400)) > share).astype(np.int8))
        for share in (0.5, 0.3)
    ]
    (pair,) = compare_masks(made).pairs
    assert pair.iou() == pytest.approx(0.15 / 0.65, abs=0.01)
    assert pair.chance() == pytest.approx(0.15 / 0.65, abs=0.01)


@pytest.mark.parametrize("name", ["gemma3-multimodal", "qwen3-moe"])
def test_masks_of_folders(saved: Saved, name: str, tmp_path: Path) -> None:
    """Half of the zeros of 0.5 are those of 0.25, since magnitude orders the weights."""
    folders = []
    for sparsity in (0.5, 0.25):
        folders.append(tmp_path / str(sparsity))
        options = SparsifyOptions(method="magnitude", sparsity=sparsity, device="cpu")
        record = sparsify_model(saved(name), folders[-1], options)
    similarity = compare_masks([FolderMasks(folder) for folder in folders])
    assert len(FolderMasks(folders[0]).shapes) == len(record["matrices"])
    assert [model.sparsity for model in similarity.models] == pytest.approx([0.5, 0.25], abs=0.01)
    assert similarity.pairs[0].iou() == pytest.approx(0.5, abs=0.01)
    assert similarity.layers == (0, 1)
    experts = "mlp.experts." if name == "qwen3-moe" else "mlp."
    assert f"{experts}down_proj" in similarity.kinds and len(similarity.kinds) == 7


def test_a_model_in_memory_has_the_masks_of_its_folder(saved: Saved, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sparse"
    sparsify_model(saved("gemma3-text"), folder, SparsifyOptions(method="magnitude", device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    PackedMasks.of_model(model, "memory", ("ko",)).save(tmp_path / "ko.masks")
    loaded = PackedMasks.load(tmp_path / "ko.masks")
    assert (loaded.name, loaded.languages) == ("memory", ("ko",))
    similarity = compare_masks([loaded, FolderMasks(folder)])
    assert similarity.pairs[0].iou() == 1.0
    assert all(overlap.both == overlap.first for overlap in similarity.pairs[0].overlaps)


def test_the_languages_of_a_folder_are_recorded(saved: Saved, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("llama-3.2"), tmp_path / "sparse"))
    assert FolderMasks(folder).languages == ()
    record = {"calibration": [{"language": "ko"}, {"language": "en"}, {"language": None}]}
    (folder / "kprune-sparsity.json").write_text(json.dumps(record))
    assert FolderMasks(folder).languages == ("en", "ko")
    assert FolderMasks(folder, languages=("de",)).languages == ("de",)


def test_bad_input(saved: Saved, tmp_path: Path) -> None:
    one = masked("a", "ko", up=[[0, 1]])
    with pytest.raises(KPruneError, match="got 1 model to compare masks of, expected two"):
        compare_masks([one])
    with pytest.raises(KPruneError, match="b has other matrices than a"):
        compare_masks([one, masked("b", "ko", up=[[0, 1, 1]])])
    with pytest.raises(KPruneError, match="b has no zeros"):
        compare_masks([one, masked("b", "ko", up=[[1, 1]])])
    (tmp_path / "no.masks").write_bytes(b"PK\3\4")
    with pytest.raises(KPruneError, match="is not a file of masks"):
        PackedMasks.load(tmp_path / "no.masks")
    with pytest.raises(KPruneError, match="none"):
        FolderMasks(tmp_path / "none")


def test_fused_experts_in_memory_are_refused(saved: Saved) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(saved("qwen3-moe"))
    with pytest.raises(KPruneError, match="fused experts in memory"):
        PackedMasks.of_model(model, "moe")
