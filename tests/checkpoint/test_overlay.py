"""Overlays: the same bytes each time, and every id mapped."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_folders import TEMPLATE, contents, edit, read, save_model
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay, write_overlay
from vllm_kprune.checkpoint.plan import Plan, make_plan
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.tokenizer.encoder import load_encoder

ORIGINAL = Profile(name="original")
THAI = Profile(name="thai", languages=("th",), code=False)


def write(plan: Plan, folder: Path) -> Path:
    folder.mkdir()
    write_overlay(plan, folder)
    return folder


def test_writing_an_overlay_twice_gives_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    first, second = write(plan, tmp_path / "a"), write(plan, tmp_path / "b")
    assert contents(first) == contents(second)
    assert set(contents(first)) == {
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "kprune.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.slow
def test_pruning_an_overlay_with_the_same_profile_gives_the_same_bytes(
    tiny_model: Path, small_profile: Profile, corpus: Path, tmp_path: Path
) -> None:
    build_overlay(str(tiny_model), small_profile, tmp_path / "a", corpora=[corpus])
    build_overlay(str(tmp_path / "a"), small_profile, tmp_path / "b", corpora=[corpus])
    build_overlay(str(tmp_path / "a"), small_profile, tmp_path / "a", corpora=[corpus], force=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_seed_of_hashes(tiny_model: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from vllm_kprune.profile import Profile\n"
        "from vllm_kprune.checkpoint.overlay import build_overlay\n"
        "build_overlay(sys.argv[1], Profile(name='th', languages=('th',), code=False),"
        " Path(sys.argv[2]))"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, str(tiny_model), str(tmp_path / seed)]
        subprocess.run(command, env=environment, check=True)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_every_id_in_every_file_is_mapped(plan: Plan, tmp_path: Path) -> None:
    folder = write(plan, tmp_path / "a")
    pruned = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = {name: pruned.token_to_id(f"<{name}>") for name in ("pad", "eos", "bos", "unk")}
    assert len(set(ids.values())) == 4
    config = read(folder / "config.json")
    assert config["bos_token_id"] == ids["bos"]
    assert config["eos_token_id"] == [ids["eos"], ids["pad"]]
    assert config["pad_token_id"] is None
    assert config["text_config"] == {"decoder_start_token_id": ids["bos"], "max_new_tokens": 7}
    assert config["vocab_size"] == pruned.get_vocab_size() == len(plan.selection.kept_ids)
    assert read(folder / "generation_config.json") == {
        "eos_token_id": ids["eos"],
        "pad_token_id": -1,
        "suppress_tokens": [pruned.token_to_id("<unused1>")],
        "max_new_tokens": 20,
    }
    added = read(folder / "tokenizer_config.json")["added_tokens_decoder"]
    assert added == {str(i): {"content": f"<{name}>"} for name, i in ids.items()}
    assert pruned.encode("a").ids[0] == ids["bos"]


def test_reserved_tokens_that_files_refer_to_are_kept(plan: Plan, tmp_path: Path) -> None:
    """By id (suppressed), by text (padding) and in the chat template; the others go."""
    pruned = Tokenizer.from_file(str(write(plan, tmp_path / "a") / "tokenizer.json"))
    kept = [n for n in range(5) if pruned.token_to_id(f"<unused{n}>") is not None]
    assert kept == [1, 2, 3]
    assert "<unused3>" in TEMPLATE


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("config.json", {"eos_token_id": 9999}, "eos_token_id names token id 9999"),
        ("config.json", {"text_config": {"pad_token_id": 9999}}, "text_config: pad_token_id names"),
        ("generation_config.json", {"bad_words_ids": [[9999]]}, "bad_words_ids names"),
        ("generation_config.json", {"eos_token_id": "x"}, "expected token ids"),
        ("config.json", {"video_start_token": 5}, "does not know whether that is a token id"),
    ],
)
def test_an_id_that_cannot_be_mapped_stops_the_build(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    model = save_model(tmp_path / "model")
    edit(model / name, **changes)
    with pytest.raises(KPruneError, match=message):
        build_overlay(str(model), THAI, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_original_profile_changes_nothing_but_what_is_past_the_tokenizer(
    tiny_model: Path, tmp_path: Path
) -> None:
    manifest = build_overlay(str(tiny_model), ORIGINAL, tmp_path / "out")
    size = load_encoder(tiny_model).get_vocab_size()
    assert manifest.kept_ids == tuple(range(size))
    assert read(tmp_path / "out" / "tokenizer.json") == read(tiny_model / "tokenizer.json")
    assert read(tmp_path / "out" / "config.json")["vocab_size"] == size


def test_the_manifest_tells_what_was_built_from_what(plan: Plan, tmp_path: Path) -> None:
    manifest = load_manifest(write(plan, tmp_path / "a"))
    assert manifest.kept_ids == plan.selection.kept_ids
    assert manifest.base.reference == str(plan.base.folder)
    assert manifest.check_base() == plan.base.folder
    assert manifest.original_rows == len(plan.base.tokenizer.tokens) + 3
    assert [e.source for e in manifest.evidence] == ["marks", "corpus corpus.txt"]
    manifest.check_files(tmp_path / "a")


def test_a_damaged_tokenizer_stops_the_build_with_its_path(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    edit(model / "tokenizer.json", normalizer={"type": "Novel"})
    with pytest.raises(KPruneError, match=r"tokenizer.json is not a tokenizer: "):
        make_plan(str(model), THAI)


def test_files_that_are_neither_text_nor_licence_do_no_harm(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe <unused3>")
    (model / "LICENSES").mkdir()
    (model / "modeling_evil.py").write_text("raise SystemExit")
    build_overlay(str(model), THAI, tmp_path / "out")
    copied = contents(tmp_path / "out")
    assert copied["chat_template.jinja"] == b"\xff\xfe <unused3>"
    assert not {"LICENSES", "modeling_evil.py"} & copied.keys()


@pytest.mark.slow
def test_overlays_of_gemma_are_the_same_bytes_and_small(
    enko_plan: Plan, overlay: Path, tmp_path: Path
) -> None:
    """The other one was written by another process."""
    folder = write(enko_plan, tmp_path / "a")
    assert sum(map(len, contents(folder).values())) <= 20_000_000
    data = json.loads((folder / "tokenizer.json").read_text())
    assert len(data["model"]["vocab"]) >= 0.9 * len(enko_plan.selection.kept_ids)
    for name in (MANIFEST_NAME, "tokenizer.json"):
        assert (folder / name).read_bytes() == (overlay / name).read_bytes()
