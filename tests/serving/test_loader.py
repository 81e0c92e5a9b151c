"""The loader: exactly the kept rows, every other tensor untouched, and refusals with a reason."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import KEPT, ROWS, TIED, UNTIED, OverlayMaker

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.checkpoint.rows import gather_rows, prune_weights
from vllm_kprune.errors import KPruneError

pytestmark = pytest.mark.usefixtures("vllm_ready")


def load(overlay: Path, base: Path | None = None) -> dict[str, torch.Tensor]:
    """All weights of an overlay, through vLLM's own reader."""
    from vllm.config.load import LoadConfig

    from vllm_kprune.serving.loader import KPruneModelLoader

    loader = KPruneModelLoader(LoadConfig(load_format="kprune"))
    config = SimpleNamespace(model=str(overlay), model_weights=str(base or ""))
    return dict(loader.get_all_weights(config, torch.nn.Module()))


def assert_rows_gathered(overlay: Path, base: Path, tensors: tuple[str, ...]) -> None:
    before = load_file(base / "model.safetensors")
    after = load(overlay)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        expected = tensor[list(KEPT)] if name in tensors else tensor
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], expected), name


def test_a_tied_model_has_exactly_the_kept_rows(
    tied_model: Path, make_overlay: OverlayMaker
) -> None:
    assert_rows_gathered(make_overlay(tied_model, TIED, KEPT), tied_model, TIED)


def test_an_untied_model_has_exactly_the_kept_rows_in_both_tensors(
    untied_model: Path, make_overlay: OverlayMaker
) -> None:
    assert_rows_gathered(make_overlay(untied_model, UNTIED, KEPT), untied_model, UNTIED)


def test_weights_are_read_from_a_base_that_was_moved(
    tied_model: Path, make_overlay: OverlayMaker, tmp_path: Path
) -> None:
    base = copytree(tied_model, tmp_path / "base")
    overlay = make_overlay(base)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(KPruneError, match="--kprune-base"):
        load(overlay)
    assert load(overlay, moved)[TIED[0]].shape[0] == len(KEPT)


def test_a_file_that_was_added_to_the_base_is_not_loaded_unseen(
    tied_model: Path, make_overlay: OverlayMaker, tmp_path: Path
) -> None:
    base = copytree(tied_model, tmp_path / "base")
    overlay = make_overlay(base)
    save_file({"model.norm.weight": torch.zeros(32)}, base / "extra.safetensors")
    with pytest.raises(KPruneError, match=r"extra\.safetensors was added since"):
        load(overlay)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_rows_are_gathered_bit_for_bit_in_any_dtype(dtype: torch.dtype) -> None:
    source = torch.randint(0, 256, (8, 4 * dtype.itemsize), dtype=torch.uint8)
    rows = torch.tensor([0, 3, 7])
    kept = gather_rows("w", source.view(dtype), rows, original_rows=8)
    assert kept.dtype == dtype
    assert torch.equal(kept.view(torch.uint8), source[rows])


def test_a_bias_is_gathered_too() -> None:
    bias = torch.arange(8.0)
    assert gather_rows("lm_head.bias", bias, torch.tensor([1, 5]), 8).tolist() == [1.0, 5.0]


def test_rows_are_gathered_on_the_cpu_whatever_the_default_device_is(
    tied_model: Path, make_overlay: OverlayMaker
) -> None:
    overlay = make_overlay(tied_model)
    with torch.device("meta"):  # vLLM loads under its target device
        weights = load(overlay)
    assert weights[TIED[0]].device.type == "cpu"


def some_weights(shape: tuple[int, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    yield TIED[0], torch.zeros(shape)


@pytest.mark.parametrize("shape", [(ROWS + 1, 4), (ROWS - 1, 4), ()])
def test_a_tensor_of_another_height_is_refused(
    shape: tuple[int, ...], tied_model: Path, make_overlay: OverlayMaker
) -> None:
    manifest = load_manifest(make_overlay(tied_model))
    with pytest.raises(KPruneError, match="was built for 96 rows"):
        list(prune_weights(some_weights(shape), manifest))


def test_a_vocabulary_tensor_that_never_comes_is_an_error(
    tied_model: Path, make_overlay: OverlayMaker
) -> None:
    manifest = load_manifest(make_overlay(tied_model, UNTIED))
    with pytest.raises(KPruneError, match=r"holds no lm_head\.weight"):
        list(prune_weights(some_weights((ROWS, 4)), manifest))
