"""Small model folders with a real tokenizer, every config that names ids, and random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from support.tiny_tokenizers import TINY

TEMPLATE = "{{ bos_token }}{% for m in messages %}<unused3>{{ m.content }}{% endfor %}"
KOREAN = "나는 오늘 학교에 갔다.\nthe weather in Seoul is fine\n" * 3


def save_model(folder: Path, kind: str = "byte_fallback", spare_rows: int = 3) -> Path:
    """Write a Llama with the tensors of one layer: the tests look at its vocabulary alone."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TINY[kind]()
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {name: tokenizer.token_to_id(f"<{name}>") for name in ("pad", "eos", "bos", "unk")}
    rows = tokenizer.get_vocab_size() + spare_rows
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": rows,
            "bos_token_id": ids["bos"],
            "eos_token_id": [ids["eos"], ids["pad"]],
            "pad_token_id": None,
            "text_config": {"decoder_start_token_id": ids["bos"], "max_new_tokens": 7},
        },
    )
    write_json(
        folder / "generation_config.json",
        {
            "eos_token_id": ids["eos"],
            "pad_token_id": -1,
            "suppress_tokens": [tokenizer.token_to_id("<unused1>")],
            "max_new_tokens": 20,
        },
    )
    added = {str(i): {"content": f"<{name}>"} for name, i in ids.items()}
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<bos>",
            "pad_token": {"content": "<unused2>"},
            "added_tokens_decoder": added
            | {str(tokenizer.token_to_id("<unused4>")): {"content": "<unused4>"}},
        },
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "LICENSE").write_text("Be kind.")
    save_weights(folder, rows)
    return folder


def save_weights(folder: Path, rows: int, **others: Any) -> None:
    """Write `model.safetensors`: an embedding, a head and whatever is given."""
    table = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    tensors = {"model.embed_tokens.weight": table, "lm_head.weight": table + 1, **others}
    save_file({name: value for name, value in tensors.items() if value is not None},
              folder / "model.safetensors")  # fmt: skip


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, **changes: Any) -> None:
    """Change values of a JSON object in a file; a value of None is written as null."""
    write_json(path, {**read(path), **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
