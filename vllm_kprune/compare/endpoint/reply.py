"""The JSON of an answer: the OpenAI API, vLLM's additions, and what other servers do differently.

Everything is optional, since servers leave fields out or send null; `wire` says what must be there.
"""

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

__all__ = ["Choice", "Lenient", "Logprobs", "PromptToken", "Reply", "Usage"]

_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


class Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Details(Lenient):
    reasoning_tokens: int | None = None


class Usage(Lenient):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _Details | None = None

    @property
    def reasoning_tokens(self) -> int | None:
        details = self.completion_tokens_details
        return details.reasoning_tokens if details else None


class _Function(Lenient):
    name: str | None = None


class _ToolCall(Lenient):
    function: _Function | None = None


class _Message(Lenient):
    """`reasoning` in vLLM since 0.12 and in OpenRouter, `reasoning_content` in other servers."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[_ToolCall, ...] = ()
    function_call: _Function | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """Some servers send a list of parts, of which those with text are the answer."""
        if not isinstance(value, list):
            return value
        parts = (part.get("text") for part in value if isinstance(part, dict))
        return "".join(part for part in parts if isinstance(part, str))

    @field_validator("reasoning", "reasoning_content", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        return value if isinstance(value, str) else None

    @field_validator("tool_calls", mode="before")
    @classmethod
    def _no_calls(cls, value: Any) -> Any:
        return value or ()


class _Token(Lenient):
    token: str
    logprob: float
    top_logprobs: tuple["_Token", ...] | None = None


class Logprobs(Lenient):
    """Both formats: chats use `content`, completions the other fields."""

    content: tuple[_Token, ...] | None = None
    tokens: tuple[str, ...] | None = None
    token_logprobs: tuple[float | None, ...] | None = None
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None


class PromptToken(Lenient):
    logprob: float


class Choice(Lenient):
    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: tuple[dict[str, PromptToken] | None, ...] | None = None

    @property
    def words(self) -> str:
        text = (self._said.content if self._said else self.text) or ""
        return _HALF_CHARACTERS.sub("\ufffd", text)

    @property
    def thoughts(self) -> str:
        said = self._said
        text = (said.reasoning or said.reasoning_content or "") if said else ""
        return _HALF_CHARACTERS.sub("\ufffd", text)

    @property
    def tools(self) -> tuple[str, ...]:
        if not self._said:
            return ()
        called = [call.function for call in self._said.tool_calls] + [self._said.function_call]
        return tuple(one.name[:100] for one in called if one and one.name)

    @property
    def _said(self) -> _Message | None:
        return self.message or self.delta


class Reply(Lenient):
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_logprobs: tuple[dict[str, PromptToken] | None, ...] | None = None

    @field_validator("choices", mode="before")
    @classmethod
    def _no_choices(cls, value: Any) -> Any:
        return value or ()  # some servers send null with the final usage
