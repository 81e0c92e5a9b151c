"""vLLM's own renderers with a tiny real tokenizer, and no engine behind them."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.tiny_models import CHAT_TEMPLATE, save_tied_model
from support.tiny_tokenizers import byte_level_tokenizer

__all__ = ["make_config", "offline_llm", "online_renderer", "text_of"]


def make_config(folder: Path) -> Any:
    """The `VllmConfig` of a tiny model whose tokenizer spells every text byte by byte."""
    from transformers import PreTrainedTokenizerFast
    from vllm.engine.arg_utils import EngineArgs

    save_tied_model(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EngineArgs(
            model=str(folder), enforce_eager=True, max_model_len=512
        ).create_engine_config()


def online_renderer(config: Any, pruning: Any) -> Any:
    """What a server renders with; `pruning` is what kprune attached to it."""
    from vllm.renderers.online_renderer import OnlineRenderer

    return OnlineRenderer(
        config.model_config,
        _renderer(config, pruning),
        request_logger=None,
        chat_template=CHAT_TEMPLATE,
        chat_template_content_format="auto",
        trust_request_chat_template=True,
    )


def offline_llm(config: Any, pruning: Any) -> Any:
    """An `LLM` that gives the texts of what it would add to an engine, which it does not have."""
    from vllm.entrypoints.common.offline import OfflineInferenceMixin
    from vllm.entrypoints.generate.beam_search.offline import BeamSearchOfflineMixin

    class Llm(BeamSearchOfflineMixin):
        def __init__(self) -> None:
            self.renderer = _renderer(config, pruning)
            self.model_config = config.model_config
            self.chat_template = CHAT_TEMPLATE
            self.llm_engine = SimpleNamespace(
                input_processor=SimpleNamespace(resolve_watermarking=lambda params: False)
            )

        def _render_and_add_requests(self, prompts: Any, params: Any, **how: Any) -> Any:
            return [text_of(one) for one in prompts]

        def _lora_request_to_seq(self, lora_request: Any, count: int) -> Any:
            return [None] * count

    assert issubclass(Llm, OfflineInferenceMixin)
    return Llm()


def _renderer(config: Any, pruning: Any) -> Any:
    from vllm.renderers.registry import renderer_from_config

    renderer = renderer_from_config(config)
    renderer.kprune_pruning = pruning
    return renderer


def text_of(prompt: Any) -> str:
    """The text that a rendered prompt spells, control tokens left out."""
    decoded: str = byte_level_tokenizer().decode(prompt["prompt_token_ids"])
    return decoded
