"""Speculative decoding on a pruned model: drafts of the original's vocabulary are refused."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from support.tiny_models import KEPT, ROWS, UNTIED, overlay_by_hand

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.errors import KPruneError

pytestmark = pytest.mark.usefixtures("vllm_ready")

# Names that vLLM takes for the kind of draft that they begin with.
_REFUSED = {
    "eagle": {"method": "eagle", "model": "ORIGINAL"},
    "eagle3": {"method": "eagle3", "model": "ORIGINAL"},
    "medusa": {"method": "medusa", "model": "ORIGINAL"},
    "mtp": {"method": "mtp"},
    "an old name of mtp": {"method": "deepseek_mtp"},
    "mlp speculator": {"method": "mlp_speculator", "model": "ORIGINAL"},
    "draft model": {"method": "draft_model", "model": "ORIGINAL"},
    "a method that vLLM infers": {"model": "ORIGINAL"},
    "draft model that is pruned to other tokens": {"model": "OTHER"},
    "eagle on a pruned folder": {"method": "eagle", "model": "SAME"},
}


@pytest.fixture(scope="module")
def folders(untied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, its overlay, and drafts: pruned alike, pruned otherwise, and not pruned."""
    folder = tmp_path_factory.mktemp("drafts")
    original = copytree(untied_model, folder / "original")
    other = (*KEPT[:-1], ROWS - 1)
    assert len(other) == len(KEPT)
    return {
        "MODEL": overlay_by_hand(folder / "pruned", original, UNTIED),
        "ORIGINAL": original,
        "SAME": overlay_by_hand(folder / "same", original, UNTIED),
        "OTHER": overlay_by_hand(folder / "other", original, UNTIED, other),
        "EAGLE NAME": overlay_by_hand(folder / "eagle-head", original, UNTIED),
    }


def engine_args(folders: dict[str, Path], drafts: dict[str, Any] | None, **more: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    more = {"model": str(folders["MODEL"]), "skip_tokenizer_init": True, **more}
    if drafts is not None:
        named = {key: str(folders.get(value, value)) for key, value in drafts.items()}
        more["speculative_config"] = {"num_speculative_tokens": 2, **named}
    return EngineArgs(**more)


@pytest.mark.parametrize("drafts", _REFUSED.values(), ids=_REFUSED)
def test_drafts_of_another_vocabulary_are_refused_with_the_way_out(
    folders: dict[str, Path], drafts: dict[str, Any]
) -> None:
    args = engine_args(folders, drafts)
    with pytest.raises(KPruneError) as error:
        args.create_engine_config()
    assert "does not fit" in str(error.value)
    assert "kprune build DRAFT --profile third" in str(error.value)
    assert '"method": "ngram"' in str(error.value)


@pytest.mark.parametrize("drafts", [{"method": "eagle3", "model": "ORIGINAL"}, {"method": "mtp"}])
def test_the_one_step_form_refuses_them_before_it_builds(
    folders: dict[str, Path], drafts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_kprune.checkpoint.cached.cached_overlay", None)
    options = {"kprune": {"profile": "enko"}}
    args = engine_args(folders, drafts, model=str(folders["ORIGINAL"]), additional_config=options)
    with pytest.raises(KPruneError, match="kprune build DRAFT --profile enko"):
        args.create_engine_config()


def test_the_abbreviations_of_the_option_are_read_too(folders: dict[str, Path]) -> None:
    args = engine_args(folders, None, spec_method="eagle3", spec_tokens=2)
    with pytest.raises(KPruneError, match="method eagle3"):
        args.create_engine_config()


def test_n_gram_drafts_fit(folders: dict[str, Path]) -> None:
    config = engine_args(
        folders, {"method": "ngram", "prompt_lookup_max": 3}
    ).create_engine_config()
    assert config.speculative_config.method == "ngram"


@pytest.mark.parametrize("method", [None, "draft_model"])
def test_a_draft_model_pruned_to_the_same_tokens_fits(
    folders: dict[str, Path], method: str | None
) -> None:
    drafts = {"model": "SAME", **({"method": method} if method else {})}
    config = engine_args(folders, drafts).create_engine_config()
    assert config.speculative_config.method == "draft_model"
    assert config.speculative_config.draft_model_config.get_vocab_size() == len(KEPT)


def test_a_method_that_vllm_takes_from_a_folders_name_is_refused(folders: dict[str, Path]) -> None:
    """Its configuration is that of a draft model, which is what kprune pruned."""
    with pytest.raises(KPruneError, match=r"method eagle .*fit"):
        engine_args(folders, {"model": "EAGLE NAME"}).create_engine_config()


def test_the_same_ids_of_another_tokenizer_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Ids alone prove nothing: the tokens that they stand for are compared."""
    from support.tiny_tokenizers import TINY

    from vllm_kprune.storage.digest import sha256_file

    pruned = {}
    for name, kind in (("model", "byte_level"), ("draft", "byte_fallback")):
        pruned[name] = folder = copytree(folders["MODEL"], tmp_path / name)
        TINY[kind]().save(str(folder / "tokenizer.json"))
        manifest = load_manifest(folder)
        files = {**manifest.files, "tokenizer.json": sha256_file(folder / "tokenizer.json")}
        manifest.model_copy(update={"files": files}).write(folder)
    args = engine_args(folders, {"model": str(pruned["draft"])}, model=str(pruned["model"]))
    with pytest.raises(KPruneError, match="its base model has another tokenizer"):
        args.create_engine_config()
    args = engine_args(folders, {"model": str(pruned["model"])}, model=str(pruned["model"]))
    assert args.create_engine_config().speculative_config.method == "draft_model"


def test_a_draft_whose_base_has_changed_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    base = copytree(folders["ORIGINAL"], tmp_path / "base")
    draft = overlay_by_hand(tmp_path / "draft", base, UNTIED)
    with (base / "model.safetensors").open("ab") as weights:
        weights.write(b"\0")
    with pytest.raises(KPruneError, match="changed since the overlay was built"):
        engine_args(folders, {"model": str(draft)}).create_engine_config()
