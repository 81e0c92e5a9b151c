"""Whole models of every family: equal to an independent implementation, and ordinary files."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.forks import run_forked
from support.sparsify_cases import SMALL, Sparsified, small_options
from support.tiny_architectures import ARCHITECTURES, BODIES, TinyArchitecture
from support.tiny_exports import metadata, stored
from support.tiny_folders import read
from support.whole_model_pruning import prune_whole_model

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.manifest import EXPORT_NAME
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.verify import verify_overlay
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.sparsify.calibration import draw_calibration, parse_calibration
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.record import SPARSITY_NAME
from vllm_kprune.sparsify.run import sparsify_model
from vllm_kprune.tokenizer.encoder import load_encoder

pytestmark = pytest.mark.slow

Saved = Callable[[str], Path]
# How much of its zeros a mask shares with the one that it is compared with (intersection over
# union). In SparseGPT rounding moves weights, and so choices between almost equal ones.
LEAST_IOU = {"wanda": 1.0, "sparsegpt": 0.99}


def tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """All tensors of a folder: data type, shape, bytes and file."""
    return {
        name: {**entry, "file": path.name}
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in stored(path).items()
    }


def values(entry: dict[str, Any]) -> Any:
    assert entry["dtype"] == "F32"
    return np.frombuffer(entry["data"], np.float32).reshape(entry["shape"])


def load(folder: Path, name: str) -> Any:
    import transformers

    network = getattr(transformers, ARCHITECTURES[name].architecture)
    return network.from_pretrained(folder, dtype=torch.float32).eval()


def calibration_ids(folder: Path, text: Path) -> torch.Tensor:
    drawn = draw_calibration(
        parse_calibration([str(text)]), load_encoder(folder), **SMALL, seed=0, tell=print
    )
    return torch.from_numpy(drawn.ids)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(pytest.param(*one.values, "wanda", marks=one.marks) for one in BODIES),
        # What the families differ in is the network, not the method.
        *((name, "sparsegpt") for name in ("aya-expanse", "gemma3-text", "qwen3-moe")),
    ],
)
def test_masks_are_those_of_an_independent_implementation_on_the_whole_model(
    name: str, method: str, saved: Saved, sparsified: Sparsified, text: Path
) -> None:
    """Every family; also: later layers see the pruned earlier ones, and only matrices change."""
    model, original = saved(name), tensors(saved(name))
    output, record = sparsified(name, method)
    written, expected = tensors(output), {}
    with torch.no_grad():
        ids = calibration_ids(model, text)
        found = prune_whole_model(load(model, name), ids, method, 0.5)
    for matrix in record["matrices"]:
        expected[matrix] = found.pop(matrix[matrix.index("layers.") :])
        zeros, wanted = values(written[matrix]) == 0, expected[matrix] == 0
        iou = (zeros & wanted).sum() / (zeros | wanted).sum()
        assert iou >= LEAST_IOU[method], matrix
        if iou == 1:
            assert np.allclose(values(written[matrix]), expected[matrix], atol=2e-3)
    assert found == {}
    assert written.keys() == original.keys()
    untouched = original.keys() - expected.keys()
    assert any("norm" in tensor for tensor in untouched)
    assert {t: written[t] for t in untouched} == {t: original[t] for t in untouched}


@pytest.mark.parametrize("name", ["llama-3.2", "qwen3-moe", "gemma3-multimodal"])
def test_the_result_is_an_ordinary_checkpoint_with_a_record(
    name: str, saved: Saved, sparsified: Sparsified
) -> None:
    model = saved(name)
    output, record = sparsified(name, "wanda", pattern="2:4")
    others = {path.name for path in model.iterdir()}
    assert {path.name for path in output.iterdir()} == others | {SPARSITY_NAME}
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            assert (output / path.name).read_bytes() == path.read_bytes()
        else:
            assert metadata(output / path.name) == metadata(path)
    before, after = load(model, name), load(output, name)
    assert after.config.to_dict() | {"_name_or_path": ""} == before.config.to_dict() | {
        "_name_or_path": ""
    }
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        assert bool(torch.isfinite(after(ids).logits).all())
        assert not torch.equal(after(ids).logits, before(ids).logits)
    assert read(output / SPARSITY_NAME) == record
    assert record["sparsity"] == 0.5
    for matrix, report in record["matrices"].items():
        groups = values(tensors(output)[matrix]).reshape(-1, 4)
        assert ((groups == 0).sum(1) == 2).all()
        assert report["zeros"] == report["pruned"] == report["weights"] / 2


def test_bfloat16_stays_bfloat16_and_magnitude_needs_no_text(tmp_path: Path, text: Path) -> None:
    model = ARCHITECTURES["gemma3-text"].save(tmp_path / "gemma", dtype="bfloat16")
    output = tmp_path / "sparse"
    record = sparsify_model(model, output, small_options("magnitude", text, sparsity=0.7))
    written = tensors(output)
    assert {entry["dtype"] for entry in written.values()} == {"BF16"}
    for matrix, report in record["matrices"].items():
        weights = np.frombuffer(written[matrix]["data"], np.uint16) & 0x7FFF
        assert (weights == 0).sum() == report["zeros"] == int(report["weights"] * 0.7)
    assert "calibration" not in record


def test_an_export_is_sparsified_and_stays_an_export(
    saved: Saved, text: Path, tmp_path: Path
) -> None:
    profile = Profile(name="thai", languages=("th",), genres=())
    overlay, export, output = (tmp_path / name for name in ("overlay", "export", "sparse"))
    build_overlay(saved("qwen3-tied"), profile, overlay, corpora=[text])
    with pytest.raises(KPruneError, match=r"is an overlay, .* kprune export .*overlay -o DIR"):
        sparsify_model(overlay, output, small_options("magnitude", text))
    export_overlay(overlay, export)
    record = sparsify_model(export, output, small_options("wanda", text))
    assert record["sparsity"] == 0.5
    assert (output / EXPORT_NAME).read_bytes() == (export / EXPORT_NAME).read_bytes()
    laws = {law.law: law for law in verify_overlay(output, ["สวัสดี"], corpora=[text])}
    assert all(law.holds for law in laws.values())
    assert f"not {len(record['matrices'])} matrices of the body, which kprune sp" in laws[4].note
    # All other weights still have to be the base's.
    norm = next(path for path in output.glob("*.safetensors") if "norm" in str(stored(path)))
    weights = load_file(norm)
    name = next(name for name in weights if "norm" in name)
    weights[name][0] += 1
    save_file(weights, norm, metadata(norm))
    (broken,) = (law for law in verify_overlay(output, [], corpora=[text]) if not law.holds)
    assert (broken.law, broken.counter_example) == (4, f"{norm.name}: {name} differs")


def test_activations_on_disk_give_the_same_bytes(
    sparsified: Sparsified, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, record = sparsified("gemma3-text", "sparsegpt")
    # One layer fits exactly, so the activations do not.
    monkeypatch.setattr("vllm_kprune.sparsify.budget._FLOAT", 0)
    monkeypatch.setattr("vllm_kprune.sparsify.budget._MASK_BYTES", 0)
    on_disk, same = sparsified("gemma3-text", "sparsegpt", memory=1e-9)
    assert same == record
    assert tensors(on_disk) == tensors(output)


def most_memory(folders: tuple[Path, Path]) -> tuple[int, int]:
    """Bytes in use when the first layer is done, and the most of all later ones."""
    used: list[int] = []
    # What earlier tests freed would be used again, and hide that memory is kept.
    ctypes.CDLL(None).malloc_trim(0)

    def watch(step: str, share: float) -> None:
        if step == "sparsify layers":
            fields = Path("/proc/self/statm").read_text().split()
            used.append(int(fields[1]) * os.sysconf("SC_PAGE_SIZE"))

    sparsify_model(*folders, SparsifyOptions(method="magnitude", device="cpu"), progress=watch)
    return used[0], max(used)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads memory from /proc")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24}
    large = TinyArchitecture("LlamaForCausalLM", "LlamaConfig", "byte_level", True, 0, sizes)
    model = large.save(tmp_path / "model")
    layer = 4 * (256 * 256 * 3 + 3 * 256 * 1024)  # keys and values are half as wide
    (ended,) = run_forked(most_memory, [(model, tmp_path / "sparse")])
    first, most = ended.result
    # All 24 layers together would be 100 MB more.
    assert most - first < 6 * layer, ended.text
