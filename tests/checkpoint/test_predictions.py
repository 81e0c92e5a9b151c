"""What pruning the vocabulary and pruning the LM head alone are predicted to save, by hand."""

from pathlib import Path

import pytest
from support.tiny_architectures import ARCHITECTURES

from vllm_kprune.checkpoint.base import open_base
from vllm_kprune.checkpoint.sizes import weight_sizes

KEPT = 100
HIDDEN, FLOAT = 64, 4


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3.2"])
def test_sizes_of_both_forms_are_those_worked_out_by_hand(name: str, tmp_path: Path) -> None:
    base = open_base(str(ARCHITECTURES[name].save(tmp_path / "model")))
    assert base.tied == (name == "llama-3.2")
    matrix, kept = base.rows * HIDDEN * FLOAT, KEPT * HIDDEN * FLOAT
    stored = sum(info.bytes for info in base.tensors.values())
    body = stored - matrix * (1 if base.tied else 2)
    sizes = weight_sizes(base, KEPT)
    found = {key: (one.original, one.pruned) for key, one in vars(sizes).items()}
    matrices = 1 if base.tied else 2
    assert found["bytes"] == (stored, body + matrices * kept)
    # Alone, a tied head is a copy beside the embedding, and an untied one is cut.
    assert found["head_bytes"] == (stored, body + matrix + kept)
    # A step reads the body and the head; of the embedding, next to nothing.
    assert found["step_bytes"] == (body + matrix, body + kept)


def test_without_a_profile_there_is_nothing_to_predict(tmp_path: Path) -> None:
    base = open_base(str(ARCHITECTURES["llama-3.2"].save(tmp_path / "model")))
    sizes = weight_sizes(base)
    assert all(one.pruned is None for one in vars(sizes).values())
