"""vLLM's own V2 sampler with the guard inside, on the CPU: its kernels are interpreted."""

import subprocess
import sys
from pathlib import Path

CODE = """
from support.triton_interpreter import use_interpreter
use_interpreter()
import torch
from vllm.triton_utils import HAS_TRITON, tl, triton
assert HAS_TRITON

@triton.jit
def double(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n) * 2, mask=at < n)

x = torch.arange(10)
y = torch.zeros_like(x)
double[(triton.cdiv(10, 4),)](x, y, 10, BLOCK=4)
assert y.tolist() == list(range(0, 20, 2)), y
"""


def test_kernels_are_interpreted(triton_environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(CODE)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=triton_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
