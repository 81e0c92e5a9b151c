"""Runs `vllm serve` for many wrong command lines, importing vLLM only once.

A script for `forks.ask`. Each case (`{"words": [...], "environment": {...}, "vllm": VERSION or
null}`) runs in a fork; its answer has the exit code and the output.
"""

import importlib
import os
import sys
import traceback
from typing import Any

from support.forks import answer_jobs


def _serve(case: dict[str, Any]) -> int:
    from vllm.entrypoints.cli.main import main

    from vllm_kprune.serving import compat

    os.environ.update(case.get("environment", {}))
    if case.get("vllm"):
        compat.version.vllm_version = lambda: case["vllm"]
    sys.argv = ["vllm", "serve", *case["words"]]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for name in ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve"):
        importlib.import_module(name)
    answer_jobs(_serve, lambda one: {"code": one.result, "text": one.text})
