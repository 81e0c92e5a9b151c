"""The guard's kernels compiled for an NVIDIA GPU, without one: up to PTX, which needs no driver.

Run as a script with Triton in reach and without `TRITON_INTERPRET`. The interpreter is Python, and
takes what the compiler refuses: variables whose type changes in a branch or a loop, for instance.
"""

import sys
from types import SimpleNamespace
from typing import Any

from triton import backends, compile
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

_TARGET = GPUTarget("cuda", 90, 32)
_TYPES = {
    **dict.fromkeys(("slots", "rows", "totals", "row_slots", "row_positions"), "*i64"),
    **dict.fromkeys(("total_len", "row_locals", "row_tokens", "texts", "tokens"), "*i32"),
    **dict.fromkeys(("logits", "largest"), "*fp32"),
    **{"numbers": "*i16", "waiting": "*i8"},
}
_CONSTANTS = {"column_stride": 1, "BLOCK": 2048, "BLOCKS": 128}


class _NoDriver:
    @staticmethod
    def is_active() -> bool:
        return False


def _stop_at_ptx() -> None:
    backend = backends.backends["nvidia"].compiler
    add_stages = backend.add_stages

    def stages_to_ptx(self: Any, stages: dict[str, Any], *args: Any) -> None:
        add_stages(self, stages, *args)
        stages["cubin"] = lambda source, metadata: b""

    backend.add_stages = stages_to_ptx
    # Part of the name in Triton's cache; the assembler itself is not there.
    nvidia.get_ptxas_version = lambda *args: "none"


def main() -> None:
    # vLLM's CPU build switches Triton off unless it has a backend of this name.
    backends.backends["cpu"] = SimpleNamespace(driver=_NoDriver, compiler=None)
    from vllm_kprune.serving.guard import kernels

    del backends.backends["cpu"]
    _stop_at_ptx()
    for name in kernels.__all__:
        kernel = getattr(kernels, name)
        given = {one: _CONSTANTS[one] for one in kernel.arg_names if one in _CONSTANTS}
        types = {
            one: "constexpr" if one in given else _TYPES.get(one, "i32") for one in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=types, constexprs=given)
        compiled = compile(source, target=_TARGET, options={"ptx_version": 86})
        assert ".entry" in compiled.asm["ptx"]
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
