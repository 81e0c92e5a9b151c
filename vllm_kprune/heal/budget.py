"""What a training needs of memory and disk, estimated from shapes before anything is loaded."""

from dataclasses import dataclass

import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.network import EMBEDDING, empty_text_model
from vllm_kprune.heal.options import HealOptions, What
from vllm_kprune.heal.teacher import Teacher
from vllm_kprune.sparsify.body import ModelBody
from vllm_kprune.sparsify.budget import available_memory
from vllm_kprune.sparsify.network import matrices_of

__all__ = ["TrainingBudget", "plan_training"]

_GB = 1e9
_SHARE_OF_MEMORY = 0.8
_FLOAT = 4
# A trained weight has a gradient and two moments.
_PER_TRAINED = 3 * _FLOAT
# Logits of a piece of the text, as often as they are there at once.
_LOGITS = 6 * _FLOAT << 24


@dataclass(frozen=True)
class _Sizes:
    """Numbers of weights: all, vocabulary, matrices of the layers, adapters; floats of a token."""

    all: int
    vocabulary: int
    matrices: int
    adapters: int
    per_token: int


@dataclass(frozen=True)
class TrainingBudget:
    """Bytes of memory, and of disk besides the weights' own files."""

    memory: int
    disk: int


def plan_training(body: ModelBody, teacher: Teacher | None, options: HealOptions) -> TrainingBudget:
    """What a training takes. Raises `KPruneError` if that is more than the memory there is."""
    sizes = _sizes(body, options)
    needed = _memory(sizes, teacher is not None, options, options.what)
    given = options.memory and int(options.memory * _GB)
    memory = given or int(_available(options) * _SHARE_OF_MEMORY)
    if needed > memory:
        raise KPruneError(
            f"healing needs about {_gb(needed)} of memory, {_gb(memory)} may be used; "
            f"{_saving(sizes, teacher is not None, options, needed)}"
        )
    trained = _trained(sizes, options.what)
    # A state is written beside the one before, and so is the best one.
    return TrainingBudget(needed, 2 * (trained * _PER_TRAINED + sizes.all * _FLOAT))


def _available(options: HealOptions) -> int:
    if options.device != "cpu" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(free)
    return available_memory()


def _sizes(body: ModelBody, options: HealOptions) -> _Sizes:
    causal, tied = empty_text_model(body)
    module = causal.model
    counts = {name: value.numel() for name, value in module.state_dict().items()}
    vocabulary = counts[EMBEDDING] * (1 if tied else 2)
    layers = [list(matrices_of(layer).values()) for layer in module.layers]
    matrices = [matrix for layer in layers for matrix in layer]
    widths = sum(m.in_features + m.out_features for m in matrices)
    hidden = module.embed_tokens.weight.shape[1]
    return _Sizes(
        all=sum(counts.values()) + vocabulary - counts[EMBEDDING],
        vocabulary=vocabulary,
        matrices=sum(matrix.weight.numel() for matrix in matrices),
        adapters=options.rank * widths,
        # Inputs and outputs of matrices, what activations and norms keep, and the residual stream.
        per_token=2 * widths + 8 * hidden * len(layers),
    )


def _trained(sizes: _Sizes, what: What) -> int:
    return {
        "all": sizes.all,
        "embeddings": sizes.vocabulary,
        "layers": sizes.all - sizes.vocabulary,
        "lora": sizes.adapters,
    }[what]


def _memory(sizes: _Sizes, teacher: bool, options: HealOptions, what: What) -> int:
    models = sizes.all * _FLOAT * (2 if teacher else 1)
    # A byte for each weight's mask; adapters on masked matrices are multiplied out.
    held = sizes.matrices * (1 + (2 * _FLOAT if what == "lora" else 0))
    passing = options.length * sizes.per_token * _FLOAT
    return models + held + passing + _LOGITS + _trained(sizes, what) * _PER_TRAINED


def _saving(sizes: _Sizes, teacher: bool, options: HealOptions, needed: int) -> str:
    """Options that need less, with how much they need."""
    ways = []
    shorter = options.length // 2
    passing = (options.length - shorter) * sizes.per_token * _FLOAT
    ways.append(f"--length {shorter} ({_gb(needed - passing)})")
    for what in ("layers", "lora", "embeddings"):
        if (less := _memory(sizes, teacher, options, what)) < needed:
            ways.append(f"--what {what} ({_gb(less)})")
    if teacher:
        ways.append(f"--distillation 0 ({_gb(needed - sizes.all * _FLOAT)})")
    return f"give more, or try {', '.join(ways)}"


def _gb(count: int) -> str:
    return f"{count / _GB:,.2f} GB"
