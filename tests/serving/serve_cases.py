"""Runs `vllm serve` for many wrong command lines, importing vLLM only once.

    python serve_cases.py CASES.json

Each case (`{"words": [...], "environment": {...}, "vllm": VERSION or null}`) runs in a fork of a
process that has imported vLLM. The answers are printed as one line of JSON: exit code and output.
"""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Exit code and what was written to stderr and stdout by `vllm serve` with these words."""
    with tempfile.TemporaryFile() as output:
        if not (pid := os.fork()):
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = _serve(case)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        text = output.read().decode("utf-8", errors="replace")
    return {"code": os.waitstatus_to_exitcode(status), "text": text}


def _serve(case: dict[str, Any]) -> int:
    from vllm.entrypoints.cli.main import main

    from vllm_kprune.serving import compat

    os.environ.update(case.get("environment", {}))
    if case.get("vllm"):
        compat.vllm_version = lambda: case["vllm"]
    sys.argv = ["vllm", "serve", *case["words"]]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for name in ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve"):
        importlib.import_module(name)
    cases = json.loads(Path(sys.argv[1]).read_text())
    answers = [run(case) for case in cases]
    sys.stdout.write("ANSWERS " + json.dumps(answers) + "\n")
