"""A standalone checkpoint on a machine without kprune answers as the original, masked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.offline_pairs import make_pair, masked_greedy
from support.tiny_architectures import ARCHITECTURES
from support.tiny_models import ENVIRONMENT

from vllm_kprune.checkpoint.export import export_overlay

pytestmark = [pytest.mark.server, pytest.mark.slow]

TOKENS = 32

# Python runs this whenever it starts: it hides the package and its entry points.
_HIDE_KPRUNE = """
import importlib.metadata as metadata, sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "vllm_kprune":
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)

discover = metadata.Distribution.discover
metadata.Distribution.discover = staticmethod(
    lambda **options: (d for d in discover(**options) if d.name != "vllm-kprune")
)
sys.meta_path.insert(0, Hidden)
"""

# Looks for kprune, then generates as anybody would who was given the checkpoint.
_GENERATE = """
import json, sys
from importlib.metadata import entry_points
from importlib.util import find_spec

plugins = [e.name for e in entry_points(group="vllm.general_plugins")]
try:
    hidden = find_spec("vllm_kprune") is None
except ModuleNotFoundError:
    hidden = True

from vllm import LLM, SamplingParams

model, prompts, tokens = json.loads(sys.argv[1])
engine = LLM(model=model, enforce_eager=True, max_model_len=256, dtype="float32")
params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
answers = engine.generate([{"prompt_token_ids": ids} for ids in prompts], params)
ids = [list(answer.outputs[0].token_ids) for answer in answers]
print("ANSWERS", json.dumps({"plugins": plugins, "hidden": hidden, "ids": ids}))
"""


def test_plain_vllm_serves_it_with_the_masked_originals_greedy_ids(tmp_path: Path) -> None:
    pair = make_pair(ARCHITECTURES["llama-3.1"].save(tmp_path / "original"), tmp_path)
    export_overlay(pair.overlay, tmp_path / "export")
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(_HIDE_KPRUNE)
    done = subprocess.run(
        [
            *(sys.executable, "-c", _GENERATE),
            json.dumps([str(tmp_path / "export"), pair.prompts, TOKENS]),
        ],
        env={
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": str(tmp_path / "hide"),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    plain = json.loads(line.removeprefix("ANSWERS "))
    assert plain["hidden"] and "kprune" not in plain["plugins"]
    assert [pair.original_ids(ids) for ids in plain["ids"]] == masked_greedy(pair, TOKENS)
    assert [len(ids) for ids in plain["ids"]] == [TOKENS] * len(pair.prompts)
