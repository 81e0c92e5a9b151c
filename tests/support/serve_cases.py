"""Runs `vllm serve` for many wrong command lines, importing vLLM only once.

    python serve_cases.py CASES.json

Each case (`{"words": [...], "environment": {...}, "vllm": VERSION or null}`) runs in a fork. The
exit code and the output of each are printed as one line of JSON.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from support.forks import run_forked, tell


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
    cases = json.loads(Path(sys.argv[1]).read_text())
    tell([{"code": one.result, "text": one.text} for one in run_forked(_serve, cases)])
