"""A standalone checkpoint on a machine without kprune gives the overlay's greedy answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.live_client import greedy_batch
from support.tiny_models import ENVIRONMENT
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.demo.servers import VllmServer

pytestmark = [pytest.mark.server, pytest.mark.slow]

PROMPTS = (
    "대한민국의 수도는",
    "The most important property of a prime number",
    "Python에서 list와 tuple의 차이는",
    "def fibonacci(n):\n    if n <",
)
TOKENS = 48

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

_LOOK = """
from importlib.metadata import entry_points
print([e.name for e in entry_points(group="vllm.general_plugins")])
import vllm_kprune
"""


@pytest.fixture(scope="module")
def without_kprune(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which a process cannot find kprune; this is checked first."""
    folder = tmp_path_factory.mktemp("hide")
    (folder / "sitecustomize.py").write_text(_HIDE_KPRUNE)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder), "VLLM_KPRUNE_DISABLE": "1"}
    looked = subprocess.run(
        [sys.executable, "-c", _LOOK],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "kprune" not in looked.stdout and "No module named 'vllm_kprune'" in looked.stderr
    return environment


def greedy_ids(server: VllmServer, prompts: list[list[int]]) -> list[list[int]]:
    return [[step.token for step in steps] for steps in greedy_batch(server, prompts, TOKENS)]


def test_plain_vllm_serves_it_with_the_overlays_greedy_ids(
    pruned: VllmServer, overlay: Path, without_kprune: dict[str, str], tmp_path: Path
) -> None:
    export = tmp_path / "export"
    export_overlay(overlay, export)
    tokenizer = Tokenizer.from_file(str(overlay / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    expected = greedy_ids(pruned, prompts)
    arguments = ["--enforce-eager", "--max-model-len", "1024"]
    arguments += ["--logprobs-mode", "processed_logits", "--dtype", "float32"]  # as `pruned`
    with VllmServer(export, arguments, environment=without_kprune) as plain:
        answers = greedy_ids(plain, prompts)
    assert answers == expected
    assert [len(answer) for answer in answers] == [TOKENS] * len(PROMPTS)
