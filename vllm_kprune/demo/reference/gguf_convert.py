"""Turn a GGUF file into a model folder: bf16 safetensors, `config.json`, tokenizer.

Why not with transformers: that takes 70 s and 3 GB for Gemma-3 270M. This streams the rows in
blocks, takes a few seconds and needs no torch. A test compares the result with transformers', bit
for bit.

Covers the architectures in `_ARCHITECTURES`. Quantised blocks are decoded by the `gguf` package,
from the extra `demo`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vllm_kprune.demo.reference.gguf_file import GgufFile, GgufTensor, MetaValue
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import ShareDone

__all__ = ["model_config", "tied_by_head", "write_safetensors"]

# A power of two: a block never ends inside a head of 64, 128 or 256 rows (`_in_halves`).
_ROWS_PER_BLOCK = 16_384
_BLOCK_NAMES = {  # GGUF's names inside `blk.N.`, the same in every family so far
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_up": "mlp.up_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def _token_ids(meta: Mapping[str, MetaValue]) -> dict[str, Any]:
    keys = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{name}_token_id": meta[f"tokenizer.ggml.{keys[name]}_token_id"] for name in keys}


Number = Callable[[str], Any]  # metadata by its name after "llama."


def _llama_config(number: Number) -> dict[str, Any]:
    return {
        "head_dim": number("rope.dimension_count"),
        "rope_parameters": _rope(number("rope.freq_base")),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def _qwen2_config(number: Number) -> dict[str, Any]:
    return {
        "rope_parameters": _rope(number("rope.freq_base")),
        "hidden_act": "silu",
        "sliding_window": None,
        "use_sliding_window": False,
    }


def _gemma3_config(number: Number) -> dict[str, Any]:
    return {
        "head_dim": number("attention.key_length"),
        "query_pre_attn_scalar": number("attention.key_length"),
        # Every sixth layer attends to everything, the others to a window. GGUF does not say so.
        "layer_types": [
            "full_attention" if layer % 6 == 0 else "sliding_attention"
            for layer in range(1, number("block_count") + 1)
        ],
        "sliding_window": number("attention.sliding_window"),
        "rope_parameters": {
            "full_attention": _rope(number("rope.freq_base")),
            "sliding_attention": _rope(10000.0),
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": "default"}


@dataclass(frozen=True)
class _Architecture:
    """What differs between architectures.

    `config` makes the fields of config.json that not all architectures have. GGUF stores norms with
    `norm_offset` added. `names` are exceptions to `_BLOCK_NAMES`. In the tensors `paired`, GGUF
    interleaves the two halves of each head's rows, for llama.cpp's rotary embedding.
    """

    architecture: str
    model_type: str
    config: Callable[[Number], dict[str, Any]]
    norm_offset: float = 0.0
    names: Mapping[str, str] = field(default_factory=dict)
    paired: tuple[str, ...] = ()


_NO_INNER_NORMS = {"ffn_norm": "post_attention_layernorm"}
_ARCHITECTURES = {
    "gemma3": _Architecture("Gemma3ForCausalLM", "gemma3_text", _gemma3_config, norm_offset=1.0),
    "llama": _Architecture(
        "LlamaForCausalLM",
        "llama",
        _llama_config,
        names=_NO_INNER_NORMS,
        paired=("attn_q", "attn_k"),
    ),
    "qwen2": _Architecture("Qwen2ForCausalLM", "qwen2", _qwen2_config, names=_NO_INNER_NORMS),
}


def _architecture(gguf: GgufFile) -> _Architecture:
    name = str(gguf.metadata.get("general.architecture"))
    if name not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise KPruneError(f"GGUF architecture {name!r} cannot be converted (known: {known})")
    return _ARCHITECTURES[name]


def _list(value: MetaValue) -> list[MetaValue]:
    assert isinstance(value, list)
    return value


def tied_by_head(gguf: GgufFile) -> GgufFile:
    """The file with its LM head in place of its embedding, so that both are one tensor.

    For models whose head is tied although the file stores it separately. Converters store the head
    in a finer type than the embedding, so the head is closer to what the makers published.
    """
    head, embedding = "output.weight", "token_embd.weight"
    if all(tensor.name != head for tensor in gguf.tensors):
        return gguf
    kept = [tensor for tensor in gguf.tensors if tensor.name != embedding]
    return replace(
        gguf, tensors=tuple(replace(t, name=embedding) if t.name == head else t for t in kept)
    )


def model_config(gguf: GgufFile) -> dict[str, Any]:
    """Build the object of `config.json`.

    Raises:
        KPruneError: the architecture is not in the table.
    """
    family, meta = _architecture(gguf), gguf.metadata

    def number(name: str) -> Any:
        return meta[f"{meta['general.architecture']}.{name}"]

    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": "bfloat16",
        # The version of this layout. Without it, transformers warns about a regex that Gemma's
        # tokenizer does not have.
        "transformers_version": "5.0.0",
        "vocab_size": len(_list(meta["tokenizer.ggml.tokens"])),
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "max_position_embeddings": number("context_length"),
        # GGUF has it as a float32, in which 1e-06 is 9.99999997e-07.
        "rms_norm_eps": float(f"{number('attention.layer_norm_rms_epsilon'):.6g}"),
        **family.config(number),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in gguf.tensors),
        "use_cache": True,
        **_token_ids(meta),
    }


def write_safetensors(gguf: GgufFile, target: Path, progress: ShareDone | None = None) -> None:
    """Write all tensors as bf16 under the names that transformers uses.

    `progress` gets the share that is done, from 0 to 1.

    Raises:
        KPruneError: unknown architecture or tensor, or the `gguf` package is missing.
    """
    family, config = _architecture(gguf), model_config(gguf)
    tensors = sorted(((_name(t, family), t) for t in gguf.tensors), key=lambda pair: pair[0])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors:
        # Two bytes for each value; offsets count from the end of the header.
        begin, end = end, end + 2 * int(np.prod(tensor.shape))
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    # Padded to a multiple of 8 bytes, so that the data is aligned.
    head += b" " * (-len(head) % 8)
    written = 0
    with gguf.path.open("rb") as source, target.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name, tensor in tensors:
            # Gemma multiplies by 1 + weight, and GGUF stores that sum. The name is the new one, in
            # which every norm has "norm".
            shift = family.norm_offset if "norm" in name else 0.0
            paired = tensor.name.split(".")[-2] in family.paired
            for block in _blocks(source, tensor):
                block = _in_halves(block, config["head_dim"]) if paired else block
                written += out.write(_to_bf16(block - shift if shift else block).tobytes())
                if progress is not None:
                    progress(written / end)


def _name(tensor: GgufTensor, family: _Architecture) -> str:
    """Translate a name: blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    names = {**_BLOCK_NAMES, **family.names}
    match tensor.name.split("."):
        case ["blk", layer, inner, kind] if inner in names:
            return f"model.layers.{layer}.{names[inner]}.{kind}"
        case [outer, kind] if outer in _OUTER_NAMES:
            return f"{_OUTER_NAMES[outer]}.{kind}"
    raise KPruneError(f"{tensor.name!r} in the GGUF file is not a tensor that kprune knows")


def _blocks(source: BinaryIO, tensor: GgufTensor) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the rows of a tensor as float32, block by block."""
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape
    except ImportError as error:
        raise KPruneError(
            "converting a GGUF file needs the `gguf` package: pip install 'vllm-kprune[demo]'"
        ) from error
    kind = GGMLQuantizationType(tensor.ggml_type)
    num_rows = int(np.prod(tensor.shape[:-1]))
    # The package works out row sizes of quantised types only. The other types are these floats.
    width = {"F32": 4, "F16": 2, "BF16": 2}.get(kind.name, 0) * tensor.shape[-1]
    row_bytes = width or quant_shape_to_byte_shape((1, tensor.shape[-1]), kind)[-1]
    source.seek(tensor.offset)
    for first in range(0, num_rows, _ROWS_PER_BLOCK):
        count = min(_ROWS_PER_BLOCK, num_rows - first)
        raw = source.read(count * row_bytes)
        if len(raw) != count * row_bytes:
            raise KPruneError(f"the GGUF file ends inside tensor {tensor.name!r}")
        if kind.name in ("F32", "F16"):
            yield np.frombuffer(raw, dtype="<f4" if kind.name == "F32" else "<f2").astype("f4")
        else:
            yield dequantize(np.frombuffer(raw, np.uint8).reshape(count, -1), kind)


def _in_halves(rows: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Undo the interleaving in rows of whole heads.

    Within each head, rows 0, 2, 4, … become its first half and rows 1, 3, 5, … its second.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to bfloat16, ties to even, as torch does. The values must be finite.

    >>> [hex(bits) for bits in _to_bf16(np.array([1.0, 1.00390625, 1.01171875], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82']
    """
    # bfloat16 is the upper half of a float32. Adding 0x7FFF rounds the lower half, and the last bit
    # that is kept decides ties.
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
