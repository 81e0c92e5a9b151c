"""A model folder is checked before any long work; a refusal names its reason."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from support.tiny_folders import edit, read, save_model, save_weights, write_json
from support.tiny_tokenizers import TINY

from vllm_kprune.checkpoint.base import open_base
from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.rows import read_pruned_weights
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model folder."""
    return save_model(tmp_path / "model")


@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_model_is_described_from_its_headers(tmp_path: Path, kind: str) -> None:
    base = open_base(str(save_model(tmp_path / "m", kind)))
    size = TINY[kind]().get_vocab_size()
    assert (base.rows, len(base.tokenizer.tokens)) == (size + 3, size)
    names = [info.name for info in base.vocabulary_tensors]
    assert names == ["model.embed_tokens.weight", "lm_head.weight"]
    assert base.vocabulary_tensors[0].bytes == (size + 3) * 4 * 4
    assert set(base.digests()) >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert "LICENSE" not in base.digests()


def test_a_checkpoint_without_a_head_is_tied(model: Path) -> None:
    save_weights(model, 700, **{"lm_head.weight": None})
    base = open_base(str(model))
    assert base.tied
    assert [info.name for info in base.vocabulary_tensors] == ["model.embed_tokens.weight"]


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _index(**weight_map: str) -> Callable[[Path], None]:
    return lambda folder: write_json(
        folder / "model.safetensors.index.json", {"weight_map": weight_map}
    )


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def _tokenizer_model(kind: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer.json", model={"type": kind, "vocab": []})


def _cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def _tensor(**tensors: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: save_weights(folder, 700, **tensors)


HEAD, EMBEDDING = "lm_head", "model.embed_tokens"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("config.json"), "no config.json, so it is not a model folder"),
        (_write("config.json", b"{"), "config.json is not readable JSON"),
        (_write("config.json", b"[]"), "expected a JSON object, got list"),
        (_write("config.json", b"[" * 100_000), "not readable JSON"),
        (_write("config.json", b'{"a": ' + b"1" * 5000 + b"}"), "not readable JSON"),
        (_write("config.json", b"{}"), "no 'architectures'"),
        (_write("config.json", b'{"architectures": ["New"]}'), "does not know the family New"),
        (_remove("tokenizer.json"), "no tokenizer.json"),
        (_tokenizer_model("Unigram"), "the model is Unigram, but kprune prunes only BPE"),
        (_tokenizer_model("WordPiece"), "the model is WordPiece"),
        (_remove("model.safetensors"), r"holds no \*.safetensors weights"),
        (_pickled, r"only pickled weights \(pytorch_model.bin\)"),
        (_cut, "not a readable safetensors file"),
        (_write("model.safetensors", b""), "not a readable safetensors file"),
        (_write("model.safetensors", b"\xff" * 100), "not a readable safetensors file"),
        (_index(a="../other.safetensors"), "lacks the weight file ../other.safetensors"),
        (_index(a="/etc/passwd"), "lacks the weight file /etc/passwd"),
        (_index(a="model-2.safetensors"), "lacks the weight file model-2.safetensors"),
        (_write("model.safetensors.index.json", b"{}"), "no 'weight_map'"),
        (_tensor(**{f"{EMBEDDING}.weight_scale": np.ones(1)}), "quantised .*embed_tokens"),
        (_tensor(**{f"{HEAD}.bias": np.ones(700)}), "does not prune a bias"),
        (_tensor(**{f"{EMBEDDING}.weight": None}), "no tensor model.embed_tokens.weight"),
        (_tensor(**{f"{EMBEDDING}.weight": np.ones((700, 4), np.int8)}), r"is I8\[700, 4\]"),
        (_tensor(**{f"{EMBEDDING}.weight": np.ones(700, np.float32)}), r"is F32\[700\]"),
        (_tensor(**{f"{HEAD}.weight": np.ones((9, 4), np.float32)}), "has 9 rows, .* has 700"),
    ],
)
def test_a_folder_that_cannot_be_pruned_is_refused_with_the_reason(
    model: Path, damage: Callable[[Path], None], message: str
) -> None:
    (model.parent / "other.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    damage(model)
    with pytest.raises(KPruneError, match=message) as caught:
        open_base(str(model))
    assert str(model) in str(caught.value)


def _packed(rows: int, columns: int, dtype: type = np.int32) -> np.ndarray:
    return np.ones((rows, columns), dtype)


# What each format writes in place of a linear layer's weight, and says of itself in config.json.
QUANTISED: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "compressed-tensors FP8": (
        {"weight": _packed(8, 4, np.int8), "weight_scale": np.ones((8, 1), np.float32)},
        {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]},
    ),
    "FP8 blocks": (
        {"weight": _packed(8, 4, np.int8), "weight_scale_inv": np.ones((1, 1), np.float32)},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    "compressed-tensors INT4": (
        {
            "weight_packed": _packed(8, 1),
            "weight_scale": np.ones((8, 1), np.float32),
            "weight_shape": np.array([8, 4]),
        },
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]},
    ),
    "AWQ": (
        {"qweight": _packed(4, 1), "qzeros": _packed(1, 1), "scales": np.ones((1, 8), np.float16)},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": None},
    ),
    "GPTQ": (
        {
            "qweight": _packed(1, 8),
            "qzeros": _packed(1, 1),
            "scales": np.ones((1, 8), np.float16),
            "g_idx": np.zeros(4, np.int32),
        },
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": False},
    ),
}
BODY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(params=QUANTISED)
def quantised(request: pytest.FixtureRequest, model: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A model with one linear layer in a format of quantisation, and what that format writes."""
    tensors, config = QUANTISED[request.param]
    edit(model / "config.json", quantization_config=config)
    save_weights(model, 700, **{f"{BODY}.{name}": value for name, value in tensors.items()})
    return model, tensors


@pytest.mark.slow
def test_a_quantised_body_with_a_plain_vocabulary_is_accepted_and_kept_as_it_is(
    quantised: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    model, tensors = quantised
    profile = Profile(name="thai", languages=("th",), genres=())
    manifest = build_overlay(str(model), profile, tmp_path / "out")
    assert manifest.vocabulary_tensors == ("model.embed_tokens.weight", "lm_head.weight")
    weights = dict(read_pruned_weights(manifest))
    assert weights["lm_head.weight"].shape[0] == len(manifest.kept_rows)
    for name, value in tensors.items():
        assert np.array_equal(weights[f"{BODY}.{name}"].numpy(), value)
    before, after = read(model / "config.json"), read(tmp_path / "out" / "config.json")
    assert after["quantization_config"] == before["quantization_config"]


@pytest.mark.parametrize("module", [EMBEDDING, HEAD])
def test_a_quantised_embedding_or_head_is_refused_with_the_reason(
    quantised: tuple[Path, dict[str, np.ndarray]], module: str
) -> None:
    model, tensors = quantised
    layer = {f"{module}.{name}": value for name, value in tensors.items()}
    save_weights(model, 700, **{f"{module}.weight": None, **layer})
    with pytest.raises(
        KPruneError, match=r"is quantised \(.*embedding and head are plain"
    ) as found:
        open_base(str(model))
    assert module in str(found.value)


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "~/nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_does_not_exist_is_refused_by_name(name: str) -> None:
    with pytest.raises(KPruneError, match=f"model folder {name} does not exist"):
        resolve_model(name)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["org/model", "org/mo del", "org/model--x..y"])
def test_a_hub_id_that_cannot_be_had_is_refused_on_one_line(offline: Path, name: str) -> None:
    with pytest.raises(KPruneError, match="neither a folder nor a model that the hub") as caught:
        open_base(name)
    assert "\n" not in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


def test_a_hub_id_is_found_in_the_local_cache_with_its_revision(offline: Path) -> None:
    repo = offline / "models--org--model"
    snapshot = save_model(repo / "snapshots" / ("a" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text("a" * 40)
    base = open_base("org/model", "v1")
    assert base.folder == snapshot
    assert (base.reference, base.revision) == ("org/model", "v1")
    with pytest.raises(KPruneError, match="neither a folder"):
        open_base("org/model", "v2")


def test_hidden_weight_files_are_none(model: Path) -> None:
    shutil.copy(model / "model.safetensors", model / ".best-3.safetensors")
    assert open_base(str(model)).shards == ("model.safetensors",)
    # Nor is one taken for an added file of a base afterwards.
    build_overlay(model, Profile(name="th", languages=("th",), genres=()), model.parent / "out")
    assert load_manifest(model.parent / "out").check_base() == model
    (model / "model.safetensors").unlink()
    with pytest.raises(KPruneError, match=r"holds no \*\.safetensors weights"):
        open_base(str(model))
