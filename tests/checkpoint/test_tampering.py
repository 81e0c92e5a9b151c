"""Changes to a folder or its base after a build are found out, also under a seal that fits."""

import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.tiny_exports import EMBEDDING, HEAD, THAI, exported, flip
from support.tiny_folders import edit, read, save_model, write_json

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.inspection import inspect_model
from vllm_kprune.checkpoint.manifest import EXPORT_NAME, MANIFEST_NAME, Manifest, load_manifest
from vllm_kprune.checkpoint.model_folder import INDEX_NAME
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.plan import make_tokenizer_plan
from vllm_kprune.checkpoint.verify import verify_overlay
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.storage.digest import sha256_file

TEXTS = ["the cat sat", "ภาษาไทย"]
Use = Callable[[Path], object]


def reseal(folder: Path, name: str = MANIFEST_NAME, **changes: Any) -> None:
    """Change fields of a manifest, and give it the fingerprint of its new content."""
    edit(folder / name, **changes)
    manifest = Manifest.model_validate(read(folder / name))
    edit(folder / name, fingerprint=manifest._fingerprint())


def broken_laws(folder: Path) -> list[int]:
    return [law.law for law in verify_overlay(folder, TEXTS) if not law.holds]


def export(overlay: Path) -> object:
    return export_overlay(overlay, overlay.parent / "exported")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its overlay and its export, made once."""
    folder = tmp_path_factory.mktemp("made")
    exported(save_model(folder / "model"))
    return folder


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy of the model, with copies of its overlay and its export beside it."""
    copytree(made, tmp_path, dirs_exist_ok=True)
    for folder, name in (("overlay", MANIFEST_NAME), ("export", EXPORT_NAME)):
        base = read(tmp_path / folder / name)["base"]
        reseal(tmp_path / folder, name, base={**base, "path": str(tmp_path / "model")})
    return tmp_path / "model"


def overlay_of(model: Path) -> Path:
    return model.parent / "overlay"


USES: dict[str, Use] = {
    "verify": broken_laws,
    "export": export,
    "inspect": lambda folder: inspect_model(str(folder)),
}


def redirect(base: Path) -> None:
    """All tensors come from another file than the one that was recorded."""
    weights = (base / "model.safetensors").read_bytes()
    (base / "other.safetensors").write_bytes(weights)
    flip(base / "other.safetensors", len(weights) - 1)
    places = dict.fromkeys((EMBEDDING, HEAD), "other.safetensors")
    write_json(base / INDEX_NAME, {"weight_map": places})


def another_file(base: Path) -> None:
    save_file({"model.norm.weight": np.zeros(4, np.float32)}, base / "more.safetensors")


ADDED_TO_BASE: dict[str, tuple[Callable[[Path], object], str]] = {
    "index": (redirect, f"{INDEX_NAME} was added"),
    "weights": (another_file, "more.safetensors was added"),
    "configuration": (
        lambda base: write_json(base / "special_tokens_map.json", {}),
        "special_tokens_map.json was added",
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", ADDED_TO_BASE)
def test_what_was_added_to_the_base_is_noticed(model: Path, case: str, use: str) -> None:
    overlay = overlay_of(model)
    add, message = ADDED_TO_BASE[case]
    add(model)
    with pytest.raises(KPruneError, match=message):
        USES[use](overlay)


def test_documents_and_files_that_nobody_reads_may_be_added(model: Path) -> None:
    overlay = overlay_of(model)
    for folder in (model, overlay):
        (folder / "README.md").write_text("mine")
        (folder / ".gitattributes").write_text("")
        (folder / ".git").mkdir()
    (model / "notes.txt").write_text("mine")
    assert broken_laws(overlay) == []
    assert broken_laws(model.parent / "export") == []


ADDED = ("chat_template.json", "model.safetensors", INDEX_NAME, "merges.txt", "tokenizer.model",
         "modeling_mine.py", "added_tokens.json", "kprune-export.json", "pytorch_model.bin",
         "additional_chat_templates")  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
def test_what_was_added_to_an_overlay_is_noticed(model: Path, name: str) -> None:
    overlay = overlay_of(model)
    if "." in name:
        (overlay / name).write_text("{}")
    else:
        (overlay / name).mkdir()
    for use in USES.values():
        with pytest.raises(KPruneError, match=f"{name} was added"):
            use(overlay)


@pytest.mark.parametrize("name", [*ADDED[2:7], MANIFEST_NAME])
def test_what_was_added_to_an_export_is_noticed(model: Path, name: str) -> None:
    folder = model.parent / "export"
    (folder / name).write_text("{}")
    with pytest.raises(KPruneError, match=f"{name}"):
        verify_overlay(folder, TEXTS)


def test_an_index_that_puts_tensors_in_each_others_place_breaks_law_4(sharded: Path) -> None:
    folder = exported(sharded)
    assert broken_laws(folder) == []
    index = read(folder / INDEX_NAME)
    places = index["weight_map"]
    places["model.norm.weight"], places[EMBEDDING] = places[EMBEDDING], places["model.norm.weight"]
    write_json(folder / INDEX_NAME, index)
    assert broken_laws(folder) == [4]
    (folder / INDEX_NAME).unlink()
    assert broken_laws(folder) == [4]


RESEALED: dict[str, tuple[dict[str, Any], str]] = {
    "no head": ({"vocabulary_tensors": [EMBEDDING]}, "vocabulary_tensors is"),
    "another tensor": ({"vocabulary_tensors": [EMBEDDING, "model.norm.weight"]},
                       "vocabulary_tensors is"),
    "family": ({"family": "Qwen3ForCausalLM"}, "family is 'Qwen3ForCausalLM'"),
    "rows": ({"original_rows": 700}, "original_rows is 700"),
    "tokens": ({"original_tokens": 9_000}, "original_tokens is 9000"),
    "no model": ({"family": "", "original_rows": 0, "vocabulary_tensors": []},
                 "weight files, but no vocabulary_tensors"),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", RESEALED)
def test_a_manifest_that_says_of_its_base_what_is_not_so(model: Path, case: str, use: str) -> None:
    overlay = overlay_of(model)
    changes, message = RESEALED[case]
    reseal(overlay, **changes)
    with pytest.raises(KPruneError, match=message):
        USES[use](overlay)


@pytest.mark.parametrize("case", RESEALED)
def test_an_export_that_says_of_its_base_what_is_not_so(model: Path, case: str) -> None:
    folder = model.parent / "export"
    changes, message = RESEALED[case]
    reseal(folder, EXPORT_NAME, **changes)
    with pytest.raises(KPruneError, match=message):
        verify_overlay(folder, TEXTS)


def test_files_of_the_base_that_are_left_out_are_noticed(model: Path) -> None:
    overlay = overlay_of(model)
    base = read(overlay / MANIFEST_NAME)["base"]
    for name in ("chat_template.jinja", "model.safetensors"):
        files = {key: item for key, item in base["files"].items() if key != name}
        reseal(overlay, base={**base, "files": files})
        for use in USES.values():
            with pytest.raises(KPruneError, match=f"{name} was added"):
                use(overlay)


@pytest.mark.parametrize("letter", "sbm")
def test_a_reason_that_is_another_breaks_law_5_or_is_refused(
    model: Path, tmp_path: Path, letter: str
) -> None:
    """Specials and bytes are exempt from law 3: a dead row must not hide among them."""
    overlay = overlay_of(model)
    reasons = load_manifest(overlay).reasons
    at = next(n for n, own in enumerate(reasons) if own in "ce" and own != letter)
    reseal(overlay, reasons=reasons[:at] + letter + reasons[at + 1 :])
    if letter == "b":
        with pytest.raises(KPruneError, match="reasons is 'b for "):
            verify_overlay(overlay, TEXTS)
    else:
        assert 5 in broken_laws(overlay)


def test_reasons_are_compared_as_far_as_they_can_be_without_the_evidence(model: Path) -> None:
    overlay = overlay_of(model)
    evidence = read(overlay / MANIFEST_NAME)["evidence"]
    reseal(overlay, evidence=[*evidence, {"source": "mine", "digest": "0", "tokens": 1}])
    assert broken_laws(overlay) == []
    reasons = load_manifest(overlay).reasons
    at = reasons.index("e") if "e" in reasons else reasons.index("m")
    reseal(overlay, reasons=f"{reasons[:at]}s{reasons[at + 1 :]}")
    assert broken_laws(overlay) == [5]


def test_a_kept_id_without_a_token_is_refused(model: Path) -> None:
    overlay = overlay_of(model)
    manifest = load_manifest(overlay)
    reseal(
        overlay,
        kept_ids=[*manifest.kept_ids, manifest.original_tokens],
        reasons=f"{manifest.reasons}c",
    )
    with pytest.raises(KPruneError, match="kept_ids"):
        verify_overlay(overlay, TEXTS)


@pytest.mark.parametrize("use", ["verify", "export"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_flipped_byte_of_the_base_is_noticed_though_its_time_is_kept(
    model: Path, name: str, use: str
) -> None:
    overlay = overlay_of(model)
    before = (model / name).stat()
    flip(model / name, before.st_size - 1)
    os.utime(model / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    # A start of a server reads no gigabytes.
    assert load_manifest(overlay).check_base() == model
    with pytest.raises(KPruneError, match=f"{name} changed"):
        USES[use](overlay)
    assert not (overlay.parent / "exported").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_inspect_refuses_an_edited_folder(model: Path, name: str) -> None:
    overlay = overlay_of(model)
    (overlay / name).write_bytes((overlay / name).read_bytes() + b" ")
    with pytest.raises(KPruneError, match=f"{name} was edited"):
        inspect_model(str(overlay))


def test_a_resealed_edit_of_a_file_breaks_law_5(model: Path) -> None:
    overlay = overlay_of(model)
    edit(overlay / "generation_config.json", max_new_tokens=1)
    files = read(overlay / MANIFEST_NAME)["files"]
    digest = sha256_file(overlay / "generation_config.json")
    reseal(overlay, files={**files, "generation_config.json": digest})
    assert broken_laws(overlay) == [5]


@pytest.mark.parametrize("name", ["NOTICE", "LICENSE.txt", "chat_template.jinja", "config.json"])
def test_a_link_out_of_the_folder_is_not_followed(model: Path, tmp_path: Path, name: str) -> None:
    """`NOTICE -> /any/file` would have been copied beside the pruned model."""
    secret = tmp_path / "secret"
    secret.write_text("{}" if name == "config.json" else "the neighbour's secret")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(KPruneError, match=f"{name} is a link that leads out of its folder"):
        build_overlay(str(model), THAI, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_hubs_links_and_those_inside_the_folder_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    blobs.mkdir(parents=True)
    model = save_model(tmp_path / "model")
    (model / "NOTICE").symlink_to("LICENSE")
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    for folder in (model, snapshot):
        build_overlay(str(folder), Profile(name="original"), tmp_path / f"{folder.name}-out")
        assert (tmp_path / f"{folder.name}-out" / "NOTICE").read_text() == "Be kind."
    # Blobs of another model are another matter.
    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (other / "0").write_text("secret")
    (snapshot / "NOTICE").unlink()
    (snapshot / "NOTICE").symlink_to(other / "0")
    with pytest.raises(KPruneError, match="NOTICE is a link"):
        build_overlay(str(snapshot), Profile(name="original"), tmp_path / "out")


NUMBERED: dict[str, Callable[[dict[str, Any]], None]] = {
    "another id": lambda data: data["added_tokens"].append(
        {**data["added_tokens"][-1], "content": "<new>", "id": 2_000}
    ),
    "id twice": lambda data: data["added_tokens"].append(
        {**data["added_tokens"][-1], "content": "<new>"}
    ),
    "text twice": lambda data: data["added_tokens"].append({**data["added_tokens"][-1], "id": 999}),
    "id of another token": lambda data: data["added_tokens"][0].update(id=300),
    "two tokens, one id": lambda data: data["model"]["vocab"].update(zz=5),
    "gap before the added": lambda data: data["model"]["vocab"].update(zz=2_000),
    "dropout": lambda data: data["model"].update(dropout=0.1),
    "true": lambda data: data["model"]["vocab"].update(zz=True),
    "empty": lambda data: data["added_tokens"][-1].update(content=""),
}


@pytest.mark.parametrize("case", NUMBERED)
@pytest.mark.parametrize("profile", [THAI, Profile(name="original")], ids=["thai", "original"])
def test_a_tokenizer_that_the_library_reads_otherwise_is_refused(
    tmp_path: Path, case: str, profile: Profile
) -> None:
    folder = save_model(tmp_path / "model", "byte_level")
    data = read(folder / "tokenizer.json")
    NUMBERED[case](data)
    write_json(folder / "tokenizer.json", data)
    with pytest.raises(KPruneError):
        make_tokenizer_plan(folder, profile)
