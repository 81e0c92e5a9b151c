"""Requests in the format of the OpenAI API, with vLLM's additions."""

from typing import Any

from vllm_kprune.compare.endpoint.messages import Abilities, Request

__all__ = ["body_of", "path_of"]


def path_of(request: Request) -> str:
    """The path of a request below the base URL."""
    return "/chat/completions" if request.kind == "chat" else "/completions"


def body_of(request: Request, model: str, abilities: Abilities) -> dict[str, Any]:
    """The JSON body, without the fields that the endpoint does not support."""
    chat = request.kind == "chat"
    # Journal keys contain a digest of this body (`asking._digest`). A field that is added for all
    # requests makes every kept answer unknown.
    body: dict[str, Any] = {"model": model, "temperature": request.temperature}
    body["max_tokens" if abilities.can("max_tokens") else "max_completion_tokens"] = (
        request.max_tokens
    )
    body |= {"messages": [*map(dict, request.messages)]} if chat else {"prompt": request.prompt}
    body |= {"top_p": request.top_p} if request.top_p != 1 else {}
    body |= {"n": request.n} if request.n != 1 else {}
    if request.seed is not None and abilities.can("seed"):
        body["seed"] = request.seed
    if request.logprobs is not None and abilities.can("logprobs"):
        # Chats say "whether" and "how many" in two fields, completions in one number.
        top = request.logprobs
        body |= {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
    if request.prompt_logprobs is not None and abilities.can("prompt_logprobs"):
        body["prompt_logprobs"] = request.prompt_logprobs
    if abilities.can("token_ids") and (request.logprobs is not None or request.stream):
        body["return_token_ids"] = True
        body |= {"return_tokens_as_token_ids": True} if request.name_by_id else {}
    if request.stream:
        body["stream"] = True
        if abilities.can("stream_usage"):
            body["stream_options"] = {"include_usage": True}
    # Last, so that `extra` can replace any field.
    return body | dict(request.extra)
