"""Plain transformers loads a standalone checkpoint and computes what the original does."""

from pathlib import Path

import pytest
import torch
from support.tiny_folders import edit, read, save_model

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.manifest import EXPORT_NAME, load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.profile import Profile

# transformers warns when it is imported.
pytestmark = pytest.mark.filterwarnings("default")

THAI = Profile(name="thai", languages=("th",), code=False)
TEXT = "the weather in Seoul is fine สวัสดีครับ 나는 학교에 갔다.\n"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def save_llama(folder: Path) -> None:
    """A Llama with a head of its own, in several shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **_vocabulary(folder), **SMALL, tie_word_embeddings=False, max_position_embeddings=64
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")


def save_gemma(folder: Path) -> None:
    """A Gemma-3 whose head is tied to the embedding, in one file."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **_vocabulary(folder), **SMALL, layer_types=["sliding_attention", "full_attention"]
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)


def _vocabulary(folder: Path) -> dict[str, int]:
    names = ("vocab_size", "bos_token_id", "pad_token_id")
    config = read(folder / "config.json")
    return {name: config[name] for name in names} | {"eos_token_id": config["eos_token_id"][0]}


@pytest.mark.parametrize(("save", "shards"), [(save_llama, 4), (save_gemma, 1)])
@pytest.mark.slow
def test_transformers_computes_the_same_from_a_standalone_checkpoint(
    tmp_path: Path, save: object, shards: int
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    as_saved = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<unused2>"}
    edit(folder / "tokenizer_config.json", **as_saved)
    save(folder)  # type: ignore[operator]
    assert len(list(folder.glob("*.safetensors"))) >= shards
    build_overlay(str(folder), THAI, tmp_path / "overlay")
    export = tmp_path / "export"
    export_overlay(tmp_path / "overlay", export)

    kept = load_manifest(export, EXPORT_NAME).kept_rows
    ids = AutoTokenizer.from_pretrained(export)(TEXT)["input_ids"]
    assert AutoTokenizer.from_pretrained(folder).decode([kept[i] for i in ids]).endswith(TEXT)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pruned, report = AutoModelForCausalLM.from_pretrained(
        export, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    assert pruned.config.vocab_size == len(kept) < original.config.vocab_size
    with torch.no_grad():
        before = original(torch.tensor([[kept[i] for i in ids]]), output_hidden_states=True)
        after = pruned(torch.tensor([ids]), output_hidden_states=True)
    for one, other in zip(before.hidden_states, after.hidden_states, strict=True):
        assert torch.equal(one, other)
    expected = before.logits[..., list(kept)]
    assert (after.logits - expected).abs().max() <= 1e-5 * expected.abs().max()
