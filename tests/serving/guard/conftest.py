"""What the guard's tests share."""

import pytest
from support.triton_package import interpreter_environment

from vllm_kprune.errors import KPruneError


@pytest.fixture(scope="session")
def triton_environment(downloads: bool) -> dict[str, str]:
    """The environment of a script that runs Triton's kernels on the CPU, interpreted.

    Such a script begins with `support.triton_interpreter.use_interpreter()`.
    """
    try:
        return interpreter_environment(downloads)
    except KPruneError as error:
        pytest.skip(str(error))
