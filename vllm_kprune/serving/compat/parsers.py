"""vLLM's parsers of reasoning and tool calls, which know the tokens that structure an answer."""

from typing import Any

from vllm_kprune.errors import KPruneError

__all__ = ["reasoning_parser", "token_id", "tool_parser"]


def reasoning_parser(config: Any) -> Any:
    """The reasoning parser of a `VllmConfig`; None if it has none.

    Raises `KPruneError` if it does not fit the model's tokenizer, which vLLM reports as well.
    """
    outputs = config.structured_outputs_config
    if not outputs.reasoning_parser:
        return None
    from vllm.reasoning import ReasoningParserManager

    if outputs.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(outputs.reasoning_parser_plugin)
    name = outputs.reasoning_parser
    try:
        return ReasoningParserManager.get_reasoning_parser(name)(_tokenizer(config))
    # Parsers check the tokenizer in ways of their own (RuntimeError, ValueError, KeyError, …).
    except Exception as error:
        raise KPruneError(
            f"reasoning parser {name} does not fit this model ({type(error).__name__}: {error})"
        ) from None


def tool_parser(config: Any, name: str | None) -> Any:
    """The tool parser of a name from vLLM's command line; None if it has none, or cannot be made.

    vLLM makes its own for each request and reports what is wrong with it there.
    """
    from vllm.tool_parsers import ToolParserManager

    try:
        return ToolParserManager.get_tool_parser(name)(_tokenizer(config)) if name else None
    except Exception:  # as above
        return None


def token_id(config: Any, text: str) -> int | None:
    """The id of the token that is this text; None if there is none."""
    found: int | None = _tokenizer(config).get_vocab().get(text)
    return found


def _tokenizer(config: Any) -> Any:
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model_config=config.model_config)
