"""Which model ranks, and how tokens of the served model are counted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.prune_cases import LONG, settings_of, tokens
from support.tiny_models import OverlayMaker
from support.tiny_tokenizers import byte_fallback_tokenizer, byte_level_tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.pruning import ranker as prune_ranker
from vllm_kprune.serving.pruning.ranker import load_ranker
from vllm_kprune.serving.pruning.service import make_pruning

pytestmark = pytest.mark.usefixtures("vllm_ready")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two models of different families; only their tokenizers are real."""
    made = {"served": byte_level_tokenizer, "other": byte_fallback_tokenizer}
    for name, tokenizer in made.items():
        (tmp_path / name).mkdir()
        tokenizer().save(str(tmp_path / name / "tokenizer.json"))
    return {name: tmp_path / name for name in made}


def renderer(served: Path, tokenizer: Any = None, **options: Any) -> Any:
    model = SimpleNamespace(
        model=str(served),
        model_weights="",
        logits_processors=None,
        revision=None,
        tokenizer=str(served),
        max_model_len=9000,
    )
    config = SimpleNamespace(additional_config={"kprune": options}, model_config=model)
    return SimpleNamespace(config=config, model_config=model, tokenizer=tokenizer)


def test_self_is_the_served_model_and_another_is_named_without_its_path(
    folders: dict[str, Path],
) -> None:
    own = load_ranker(settings_of(scorer="random"), str(folders["served"]))
    assert (own.name, own.folder) == ("self", folders["served"])
    settings = settings_of(input_pruner=str(folders["other"]), scorer="random")
    other = load_ranker(settings, str(folders["served"]))
    assert (other.name, other.folder) == ("other", folders["other"])
    assert other.pruner.default_scorer == "random"
    assert len(other.pruner.tokenize(LONG).ids) != tokens(LONG)


def test_a_ranker_that_is_loaded_is_not_loaded_again(folders: dict[str, Path]) -> None:
    first, again = (load_ranker(settings_of(), str(folders["served"])) for _ in range(2))
    assert first.pruner is again.pruner


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_pruner": "/no/such/folder"}, "model folder /no/such/folder does not exist"),
        ({"scorer": "attention"}, "has no config.json"),
    ],
)
def test_a_model_that_cannot_rank_is_refused_with_the_option(
    folders: dict[str, Path], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(KPruneError, match=r"^--kprune-input-pruner ") as error:
        load_ranker(settings_of(**values), str(folders["served"]))
    assert message in str(error.value)


def test_a_server_without_ranker_gets_one_that_takes_marks_away(folders: dict[str, Path]) -> None:
    pruning = make_pruning(renderer(folders["served"], languages="ko"))
    assert pruning.settings is None
    assert pruning.ranker is None


@pytest.mark.parametrize("ranker", ["self", "other"])
def test_tokens_are_counted_as_the_served_model_counts_them(
    ranker: str, folders: dict[str, Path]
) -> None:
    named = str(folders.get(ranker, ranker))
    tokenizer = SimpleNamespace(backend_tokenizer=byte_level_tokenizer())
    pruning = make_pruning(
        renderer(folders["served"], tokenizer, input_pruner=named, scorer="random")
    )
    assert pruning.count(LONG) == tokens(LONG)
    assert pruning.max_tokens == 36_000


def test_a_tokenizer_that_cannot_be_copied_leaves_the_rankers_counts(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_ranker.logger, "propagate", True)
    options = {"input_pruner": str(folders["other"]), "scorer": "random"}
    pruning = make_pruning(renderer(folders["served"], SimpleNamespace(), **options))
    expected = len(byte_fallback_tokenizer().encode(LONG, add_special_tokens=False).ids)
    assert pruning.count(LONG) == expected
    assert "the ranker's tokenizer counts the tokens of pruned segments instead" in caplog.text


def test_an_overlay_ranks_for_itself_unless_its_base_was_moved(
    folders: dict[str, Path], tied_model: Path, make_overlay: OverlayMaker
) -> None:
    overlay = make_overlay(tied_model)
    byte_level_tokenizer().save(str(overlay / "tokenizer.json"))
    settings, moved = settings_of(scorer="random"), folders["other"]
    assert load_ranker(settings, str(overlay)).folder == overlay
    assert load_ranker(settings, str(overlay), base=str(tied_model)).folder == overlay
    assert load_ranker(settings, str(overlay), base=str(moved)).folder == moved
