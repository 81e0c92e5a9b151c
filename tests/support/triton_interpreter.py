"""The first import of a script that runs vLLM's or kprune's Triton kernels on the CPU.

`TRITON_INTERPRET=1` runs kernels in Python, on CPU tensors. vLLM's CPU build switches Triton off
where it finds no driver, and its V2 runner asks for streams and for memory that a GPU can read.
`triton_package.py` makes the environment.
"""

import os
from types import SimpleNamespace

__all__ = ["use_interpreter"]


class _NoDriver:
    """Stands in the place of a driver, so that vLLM counts one."""

    @staticmethod
    def is_active() -> bool:
        return False


def use_interpreter() -> None:
    """Let vLLM find an interpreted Triton. Call it before anything imports vLLM."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "see triton_package.interpreter_environment"
    import torch
    from triton import backends

    torch.set_num_threads(1)
    # vLLM's CPU build asks for this name and nothing more.
    backends.backends["cpu"] = SimpleNamespace(driver=_NoDriver, compiler=None)
    # The runner's buffers, streams and copies, on the CPU: vLLM's own CPU worker has them.
    import vllm.v1.worker.cpu.shm  # noqa: F401

    _replace_what_cannot_be_interpreted()
    _patch_the_language_once()


def _replace_what_cannot_be_interpreted() -> None:
    """One kernel, for which vLLM has the same in PyTorch, and a function of CUDA's."""
    from triton import language as tl
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils

    topk_topp_sampler.HAS_TRITON = False
    rejection_sampler_utils.tldevice = SimpleNamespace(log1p=lambda x: tl.log(1 + x))


def _patch_the_language_once() -> None:
    """Triton patches `tl` for every call of a function, which is a third of the time."""
    from triton import language as tl
    from triton.runtime import interpreter

    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    nothing = interpreter._LangPatchScope()  # whose restoring restores nothing
    interpreter._patch_lang = lambda function: nothing
