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
