"""What becomes of vLLM's engine arguments: nothing without being asked, else the pruned model."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from support.tiny_models import KEPT, UNTIED, OverlayMaker

from vllm_kprune.checkpoint.manifest import is_overlay
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile, load_profile
from vllm_kprune.serving import compat
from vllm_kprune.serving.activation import activate

pytestmark = pytest.mark.usefixtures("vllm_ready")


def engine_args(model: Path | str, **values: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(model), skip_tokenizer_init=True, **values)


def test_an_ordinary_model_is_left_exactly_as_it_was(tied_model: Path) -> None:
    args, untouched = engine_args(tied_model), engine_args(tied_model)
    assert not activate(args)
    assert args == untouched


def test_an_overlay_selects_the_base_weights_and_the_loader(
    tied_model: Path, make_overlay: OverlayMaker
) -> None:
    overlay = make_overlay(tied_model)
    args = engine_args(overlay)
    config = args.create_model_config()
    assert args.load_format == "kprune"
    assert config.model == config.tokenizer == config.served_model_name == str(overlay)
    assert config.model_weights == str(tied_model)
    assert config.get_vocab_size() == len(KEPT)


def test_activating_twice_changes_nothing_more(
    tied_model: Path, make_overlay: OverlayMaker
) -> None:
    args = engine_args(make_overlay(tied_model))
    assert activate(args)
    once = {**vars(args)}
    assert activate(args)
    assert vars(args) == once


def test_a_base_that_was_moved_is_refused_until_its_place_is_given(
    tied_model: Path, make_overlay: OverlayMaker, tmp_path: Path
) -> None:
    base = copytree(tied_model, tmp_path / "base")
    overlay = make_overlay(base)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(KPruneError, match="--kprune-base"):
        activate(engine_args(overlay))
    args = engine_args(overlay, additional_config={"kprune": {"base": str(moved)}})
    activate(args)
    assert args.model_weights == str(moved)


def test_a_base_that_changed_is_refused(
    tied_model: Path, make_overlay: OverlayMaker, tmp_path: Path
) -> None:
    base = copytree(tied_model, tmp_path / "base")
    overlay = make_overlay(base)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(KPruneError, match=r"model\.safetensors changed since"):
        activate(engine_args(overlay))


def test_an_edited_manifest_is_refused(tied_model: Path, make_overlay: OverlayMaker) -> None:
    overlay = make_overlay(tied_model)
    manifest = overlay / "kprune.json"
    manifest.write_text(manifest.read_text().replace('"third"', '"other"'))
    with pytest.raises(KPruneError, match="was edited"):
        activate(engine_args(overlay))


def test_an_edited_file_of_the_overlay_is_refused(
    tied_model: Path, make_overlay: OverlayMaker
) -> None:
    overlay = make_overlay(tied_model)
    with (overlay / "config.json").open("a") as config:
        config.write("\n")
    with pytest.raises(KPruneError, match=r"config\.json was edited"):
        activate(engine_args(overlay))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenizer": "google/gemma-3-270m"}, "--tokenizer google/gemma-3-270m does not fit"),
        ({"load_format": "safetensors"}, "--load-format safetensors cannot read a pruned model"),
        ({"hf_config_path": "elsewhere"}, "--hf-config-path does not fit"),
        ({"tokenizer_revision": "v2"}, "--tokenizer-revision differs"),
        ({"additional_config": {"kprune": {"profile": "enko"}}}, "is pruned already"),
        ({"additional_config": {"kprune": {"bas": "x"}}}, "did you mean 'base'"),
    ],
)
def test_options_that_contradict_the_overlay_are_refused(
    values: dict[str, Any], message: str, tied_model: Path, make_overlay: OverlayMaker
) -> None:
    with pytest.raises(KPruneError) as error:
        activate(engine_args(make_overlay(tied_model), **values))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"load_format": "kprune"}, "--load-format kprune: "),
        ({"additional_config": {"kprune": {"base": "x"}}}, "--kprune-base: "),
    ],
)
def test_asking_for_an_overlay_that_is_none_says_what_to_give(
    values: dict[str, Any], message: str, tied_model: Path
) -> None:
    with pytest.raises(KPruneError) as error:
        activate(engine_args(tied_model, **values))
    assert message in str(error.value)
    assert "has no kprune.json" in str(error.value)


def test_an_unknown_profile_is_refused_with_the_nearest(tied_model: Path) -> None:
    args = engine_args(tied_model, additional_config={"kprune": {"profile": "enk"}})
    with pytest.raises(KPruneError, match="unknown profile 'enk'; did you mean 'enko'"):
        activate(args)


@pytest.mark.parametrize(
    "size", [{"target_size": 70}, {"coverage": 0.9}, {"max_extra_tokens": 0.02}]
)
def test_a_size_replaces_the_profiles_own(
    size: dict[str, float], tied_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build itself is another test's: here only what it is asked for counts."""
    asked: list[Profile] = []

    def build(model: str, profile: Profile, **options: Any) -> Path:
        asked.append(profile)
        raise KPruneError("enough")

    monkeypatch.setattr("vllm_kprune.checkpoint.cached.cached_overlay", build)
    with pytest.raises(KPruneError, match="enough"):
        activate(engine_args(tied_model, additional_config={"kprune": {"profile": "enko", **size}}))
    assert asked == [load_profile("enko", **size)]
    assert asked[0].min_count is None


def test_two_sizes_are_refused(tied_model: Path) -> None:
    sizes = {"profile": "enko", "coverage": 0.9, "max_extra_tokens": 0.02}
    with pytest.raises(
        KPruneError, match="one of --kprune-coverage and --kprune-max-extra-tokens, not both"
    ):
        activate(engine_args(tied_model, additional_config={"kprune": sizes}))


def test_random_weights_can_be_asked_for_without_a_base(
    tied_model: Path, make_overlay: OverlayMaker, tmp_path: Path
) -> None:
    base = copytree(tied_model, tmp_path / "base")
    overlay = make_overlay(base)
    base.rename(tmp_path / "gone")
    args = engine_args(overlay, load_format="dummy")
    assert args.create_model_config().get_vocab_size() == len(KEPT)
    assert args.load_format == "dummy"


def test_a_head_that_the_configuration_denies_is_found_in_the_base(
    untied_model: Path, make_overlay: OverlayMaker, tmp_path: Path
) -> None:
    base = copytree(untied_model, tmp_path / "base")
    config = base / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    assert config.read_text() != text
    model_config = engine_args(make_overlay(base, UNTIED)).create_model_config()
    assert model_config.hf_config.tie_word_embeddings is False
    assert model_config.word_embeddings_untied_by_checkpoint


def test_an_untested_vllm_is_refused_only_when_kprune_is_asked_for(
    tied_model: Path, make_overlay: OverlayMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat.version, "vllm_version", lambda: "0.40.1")
    assert not activate(engine_args(tied_model))
    args = engine_args(make_overlay(tied_model))
    with pytest.raises(KPruneError, match=r"vLLM >=0\.31,<0\.34 and this is 0\.40\.1"):
        activate(args)
    monkeypatch.setenv(compat.version.ALLOW_UNTESTED, "1")
    assert activate(args)


@pytest.mark.parametrize("version", ["0.32.0+cpu", "0.33.0", "0.33.1.dev3+g1234567"])
def test_tested_versions_are_accepted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.version, "vllm_version", lambda: version)
    compat.check_version()


def test_a_model_name_on_a_hub_is_no_overlay() -> None:
    assert not is_overlay("org/name")
