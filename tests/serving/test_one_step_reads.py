"""`vllm serve MODEL --kprune-profile P`: the base is opened and read once."""

from pathlib import Path

import pytest
from support.counted_reads import count_reads, hashed_in
from support.tiny_folders import save_model

from vllm_kprune.serving.activation import LOAD_FORMAT, activate

pytestmark = pytest.mark.usefixtures("vllm_ready")
PROFILE = "languages: [th]\ngenres: []\n"


def test_one_step_opens_the_base_once_and_hashes_each_file_of_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    model = save_model(tmp_path / "model")
    profile = tmp_path / "thai.yaml"
    profile.write_text(PROFILE)
    options = {"kprune": {"profile": str(profile)}}
    args = EngineArgs(model=str(model), skip_tokenizer_init=True, additional_config=options)

    reads = count_reads(monkeypatch)
    assert activate(args)
    assert args.load_format == LOAD_FORMAT
    assert args.model_weights == str(model)
    assert Path(args.model).is_relative_to(tmp_path / "cache")
    of_base = hashed_in(reads, "model")
    assert set(of_base.values()) == {1}
    assert "model.safetensors" in of_base
    assert (reads["tokenizer"], reads["header"]) == (1, 1)

    reads.clear()
    again = EngineArgs(model=str(model), skip_tokenizer_init=True, additional_config=options)
    assert activate(again)
    assert again.model == args.model
    assert hashed_in(reads, "model") == {}
    assert set(hashed_in(reads, Path(args.model).name).values()) == {1}
    assert (reads["tokenizer"], reads["header"]) == (1, 1)
