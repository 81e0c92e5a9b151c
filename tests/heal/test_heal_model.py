"""What healing changes and what it leaves alone, on small models."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.heal_cases import Healed, heal_options
from support.tiny_exports import stored
from support.tiny_folders import contents
from transformers import AutoModelForCausalLM

from vllm_kprune.checkpoint.manifest import EXPORT_NAME
from vllm_kprune.errors import KPruneError
from vllm_kprune.heal import training
from vllm_kprune.heal.judge import Judge
from vllm_kprune.heal.loss import LossParts
from vllm_kprune.heal.masks import rounded
from vllm_kprune.heal.options import HealOptions
from vllm_kprune.heal.record import HEAL_NAME, PICTURE_NAME
from vllm_kprune.heal.run import heal_model
from vllm_kprune.heal.training import Training
from vllm_kprune.sparsify.record import SPARSITY_NAME
from vllm_kprune.sparsify.run import sparsify_model

pytestmark = pytest.mark.slow

Saved = Callable[[str], Path]
VOCABULARY = ("embed_tokens.weight", "lm_head.weight")


def tensors(folder: Path) -> dict[str, Any]:
    """Tensors of all files of a model."""
    return {k: v for path in folder.glob("*.safetensors") for k, v in stored(path).items()}


def is_zero(entry: Any) -> np.ndarray[Any, Any]:
    """Where a stored tensor is zero, without its sign."""
    kind = {"F32": np.uint32, "BF16": np.uint16, "F16": np.uint16}[entry["dtype"]]
    bits = np.frombuffer(entry["data"], kind)
    return (bits << 1).astype(kind) == 0


def losses(record: dict[str, Any], name: str = "loss") -> list[float]:
    return [step[name] for step in record["curve"]]


@pytest.mark.parametrize(
    ("name", "what", "rate"),
    [
        ("gemma3-multimodal", "all", 3e-3),
        ("qwen2-untied", "embeddings", 1e-2),
        ("aya-23", "layers", 5e-3),
        ("llama-3.1", "lora", 2e-2),
        ("qwen3-moe", "lora", 2e-2),
    ],
)
def test_the_loss_falls_zeros_stay_and_only_what_was_named_is_trained(
    name: str, what: str, rate: float, sparse: Saved, healed: Healed
) -> None:
    model = sparse(name)
    output, record = healed(model, what=what, learning_rate=rate)
    assert np.mean(losses(record)[-4:]) < np.mean(losses(record)[:4])
    (text,) = record["start"]
    assert record["healed"][text]["bits_per_character"] < record["start"][text]
    before, after = tensors(model), tensors(output)
    assert before.keys() == after.keys()
    changed = {tensor for tensor in before if before[tensor]["data"] != after[tensor]["data"]}
    sparse_ones = {t for t in before if "layers" in t and is_zero(before[t]).mean() > 0.4}
    for tensor in before:
        assert (before[tensor]["dtype"], before[tensor]["shape"]) == (
            after[tensor]["dtype"],
            after[tensor]["shape"],
        )
        if tensor in sparse_ones:
            assert np.array_equal(is_zero(before[tensor]), is_zero(after[tensor])), tensor
    expected = {
        "all": {t for t in before if "vision" not in t and "multi_modal" not in t},
        "embeddings": {t for t in before if t.endswith(VOCABULARY)},
        "layers": {t for t in before if not t.endswith(VOCABULARY)},
        "lora": sparse_ones,
    }[what]
    assert changed == expected
    assert set(record["zeros"]) == sparse_ones
    assert sum(record["zeros"].values()) == sum(is_zero(after[t]).sum() for t in sparse_ones)


def test_the_result_has_the_same_files_a_record_and_a_picture(
    sparse_export: Path, text: Path, healed: Healed, drawn: None
) -> None:
    output, record = healed(sparse_export)
    names = {path.name for path in sparse_export.iterdir()}
    assert {path.name for path in output.iterdir()} == names | {HEAL_NAME, PICTURE_NAME}
    for name in (EXPORT_NAME, SPARSITY_NAME, "tokenizer.json", "config.json"):
        assert (output / name).read_bytes() == (sparse_export / name).read_bytes()
    picture = (output / PICTURE_NAME).read_text()
    assert picture.startswith("<svg")
    assert all(f">{title}<" in picture for title in ("nats per token", "distillation", text.name))
    assert record["stopped"] == "finished"
    assert record["evaluations"][-1]["accepted"]
    assert losses(record, "distillation")[-1] < losses(record, "distillation")[0]
    assert {file["file"] for file in record["texts"]} == {text.name}
    assert record["base"]["files"].keys() >= {"config.json", "tokenizer.json"}
    # Neither the folder of the model, of its text, nor of its original is told.
    root = str(text.parent.parent).encode()
    assert not [name for name, content in contents(output).items() if root in content]
    loaded = AutoModelForCausalLM.from_pretrained(output).eval()
    with torch.no_grad():
        assert bool(torch.isfinite(loaded(torch.arange(20)[None]).logits).all())
    # What was healed can be healed again.
    _, again = healed(output, what="embeddings", steps=8)
    assert again["zeros"] == record["zeros"]


def test_the_few_zeros_of_a_dense_model_may_change(
    saved: Saved, tmp_path: Path, healed: Healed
) -> None:
    model = Path(shutil.copytree(saved("llama-3.2"), tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][:, ::16] = 0
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    output, record = healed(model, distillation=0.0)
    assert record["zeros"] == {}
    assert not is_zero(tensors(output)["model.layers.0.mlp.up_proj.weight"]).any()


def test_bfloat16_stays_bfloat16(tmp_path: Path, text: Path, healed: Healed) -> None:
    from support.sparsify_cases import small_options
    from support.tiny_architectures import ARCHITECTURES

    model = ARCHITECTURES["gemma3-text"].save(tmp_path / "model", "bfloat16")
    sparsify_model(model, tmp_path / "sparse", small_options("magnitude", text, pattern="2:4"))
    output, _ = healed(tmp_path / "sparse", distillation=0.0)
    before, after = tensors(tmp_path / "sparse"), tensors(output)
    assert {entry["dtype"] for entry in after.values()} == {"BF16"}
    for tensor, entry in after.items():
        if "proj" in tensor:
            zeros = is_zero(entry)
            assert np.array_equal(zeros, is_zero(before[tensor]))
            assert (zeros.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_too_small_for_the_data_type_is_not_one_zero_more(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, 1e-44, -1e-30, 5.0, 0.0])
    mask = torch.tensor([False, False, False, True, True])
    assert (rounded(values, dtype, mask) == 0).tolist() == mask.tolist()


def test_a_language_that_may_not_get_worse_decides_what_is_kept(
    sparse: Saved, healed: Healed, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, real = tmp_path / "other.txt", Judge.standing
    other.write_text(text.read_text())

    def worse(self: Judge, bits: Any, start: Any) -> Any:
        return real(self, {**bits, "en": start["en"] * 1.02}, start)

    monkeypatch.setattr(Judge, "standing", worse)
    told: list[str] = []
    options = {"held_out": (f"en={other}",), "languages": ("mixed.txt",), "tell": told.append}
    with pytest.raises(KPruneError, match=r"--keep-within was not met for en; .* nothing was"):
        healed(sparse("qwen2-tied"), keep_within=("en=1%",), **options)
    warned = [line for line in told if "this state is not kept" in line]
    assert len(warned) == 3  # then it gives up
    assert warned[0].startswith("step 2: en is 2.00% worse than before healing, more than --keep")
    _, record = healed(sparse("qwen2-tied"), keep_within=("en=3",), **options)
    assert set(record["healed"]) == {"mixed.txt", "en"}


def test_a_verdict_worked_out_by_hand() -> None:
    judge = Judge(None, {}, ("ko",), {"en": 0.005}, 8)  # type: ignore[arg-type]
    verdict = judge.standing({"ko": 1.8, "en": 1.01}, {"ko": 2.0, "en": 1.0})
    assert (verdict.score, verdict.too_bad) == (pytest.approx(0.9), ("en",))
    every = Judge(None, {}, (), {"en": 0.02}, 8)  # type: ignore[arg-type]
    verdict = every.standing({"ko": 1.8, "en": 1.01}, {"ko": 2.0, "en": 1.0})
    assert (verdict.score, verdict.too_bad) == (pytest.approx(0.955), ())


def nan_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of every later window NaN."""
    window, seen = Training._window, []

    def broken(self: Training, ids: torch.Tensor) -> LossParts:
        seen.append(ids)
        parts = window(self, ids)
        bad = len(seen) > steps * self.options.batch
        return LossParts(float("nan"), 0.0, parts.tokens) if bad else parts

    monkeypatch.setattr(Training, "_window", broken)


def test_a_training_that_diverges_keeps_the_last_good_state(
    sparse: Saved, healed: Healed, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_after(9, monkeypatch)
    _, record = healed(sparse("llama-3.2"))
    assert record["stopped"] == "diverged at step 10: the loss is NaN or infinite"
    assert (record["best_step"], record["steps_done"]) == (8, 9)


def test_a_training_that_diverges_at_once_writes_nothing(
    sparse: Saved, healed: Healed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_after(1, monkeypatch)
    with pytest.raises(KPruneError, match=r"diverged at step 2: .* try a lower --learning-rate"):
        healed(sparse("llama-3.2"))
    assert not any("healed" in path.name and path.is_dir() for path in tmp_path.iterdir())


def test_a_training_that_no_longer_helps_ends(
    sparse: Saved, healed: Healed, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, scores = Judge.standing, iter([0.9, 0.8, 0.85, 0.85, 0.85, 0.1])

    def scored(self: Judge, bits: Any, start: Any) -> Any:
        verdict = real(self, bits, start)
        return type(verdict)(verdict.bits, next(scores), ())

    monkeypatch.setattr(Judge, "standing", scored)
    _, record = healed(sparse("llama-3.2"))
    assert (record["stopped"], record["best_step"], record["steps_done"]) == (
        "no better state for 3 evaluations", 4, 10,
    )  # fmt: skip


def test_only_the_products_of_training_are_rounded(
    sparse: Saved, healed: Healed, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, measure = Training._window, Judge.measure
    trained, measured = set(), set()

    def seen_window(self: Training, ids: torch.Tensor) -> LossParts:
        trained.add(torch.get_float32_matmul_precision())
        return window(self, ids)

    def seen_measure(self: Judge, model: Any) -> Any:
        measured.add(torch.get_float32_matmul_precision())
        return measure(self, model)

    monkeypatch.setattr(Training, "_window", seen_window)
    monkeypatch.setattr(Judge, "measure", seen_measure)
    healed(sparse("llama-3.2"))
    assert (trained, measured) == ({"medium"}, {"highest"})
    assert torch.get_float32_matmul_precision() == "highest"


def test_what_is_usual_depends_on_what_the_model_lost() -> None:
    def usual(sparsified: bool, **own: Any) -> tuple[float | None, float | None]:
        found = HealOptions(text=("ko.txt",), **own).for_model(sparsified=sparsified)
        return found.learning_rate, found.distillation

    assert (usual(True), usual(False)) == ((2e-4, 0.8), (2e-5, 0.2))
    assert (usual(True, what="lora"), usual(False, what="lora")) == ((1e-3, 0.8), (1e-4, 0.2))
    assert usual(False, learning_rate=0.5, distillation=0.0) == (0.5, 0.0)


def test_minutes_become_steps(
    sparse: Saved, healed: Healed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each look at the clock is a quarter of a second after the one before: an evaluation and a step
    # take one of them each, so 9 evaluations and 15 steps fit into 6 seconds.
    ticks = iter(range(1, 100))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(ticks) / 4)
    _, record = healed(sparse("llama-3.2"), steps=None, minutes=0.1)
    assert record["steps"] == record["steps_done"] == 15


def test_the_order_of_the_text_depends_on_the_seed_alone(
    sparse: Saved, text: Path, tmp_path: Path
) -> None:
    model, weights = sparse("llama-3.2"), []
    for number, seed in enumerate((0, 0, 1)):
        output = tmp_path / f"run-{number}"
        heal_model(model, output, heal_options(text, seed=seed, steps=8, distillation=0.0))
        weights.append((output / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
