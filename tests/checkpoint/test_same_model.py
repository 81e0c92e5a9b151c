"""Law 4 in float32, by transformers: the pruned model is the original, for every known class.

The same (mapped) ids give bit-identical hidden states at every layer, and the logits of the kept
tokens differ by no more than the rounding of a matrix product of another width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.child import in_child
from support.tiny_architectures import ARCHITECTURES
from support.tiny_folders import KOREAN, read, write_json
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.families import FAMILIES
from vllm_kprune.checkpoint.manifest import Manifest, load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.rows import read_pruned_weights
from vllm_kprune.profile import Profile

# Thai, and a corpus: of Korean and English only what occurs in it is kept.
PROFILE = Profile(name="tiny", languages=("th",), code=False)
TEXTS = (KOREAN, "the weather in Seoul is fine", "ภาษาไทย 2024", "αβγ 日本語 😀 never seen")
LARGEST_ERROR = 1e-5

Build = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A function that saves a tiny architecture, prunes it once, and gives (original, overlay)."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            (folder / "corpus.txt").write_text(KOREAN, encoding="utf-8")
            original = ARCHITECTURES[name].save(folder / "original")
            corpora = [folder / "corpus.txt"]
            build_overlay(str(original), PROFILE, folder / "pruned", corpora=corpora)
            made[name] = (original, folder / "pruned")
        return made[name]

    return make


def load_original(folder: Path, architecture: str) -> Any:
    import transformers

    network = getattr(transformers, architecture)
    return network.from_pretrained(folder, dtype=torch.float32).eval()


def load_pruned(overlay: Path, manifest: Manifest) -> Any:
    """The overlay as a transformers model: with its own config, and rows gathered from the base."""
    import transformers

    network = getattr(transformers, manifest.family)
    return network.from_pretrained(
        None,
        config=transformers.AutoConfig.from_pretrained(overlay),
        state_dict=dict(read_pruned_weights(manifest)),
        dtype=torch.float32,
    ).eval()


def outputs(model: Any, ids: list[int]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Hidden states of every layer, and logits [tokens, rows]."""
    with torch.no_grad():
        answer = model(torch.tensor([ids]), output_hidden_states=True)
    return answer.hidden_states, answer.logits[0]


def assert_same_model(original: Any, pruned: Any, manifest: Manifest, new_ids: list[int]) -> None:
    kept = manifest.kept_rows
    before, logits = outputs(original, [kept[i] for i in new_ids])
    after, pruned_logits = outputs(pruned, new_ids)
    assert len(before) == len(after) > 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    expected = logits[:, list(kept)]
    assert pruned_logits.shape == expected.shape
    scale = expected.abs().max()
    assert scale > 0.1
    assert (pruned_logits - expected).abs().max() <= LARGEST_ERROR * scale


def test_every_family_of_the_table_has_a_tiny_model() -> None:
    assert {tiny.architecture for tiny in ARCHITECTURES.values()} == FAMILIES.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.slow
def test_hidden_states_are_identical_and_kept_logits_equal_up_to_rounding(
    name: str, build: Build
) -> None:
    folder, overlay = build(name)
    manifest = load_manifest(overlay)
    assert len(manifest.kept_rows) < 0.8 * manifest.original_rows
    tokenizer = Tokenizer.from_file(str(overlay / "tokenizer.json"))
    original = load_original(folder, ARCHITECTURES[name].architecture)
    pruned = load_pruned(overlay, manifest)
    for text in TEXTS:
        assert_same_model(original, pruned, manifest, tokenizer.encode(text).ids)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_embedding_and_the_head_of_the_checkpoint_are_the_tensors_that_are_cut(
    name: str, build: Build
) -> None:
    folder, overlay = build(name)
    tiny = ARCHITECTURES[name]
    names = load_manifest(overlay).vocabulary_tensors
    assert len(names) == (1 if tiny.tied else 2)
    assert len(list(folder.glob("*.safetensors"))) == 1 or tiny.shards


def test_the_ids_of_images_are_mapped_in_the_nested_configuration(build: Build) -> None:
    folder, overlay = build("gemma3-multimodal")
    before, after = read(folder / "config.json"), read(overlay / "config.json")
    kept = load_manifest(overlay).kept_ids
    for key in ("boi_token_index", "eoi_token_index", "image_token_index"):
        assert kept[after[key]] == before[key] != after[key]
    assert after["text_config"]["vocab_size"] == len(kept)
    assert "vocab_size" not in after


def test_ids_that_the_config_leaves_to_its_class_are_written_and_mapped(tmp_path: Path) -> None:
    folder = ARCHITECTURES["llama-3.2"].save(tmp_path / "original")
    config = read(folder / "config.json")
    ids = {key: config.pop(key) for key in ("bos_token_id", "eos_token_id")}
    write_json(folder / "config.json", config)
    build_overlay(str(folder), PROFILE, tmp_path / "pruned")
    kept = load_manifest(tmp_path / "pruned").kept_ids
    after = read(tmp_path / "pruned" / "config.json")
    assert ids != {"bos_token_id": 1, "eos_token_id": 2}
    assert (kept[after["bos_token_id"]], kept[after["eos_token_id"]]) == (1, 2)


@pytest.mark.slow
@pytest.mark.slow
def test_the_reference_model_is_the_same_model(reference_model: Path, overlay: Path) -> None:
    in_child(check_reference_model, reference_model, overlay)


def check_reference_model(folder: Path, overlay: Path) -> None:
    """Compare both on some texts; they take two gigabytes."""
    manifest = load_manifest(overlay)
    tokenizer = Tokenizer.from_file(str(overlay / "tokenizer.json"))
    original = load_original(folder, "Gemma3ForCausalLM")
    pruned = load_pruned(overlay, manifest)
    for text in ("대한민국의 수도는 서울이고, the capital is 京城.", "def f(x):\n    return x\n"):
        assert_same_model(original, pruned, manifest, tokenizer.encode(text).ids)
