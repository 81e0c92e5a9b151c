"""Which engines get a guard, which cannot have one and what they say, and who notices nothing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.guard_engines import Engine

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.environment import COUNTER_FOLDER, NAMED
from vllm_kprune.serving.guard import attach as guard_attach
from vllm_kprune.serving.guard.attach import attach_guard, check_beam_search, check_request
from vllm_kprune.serving.settings import GUARD_CLASS_PATH, settings_of

pytestmark = pytest.mark.usefixtures("vllm_ready")

ASKS = {"kprune": {"languages": "ko"}}
DRAFTS = SimpleNamespace(num_speculative_tokens=3, rejection_sample_method="standard")
AT_RANDOM = SimpleNamespace(num_speculative_tokens=3, rejection_sample_method="synthetic")


@pytest.fixture
def configure(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    """An engine configuration, not guarded yet; `plugin=True` is `--plugin kprune`."""
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))

    def make(plugin: bool = False, extra: Any = None, **changes: Any) -> Any:
        monkeypatch.setenv(NAMED, "kprune" if plugin else "")
        config = engine.config
        config.additional_config = extra or {}
        config.model_config.logits_processors = None
        for name, value in changes.items():
            owner = config if hasattr(config, name) else config.model_config
            setattr(owner, name, value)
        return config

    return make


@pytest.mark.parametrize("asked", [{"plugin": True}, {"extra": ASKS}])
def test_an_engine_that_asks_for_kprune_is_guarded(configure: Any, asked: Any) -> None:
    config = configure(**asked, logits_processors=["other:Processor"])
    for _ in range(2):
        attach_guard(config)
        assert config.model_config.logits_processors == ["other:Processor", GUARD_CLASS_PATH]


def test_an_engine_that_did_not_ask_is_left_as_it_is(configure: Any) -> None:
    config = configure()
    attach_guard(config)
    assert config.model_config.logits_processors is None
    # Options of others mean nothing to vLLM, so they mean nothing here.
    check_request(config, {"kprune_languages": "nonsense"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"speculative_config": DRAFTS}, "leave --speculative-config (-sc) out"),
        ({"runner_type": "pooling"}, "a pooling model produces no text"),
        ({"skip_tokenizer_init": True}, "leave skip_tokenizer_init out"),
        ({"return_sampling_mask": True}, "leave it out"),
        ({"tokenizer": "/nowhere"}, "does not exist"),
    ],
)
def test_an_engine_that_cannot_be_guarded_says_why(
    configure: Any, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(KPruneError, match=r"--kprune-languages.*: ") as error:
        attach_guard(configure(extra=ASKS, **changes))
    assert reason in str(error.value)

    config = configure(plugin=True, **changes)
    attach_guard(config)
    assert not settings_of(config).guard.attached
    check_request(config, {"kprune_languages": "off"})
    with pytest.raises(KPruneError, match="vllm_xargs: no guard") as error:
        check_request(config, {"kprune_languages": "ko"})
    assert reason in str(error.value)


def test_the_v2_runner_takes_it_with_speculative_decoding(configure: Any) -> None:
    config = configure(extra=ASKS, speculative_config=DRAFTS, use_v2_model_runner=True)
    attach_guard(config)
    assert settings_of(config).guard.attached


def test_drafts_that_are_accepted_at_random_are_refused(configure: Any) -> None:
    """vLLM's benchmark mode does not look at the logits, where the guard refuses tokens."""
    config = configure(extra=ASKS, speculative_config=AT_RANDOM, use_v2_model_runner=True)
    with pytest.raises(KPruneError, match="use standard or block"):
        attach_guard(config)
    config = configure(plugin=True, speculative_config=AT_RANDOM, use_v2_model_runner=True)
    attach_guard(config)
    with pytest.raises(KPruneError, match=r"no guard: .* use standard or block"):
        check_request(config, {"kprune_languages": "ko"})


def test_a_folder_without_tokenizer_json_cannot_be_guarded(configure: Any, tmp_path: Path) -> None:
    config = configure(extra=ASKS, tokenizer=str(tmp_path))
    with pytest.raises(KPruneError, match=r"has no tokenizer\.json"):
        attach_guard(config)


def test_a_tokenizer_that_is_not_known_is_read_once_and_not_for_every_request(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(plugin=True, tokenizer=str(tmp_path))
    attach_guard(config)
    monkeypatch.setattr(guard_attach, "resolve_model", lambda *args, **kwargs: pytest.fail("again"))
    with pytest.raises(KPruneError, match=r"no guard: .* has no tokenizer\.json"):
        check_request(config, {"kprune_languages": "ko"})


def test_beams_are_refused_where_the_default_guard_would_not_reach_them(configure: Any) -> None:
    guarded = configure(extra=ASKS)
    attach_guard(guarded)
    with pytest.raises(KPruneError, match="--logprobs-mode processed_logprobs"):
        check_beam_search(guarded)
    guarded.model_config.logprobs_mode = "processed_logprobs"
    check_beam_search(guarded)
    unguarded = configure(plugin=True)
    attach_guard(unguarded)
    check_beam_search(unguarded)


def test_both_of_vllms_loaders_take_the_class() -> None:
    from vllm.v1.sample.logits_processor import _load_custom_logitsprocs
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs

    (v1,) = _load_custom_logitsprocs([GUARD_CLASS_PATH])
    (v2,) = _load_v2_logitsprocs([GUARD_CLASS_PATH])
    assert v1 is v2
    assert not v1.is_argmax_invariant(v1)


def test_the_class_itself_refuses_what_no_server_takes() -> None:
    from vllm import SamplingParams

    from vllm_kprune.serving.guard.processor import LanguageGuard

    LanguageGuard.validate_params(SamplingParams(extra_args={"kprune_hanja": "all"}))
    LanguageGuard.validate_params(SamplingParams())
    with pytest.raises(KPruneError, match="did you mean 'ko'"):
        LanguageGuard.validate_params(SamplingParams(extra_args={"kprune_languages": "kr"}))
