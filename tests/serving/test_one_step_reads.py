"""`vllm serve MODEL --kprune-profile P`: the base is opened and read once."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_folders import save_model

from vllm_kprune.checkpoint import base as base_module
from vllm_kprune.checkpoint import manifest as manifest_module
from vllm_kprune.serving.activation import LOAD_FORMAT, activate
from vllm_kprune.storage import digest as digest_module

pytestmark = pytest.mark.usefixtures("vllm_ready")
PROFILE = "languages: [th]\ncode: false\n"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a tokenizer, a shard's header and the content of each file were read."""
    counted: Counter[str] = Counter()

    def count(module: Any, function: str, name_of: Callable[[Path], str]) -> None:
        original = getattr(module, function)

        def counting(path: Path, *rest: Any) -> Any:
            counted[name_of(path)] += 1
            return original(path, *rest)

        monkeypatch.setattr(module, function, counting)

    count(base_module, "read_tokenizer", lambda folder: "tokenizer")
    count(base_module, "read_shard", lambda path: "header")
    for module in (digest_module, manifest_module):  # each holds the name
        count(module, "sha256_file", lambda path: f"{path.parent.name}/{path.name}")
    return counted


def test_one_step_opens_the_base_once_and_hashes_each_file_of_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[str]
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    model = save_model(tmp_path / "model")
    profile = tmp_path / "thai.yaml"
    profile.write_text(PROFILE)
    options = {"kprune": {"profile": str(profile)}}
    args = EngineArgs(model=str(model), skip_tokenizer_init=True, additional_config=options)

    assert activate(args)
    assert args.load_format == LOAD_FORMAT
    assert args.model_weights == str(model)
    assert Path(args.model).is_relative_to(tmp_path / "cache")
    of_base = {name: n for name, n in reads.items() if name.startswith("model/")}
    assert set(of_base.values()) == {1}
    assert "model/model.safetensors" in of_base
    assert (reads["tokenizer"], reads["header"]) == (1, 1)

    reads.clear()
    again = EngineArgs(model=str(model), skip_tokenizer_init=True, additional_config=options)
    assert activate(again)
    assert again.model == args.model
    assert not [name for name in reads if name.startswith("model/")]
    assert {n for name, n in reads.items() if "/" in name} == {1}  # the overlay's own files
    assert (reads["tokenizer"], reads["header"]) == (1, 1)
