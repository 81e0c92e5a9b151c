"""vLLM's parsers of reasoning and tool calls, which know the tokens that structure an answer."""

from typing import Any

__all__ = ["ids_of_text", "reasoning_parser", "tool_parser"]


def reasoning_parser(config: Any) -> Any:
    """The reasoning parser of a `VllmConfig`; None if it has none."""
    outputs = config.structured_outputs_config
    if not outputs.reasoning_parser:
        return None
    from vllm.reasoning import ReasoningParserManager

    if outputs.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(outputs.reasoning_parser_plugin)
    return ReasoningParserManager.get_reasoning_parser(outputs.reasoning_parser)(_tokenizer(config))


def tool_parser(config: Any, name: str | None) -> Any:
    """The tool parser of a name from vLLM's command line; None if it has none, or cannot be made.

    vLLM makes its own for each request and reports what is wrong with it there.
    """
    from vllm.tool_parsers import ToolParserManager

    try:
        return ToolParserManager.get_tool_parser(name)(_tokenizer(config)) if name else None
    # Parsers check the tokenizer in ways of their own (RuntimeError, ValueError, KeyError, …).
    except Exception:
        return None


def ids_of_text(config: Any, text: str) -> list[int]:
    """The tokens of a text, without any that a tokenizer adds."""
    ids: list[int] = _tokenizer(config).encode(text, add_special_tokens=False)
    return ids


def _tokenizer(config: Any) -> Any:
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config=config.model_config)
