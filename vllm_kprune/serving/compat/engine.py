"""The private parts of vLLM's engine: plugins, weights, adapters, logits processors."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from vllm_kprune.serving.compat.features import GUARD
from vllm_kprune.serving.compat.installer import why_off

__all__ = [
    "adapter_folder",
    "endpoint_plugins_allowed",
    "has_triton",
    "is_last_stage",
    "pins_memory",
    "refuses_logits_processors",
    "settle_tied_head",
    "staged_tokens",
    "stream_weights",
    "tensor_parallel_rank",
]


@contextmanager
def endpoint_plugins_allowed(names: Iterable[str]) -> Iterator[None]:
    """Let `vllm.plugins.load_endpoint_plugins` load these too.

    It reads `VLLM_PLUGINS`, which filters *general* plugins as well when set. So it is set only
    during that one call, and child processes inherit what the user had.
    """
    before = os.environ.get("VLLM_PLUGINS")
    # Unset and "" differ for vLLM: "" is a list that matches no plugin. `finally` restores which it
    # was.
    allowed = [*(before.split(",") if before else []), *names]
    os.environ["VLLM_PLUGINS"] = ",".join(allowed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["VLLM_PLUGINS"]
        else:
            os.environ["VLLM_PLUGINS"] = before


def settle_tied_head(model_config: Any, base: Path) -> None:
    """Let vLLM look into the *base* for an LM head that its configuration denies.

    Some checkpoints say `tie_word_embeddings` and yet contain an `lm_head.weight`; vLLM then loads
    it and compares. It looks for that tensor in `model_config.model`, and an overlay has none.
    """
    overlay = model_config.model
    model_config.model = str(base)
    try:
        model_config.maybe_untie_word_embeddings()
    finally:
        model_config.model = overlay


def stream_weights(loader: Any, folder: Path, model: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of all weights in `folder`, as vLLM's default loader would yield them."""
    more = {}
    if "is_unused_weight" in {field.name for field in fields(loader.Source)}:  # not in vLLM 0.31
        more["is_unused_weight"] = getattr(model, "is_unused_checkpoint_weight", None)
    # Safetensors or nothing: unpickling a checkpoint can run code.
    source = loader.Source(str(folder), None, fall_back_to_pt=False, **more)
    # Private, but the only way to vLLM's readers (memory-mapped, or its faster ones) for another
    # folder than the model's. `seams_engine.WEIGHTS_ITERATOR` is its row.
    yield from loader._get_weights_iterator(source)


def adapter_folder(adapter: str) -> Path:
    """The folder of a LoRA adapter, downloaded if it is a hub id."""
    from vllm.lora.utils import get_adapter_absolute_path

    return Path(get_adapter_absolute_path(adapter))


def refuses_logits_processors(config: Any) -> str | None:
    """Why the engine of a `VllmConfig` takes no logits processors; None if it takes them.

    vLLM itself says less when it refuses one, or ignores it.
    """
    # First, because it tells which vLLM name is missing; what follows reads such names.
    if reason := why_off(GUARD):
        return reason
    from vllm.platforms import current_platform

    model = config.model_config
    if model.runner_type == "pooling":
        return "a pooling model produces no text"
    if getattr(model, "is_diffusion", False):
        return "a diffusion model samples without logits processors"
    if current_platform.is_tpu():
        return "vLLM runs no logits processors on TPUs"
    if getattr(model, "return_sampling_mask", False):
        return "--return-sampling-mask refuses logits processors; leave it out"
    speculative = config.speculative_config
    if speculative is not None and not config.use_v2_model_runner:
        return (
            "vLLM's V1 model runner refuses logits processors with speculative decoding; "
            "leave --speculative-config (-sc) out"
        )
    if speculative is not None and speculative.rejection_sample_method == "synthetic":
        return (
            "speculative decoding with rejection_sample_method synthetic accepts drafts at random, "
            "also those that the guard refuses; use standard or block"
        )
    return None


def tensor_parallel_rank() -> int:
    """This process's place in its tensor-parallel group; 0 where there is no group."""
    from vllm.distributed.parallel_state import (
        get_tensor_model_parallel_rank,
        model_parallel_is_initialized,
    )

    # Asking for the rank without a group is an assertion error in vLLM.
    return int(get_tensor_model_parallel_rank()) if model_parallel_is_initialized() else 0


def is_last_stage() -> bool:
    """Does this process have the last pipeline stage, the one that samples?"""
    from vllm.distributed.parallel_state import get_pp_group, model_parallel_is_initialized

    return bool(get_pp_group().is_last_rank) if model_parallel_is_initialized() else True


def has_triton() -> bool:
    """Can vLLM compile Triton kernels here?"""
    from vllm.triton_utils import HAS_TRITON

    return bool(HAS_TRITON)


def pins_memory() -> bool:
    """Can this machine pin host memory, so that copies to the device are asynchronous?"""
    from vllm.utils.platform_utils import is_pin_memory_available

    return bool(is_pin_memory_available())


def staged_tokens(tokens: Any, slot: int) -> list[int] | None:
    """What is staged for a row of the V2 runner's token tensor and not on the device yet.

    None if nothing is staged, or if this vLLM stages in another way. The tensor can be read
    instead, but that waits for the device.
    """
    names = ("_staged_write_indices", "_staged_write_contents", "_staged_write_cu_lens")
    if not all(hasattr(tokens, name) for name in names):
        return None
    indices, contents, ends = (getattr(tokens, name) for name in names)
    # All writes lie one after the other in `contents`; `ends` has where each ends. Indices [4, 2]
    # and ends [3, 5] are 3 tokens for row 4 and 2 for row 2. The last write for a row is the valid
    # one.
    written = [n for n, index in enumerate(indices) if index == slot]
    if not written:
        return None
    begin = ends[written[-1] - 1] if written[-1] else 0
    return list(contents[begin : ends[written[-1]]])
