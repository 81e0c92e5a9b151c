"""Two-layer models with random weights, and overlays of them made by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from vllm_kprune.checkpoint.manifest import BaseReference, Manifest
from vllm_kprune.profile import Profile
from vllm_kprune.storage.digest import digest_file, sha256_file

ROWS = 96
KEPT = tuple(range(0, ROWS, 3))
TIED = ("model.embed_tokens.weight",)
UNTIED = ("lm_head.weight", "model.embed_tokens.weight")

# How the live tests serve: eager, or each start takes a minute longer.
SERVE = ("--enforce-eager", "--max-model-len", "1024", "--plugin", "kprune")
# A base model has none: documents, then messages, whose parts may be lists.
CHAT_TEMPLATE = """\
{%- for d in documents or [] %}[{{ d.title }}] {{ d.text }}
{% endfor %}
{%- for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content %}{{ part.text }}{% endfor %}{% endif %}
{% endfor %}assistant:"""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Each engine would be bound to the first CPU, also where two of them run at once.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

OverlayMaker = Callable[..., Path]


def save_tied_model(folder: Path) -> Path:
    """A Gemma-3 text model, bfloat16, tied head."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        layer_types=["sliding_attention", "full_attention"],
    )
    Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_untied_model(folder: Path) -> Path:
    """A Llama, float32, with a head of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def overlay_by_hand(
    folder: Path, base: Path, tensors: Sequence[str] = TIED, kept: Sequence[int] = KEPT
) -> Path:
    """An overlay of `base` with a configuration and a manifest, but no tokenizer."""
    folder.mkdir()
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(kept)}))
    Manifest(
        kprune_version="0",
        family="test",
        profile=Profile(name="third"),
        base=BaseReference(
            reference=str(base),
            path=str(base),
            files={path.name: digest_file(path) for path in base.glob("*") if path.is_file()},
        ),
        original_tokens=ROWS,
        original_rows=ROWS,
        kept_ids=tuple(kept),
        reasons="s" * len(kept),
        vocabulary_tensors=tuple(tensors),
        files={"config.json": sha256_file(folder / "config.json")},
    ).write(folder)
    return folder
