"""vLLM's parsers of reasoning and tool calls, which know the tokens that structure answers.

Rows of the table in `seams`.
"""

from vllm_kprune.serving.compat.features import GUARD, reads, seam
from vllm_kprune.serving.compat.seam import Use

__all__ = [
    "PARSER_CONFIG",
    "PARSER_TOKENIZER",
    "REASONING_MARKS",
    "REASONING_PARSER",
    "REASONING_PLUGIN",
    "TOOL_PARSER",
]

_LOST = "which part of an answer is reasoning: all of it would be guarded"
_CONTROL_LOST = "the control tokens of the tool parser"

PARSER_CONFIG = reads(
    GUARD,
    "vllm.config:StructuredOutputsConfig",
    *("reasoning_parser", "reasoning_parser_plugin"),
    lost=_LOST,
)
REASONING_PARSER = seam(
    GUARD,
    "vllm.reasoning:ReasoningParserManager.get_reasoning_parser",
    Use.CALLS,
    "cls, name",
    binding="class",
    lost=_LOST,
)
REASONING_PLUGIN = seam(
    GUARD,
    "vllm.reasoning:ReasoningParserManager.import_reasoning_parser",
    Use.CALLS,
    "cls, plugin_path",
    binding="class",
    lost=_LOST,
)
REASONING_MARKS = reads(
    GUARD,
    "vllm.reasoning:ReasoningParser",
    *("reasoning_start_str", "reasoning_end_str"),
    lost=_LOST,
)
TOOL_PARSER = seam(
    GUARD,
    "vllm.tool_parsers:ToolParserManager.get_tool_parser",
    Use.CALLS,
    "cls, name",
    binding="class",
    lost=_CONTROL_LOST,
)
PARSER_TOKENIZER = seam(
    GUARD,
    "vllm.tokenizers:cached_tokenizer_from_config",
    Use.CALLS,
    "model_config",
    lost=_LOST,
)
