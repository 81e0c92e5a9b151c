"""Settings are resolved once per process, and travel with vLLM's configuration."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.guard_engines import Engine

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving import settings as settings_module
from vllm_kprune.serving.environment import COUNTER_FOLDER, NAMED
from vllm_kprune.serving.guard.attach import attach_guard, check_beam_search, check_request
from vllm_kprune.serving.settings import (
    GUARD_CLASS_PATH,
    ServerSettings,
    resolve_settings,
    settings_of,
    share_settings,
)

pytestmark = pytest.mark.usefixtures("vllm_ready")


@pytest.fixture
def resolutions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was resolved, in the order of the calls."""
    calls: list[Any] = []
    resolve: Callable[..., ServerSettings] = settings_module.resolve_settings

    def counted(additional_config: Any, model: str = "") -> ServerSettings:
        calls.append(additional_config)
        return resolve(additional_config, model)

    monkeypatch.setattr(settings_module, "resolve_settings", counted)
    return calls


def test_a_second_request_resolves_nothing(engine: Engine, resolutions: list[Any]) -> None:
    config = engine.config
    for _ in range(3):
        check_request(config, {"kprune_languages": "ko"})
        with pytest.raises(KPruneError, match="did you mean 'ko'"):
            check_request(config, {"kprune_languages": "kr"})
        with pytest.raises(KPruneError, match="beam search"):
            check_beam_search(config)
    assert resolutions == [{"kprune": {"languages": "ko,en"}}]


def test_attaching_the_guard_keeps_what_was_resolved(
    engine: Engine, resolutions: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    config = engine.config
    config.model_config.logits_processors = None
    before = settings_of(config)
    attach_guard(config)
    assert not before.guard.attached
    assert settings_of(config).guard.attached
    assert settings_of(config).guard.default == before.guard.default
    assert len(resolutions) == 1


def engine_args(model: Path, **values: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(model), skip_tokenizer_init=True, **values)


def test_engine_arguments_share_theirs_with_the_configuration(
    tied_model: Path, resolutions: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real `VllmConfig`, which other processes get pickled."""
    monkeypatch.setenv(NAMED, "other,kprune")
    config = engine_args(tied_model).create_engine_config()
    assert settings_of(config).named
    assert settings_of(config).asks_for_kprune
    assert not settings_of(config).guard.attached
    assert "tokenizer" in settings_of(config).guard.obstacle
    arrived = pickle.loads(pickle.dumps(config))
    assert settings_of(arrived) == settings_of(config)
    assert len(resolutions) == 1


def test_vllm_can_copy_a_configuration_with_settings(
    tied_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does for draft models and for the parts of multimodal ones."""
    from vllm.config.utils import replace

    monkeypatch.setenv(NAMED, "kprune")
    options = {"other": [1]}
    config = engine_args(tied_model, additional_config=options).create_engine_config()
    assert settings_of(config).asks_for_kprune
    copied = replace(config, model_config=config.model_config)
    assert settings_of(copied).asks_for_kprune
    assert copied.additional_config == config.additional_config == options
    assert copied.compute_hash() == config.compute_hash()


def test_nothing_is_attached_where_nobody_asked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NAMED, raising=False)
    config = engine.config
    config.additional_config = {}
    before = dict(vars(config))
    assert not settings_of(config).asks_for_kprune
    assert vars(config) == before


def test_a_configuration_that_has_the_class_already_is_guarded(engine: Engine) -> None:
    config = engine.config
    assert config.model_config.logits_processors == [GUARD_CLASS_PATH]
    assert share_settings(config, config).guard.attached


@pytest.mark.parametrize(
    ("values", "asks", "prunes"),
    [
        ({}, False, False),
        ({"other": 1}, False, False),
        ({"kprune": {}}, False, False),
        ({"kprune": {"languages": None, "force_digits": False}}, False, False),
        ({"kprune": {"languages": "ko"}}, True, False),
        ({"kprune": {"input_pruner": "self"}}, True, False),
        ({"kprune": {"profile": "enko"}}, True, True),
        ({"kprune": {"base": "elsewhere"}}, True, True),
    ],
)
def test_one_value_answers_what_was_asked_for(
    values: Any, asks: bool, prunes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NAMED, raising=False)
    settings = resolve_settings(values)
    assert (settings.asks_for_kprune, settings.prunes) == (asks, prunes)
