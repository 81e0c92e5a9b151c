"""A model folder is checked before anything long; each reason to refuse it is said."""

import pickle
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from tiny_folders import edit, save_model, save_weights, write_json
from tiny_tokenizers import TINY

from vllm_kprune.checkpoint.base import open_base, resolve_model
from vllm_kprune.errors import KPruneError


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
        (_remove("config.json"), "no config.json: not a model folder"),
        (_write("config.json", b"{"), "config.json is not readable JSON"),
        (_write("config.json", b"[]"), "expected a JSON object, got list"),
        (_write("config.json", b"[" * 100_000), "not readable JSON"),
        (_write("config.json", b'{"a": ' + b"1" * 5000 + b"}"), "not readable JSON"),
        (_write("config.json", b"{}"), "no 'architectures'"),
        (_write("config.json", b'{"architectures": ["New"]}'), "does not know the family New"),
        (_remove("tokenizer.json"), "no tokenizer.json"),
        (_tokenizer_model("Unigram"), "the model is Unigram, and kprune prunes BPE only"),
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
        (_tensor(**{f"{HEAD}.qweight": np.ones(1)}), "quantised .*lm_head.qweight"),
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
