"""How many floating-point operations prefill and ranking take, from a model's config.json alone.

Only matrix products are counted, and a multiplication with its addition counts as 2. Norms,
softmax, rotation and activations add a few percent at most. Prefill computes the logits of the last
token only, as vLLM does, and attention for the pairs that the mask allows; a kernel that works on
whole blocks does somewhat more. Covers dense models with a gated MLP, not mixtures of experts.
"""

from dataclasses import dataclass
from pathlib import Path

from vllm_kprune.errors import KPruneError, nearest

__all__ = ["PUBLISHED", "Shape", "load_shape", "prefill_flops", "ranking_flops"]

_GATED = ("cohere", "cohere2", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. `queries` and `keys` are heads x head dimension.

    `windows` says, for each layer, how many tokens a token looks back; None means to the first.
    """

    hidden: int
    inner: int
    queries: int
    keys: int
    vocabulary: int
    windows: tuple[int | None, ...]


_ALTERNATE = (4096, None)
# The paper's rankers and the smaller of its targets, from their published config.json.
PUBLISHED = {
    "llama-3.2-1b": Shape(2048, 8192, 32 * 64, 8 * 64, 128_256, (None,) * 16),
    "llama-3.1-8b": Shape(4096, 14336, 32 * 128, 8 * 128, 128_256, (None,) * 32),
    "gemma-2-2b": Shape(2304, 9216, 8 * 256, 4 * 256, 256_000, _ALTERNATE * 13),
    "gemma-2-9b": Shape(3584, 14336, 16 * 256, 8 * 256, 256_000, _ALTERNATE * 21),
}


def load_shape(model: str) -> Shape:
    """The sizes of a model's folder (config.json is enough), or of one of `PUBLISHED`.

    Raises:
        KPruneError: neither, or a model that is not a dense decoder with a gated MLP.
    """
    folder = Path(model).expanduser()
    if model in PUBLISHED:
        return PUBLISHED[model]
    if not (folder / "config.json").is_file():
        raise KPruneError(
            f"{model} is no folder with a config.json, and no known model; "
            f"{nearest(model, PUBLISHED)}"
        )
    from transformers import AutoConfig  # it has the defaults of missing fields

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    if config.model_type not in _GATED:
        raise KPruneError(f"{folder}: FLOPs of {config.model_type!r} are not known; {_GATED} are")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None)
    alike = "full_attention" if window is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [alike] * config.num_hidden_layers
    return Shape(
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * head,
        config.num_key_value_heads * head,
        config.vocab_size,
        tuple(window if kind == "sliding_attention" else None for kind in kinds),
    )


def prefill_flops(shape: Shape, tokens: int) -> int:
    """FLOPs until the first token of an answer to `tokens` tokens, without a prefix cache."""
    attention = shape.hidden * (2 * shape.queries + 2 * shape.keys)  # q, k, v and output
    linear = len(shape.windows) * tokens * (attention + 3 * shape.hidden * shape.inner)
    pairs = sum(_pairs(tokens, window) for window in shape.windows)
    return 2 * linear + 4 * pairs * shape.queries + 2 * shape.hidden * shape.vocabulary


def _pairs(tokens: int, window: int | None) -> int:
    """Pairs of a token and a token that it sees: itself and those before, at most `window`.

    >>> _pairs(4, None), _pairs(4, 2)
    (10, 7)
    """
    seen = min(tokens, window or tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


def ranking_flops(shape: Shape, tokens: int, *, whole_layer: bool = False) -> int:
    """FLOPs to rank `tokens` tokens by attention in the first layer, without a mask.

    `whole_layer`: algorithm 1 as printed, which calls the attention module and so also computes
    values, their weighted sums and the output projection. Otherwise what kprune computes, at most:
    queries and keys (of equal tokens once; here all are taken to differ) and their products.
    """
    project = shape.hidden * (shape.queries + shape.keys)
    attend = shape.queries
    if whole_layer:
        project *= 2
        attend *= 2
    return 2 * tokens * project + 2 * tokens**2 * attend
