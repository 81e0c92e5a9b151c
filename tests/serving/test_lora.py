"""Where LoRA adapters reach vLLM they are checked for pruned models, and for no others."""

import asyncio
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny_adapters import ATTENTION, save_adapter
from support.tiny_models import OverlayMaker

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving import command

pytestmark = pytest.mark.usefixtures("vllm_ready")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """An adapter of the body."""
    return save_adapter(tmp_path / "good", {ATTENTION: (8, 8)})


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """An adapter with an LM head."""
    return save_adapter(tmp_path / "bad", {ATTENTION: (8, 8), "lm_head": (8, 96)})


@pytest.fixture
def pruned(tied_model: Path, make_overlay: OverlayMaker) -> Path:
    """An overlay."""
    return make_overlay(tied_model)


def config_of(model: Path, **ours: Any) -> Any:
    """What kprune reads of a `VllmConfig`."""
    model_config = SimpleNamespace(model=str(model), logits_processors=None)
    return SimpleNamespace(model_config=model_config, additional_config={"kprune": ours})


def validate(model: Path, adapter: Path | None, **ours: Any) -> None:
    """What vLLM does with every request, before the engine sees it."""
    module: Any = import_module("vllm.v1.engine.input_processor")
    processor = SimpleNamespace(
        vllm_config=config_of(model, **ours), lora_config=True, tokenizer=None
    )
    request = SimpleNamespace(lora_path=str(adapter)) if adapter else None
    module.InputProcessor._validate_lora(processor, request)


def test_a_request_with_an_adapter_of_the_vocabulary_is_refused(
    pruned: Path, good: Path, bad: Path
) -> None:
    from vllm.exceptions import VLLMClientError

    validate(pruned, None)
    validate(pruned, good)
    with pytest.raises(KPruneError, match="changes the vocabulary") as error:
        validate(pruned, bad)
    assert isinstance(error.value, VLLMClientError)  # others are HTTP 500 from here
    with pytest.raises(KPruneError, match="changes the vocabulary"):
        validate(pruned, bad)  # a refusal is not forgotten


def test_models_that_are_not_pruned_take_any_adapter(tied_model: Path, bad: Path) -> None:
    validate(tied_model, bad)


def test_a_pruned_head_takes_adapters_of_the_body_only(
    tied_model: Path, good: Path, bad: Path
) -> None:
    validate(tied_model, good, head="enko")
    with pytest.raises(Exception, match="changes the vocabulary"):
        validate(tied_model, bad, head="enko")


@pytest.mark.parametrize("adapter", ["good", "bad"])
def test_loading_an_adapter_into_a_server_answers_with_the_reason(
    adapter: str, pruned: Path, request: pytest.FixtureRequest
) -> None:
    module: Any = import_module("vllm.entrypoints.openai.models.serving")
    models = SimpleNamespace(
        engine_client=SimpleNamespace(vllm_config=config_of(pruned)),
        lora_requests={},
        is_base_model=lambda name: False,
    )
    path = str(request.getfixturevalue(adapter))
    asked = module.LoadLoRAAdapterRequest(lora_name="a", lora_path=path)
    check = module.OpenAIServingModels._check_load_lora_adapter_request
    answer = asyncio.run(check(models, asked))
    if adapter == "good":
        assert answer is None
    else:
        assert answer.error.code == 400
        assert "changes the vocabulary" in answer.error.message


def serve(model: Path, adapter: Path, **options: Any) -> list[str]:
    """Run our part of `vllm serve MODEL --lora-modules a=ADAPTER`; was the server reached?"""
    reached: list[str] = []
    modules = [SimpleNamespace(name="a", path=str(adapter))]
    args = SimpleNamespace(model_tag=str(model), plugin=None, lora_modules=modules, **options)
    command._serve(lambda args: reached.append("server"), args)
    return reached


def test_adapters_of_the_command_line_are_checked_before_anything_starts(
    pruned: Path, tied_model: Path, good: Path, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(pruned, good) == serve(tied_model, bad) == ["server"]
    for model, options in ((pruned, {}), (tied_model, {"kprune_profile": "enko"})):
        with pytest.raises(SystemExit) as stop:
            serve(model, bad, **options)
        assert stop.value.code == 2
        assert "changes the vocabulary" in capsys.readouterr().err
