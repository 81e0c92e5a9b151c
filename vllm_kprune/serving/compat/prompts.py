"""Where prompts pass through vLLM as text: the names that input pruning touches.

The other half of `compat`, with the same rules. Read in vLLM 0.32.0. `OnlineRenderer` is
the one way from a request to tokens, of chat, completions, responses, Anthropic's and Cohere's
routes, batches and `/render`; `LLM` has its own. Not covered: gpt-oss (Harmony), whose chats are
rendered past it, and pooling models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from vllm_kprune.serving.compat import client_errors, wrap

__all__ = [
    "accepts_key",
    "attached",
    "engine_input",
    "prune_offline",
    "prune_offline_beams",
    "prune_online",
    "server_error",
    "target_tokenizer",
]

# The `PromptPruning` of a renderer; None for a server that did not ask for kprune.
PruningOf = Callable[[Any], Any]
_ATTACHED = "kprune_pruning"


def attached(renderer: Any, make: PruningOf) -> Any:
    """What `make(renderer)` gave for this renderer, the first time that anybody asked."""
    if not hasattr(renderer, _ATTACHED):
        setattr(renderer, _ATTACHED, make(renderer))
    return getattr(renderer, _ATTACHED)


def prune_online(module: ModuleType, pruning_of: PruningOf) -> None:
    """Prune what a server renders; `module` is `vllm.renderers.online_renderer`.

    The pruner is loaded before the server is ready. A request without `vllm_xargs`, as that of
    `/tokenize`, only loses its marks.
    """

    def warm_up(original: Callable[..., Any], online: Any) -> Any:
        pruning_of(online.renderer)
        return original(online)

    async def chat(
        original: Callable[..., Any],
        online: Any,
        request: Any,
        messages: Any,
        *rest: Any,
        **how: Any,
    ) -> Any:
        pruning = pruning_of(online.renderer)
        if pruning is None or not _are_mappings(messages):
            return await original(online, request, messages, *rest, **how)
        texts = _chat_texts(messages, _documents(request))
        with client_errors():
            prepared = await pruning.prune([texts], _wishes(request))
        (pruned,) = prepared.texts
        with _documents_replaced(request, pruned.documents):
            conversation, inputs = await original(online, request, pruned.messages, *rest, **how)
        pruning.rendered(prepared, _tokens(inputs))
        return conversation, inputs

    async def completion(
        original: Callable[..., Any],
        online: Any,
        request: Any,
        prompts: Any,
        *rest: Any,
        **how: Any,
    ) -> Any:
        pruning = pruning_of(online.renderer)
        if pruning is None:
            return await original(online, request, prompts, *rest, **how)
        prompts, wishes = list(prompts), _wishes(request)
        if getattr(request, "suffix", None) is not None:  # fill in the middle: a rendered template
            wishes = _only_marks(wishes)
        with client_errors():
            prepared = await pruning.prune(_prompt_texts(prompts), wishes)
        inputs = await original(online, request, _with_texts(prompts, prepared), *rest, **how)
        pruning.rendered(prepared, _tokens(inputs))
        return inputs

    wrap(module.OnlineRenderer, "warmup", warm_up)
    wrap(module.OnlineRenderer, "preprocess_chat", chat)
    wrap(module.OnlineRenderer, "preprocess_cmpl", completion)


def prune_offline(module: ModuleType, pruning_of: PruningOf) -> None:
    """Prune the prompts of `LLM.generate`, `LLM.chat` and the like.

    Options come in `SamplingParams.extra_args`, of each prompt its own. `module` is
    `vllm.entrypoints.common.offline`.
    """

    def completions(
        original: Callable[..., Any], llm: Any, prompts: Any, params: Any, *rest: Any, **how: Any
    ) -> Any:
        pruning = pruning_of(llm.renderer)
        if pruning is not None and _generates(params):
            given = list(module.prompt_to_seq(prompts))
            prompts = [
                _with_texts([prompt], pruning.prune_blocking(_prompt_texts([prompt]), wishes))[0]
                for prompt, wishes in _with_wishes(given, params)
            ]
        return original(llm, prompts, params, *rest, **how)

    def chats(
        original: Callable[..., Any], llm: Any, messages: Any, params: Any, *rest: Any, **how: Any
    ) -> Any:
        pruning = pruning_of(llm.renderer)
        if pruning is not None and _generates(params):
            given = list(module.conversation_to_seq(messages))
            messages = [
                pruning.prune_blocking([_chat_texts(chat, None)], wishes).texts[0].messages
                for chat, wishes in _with_wishes(given, params)
            ]
        return original(llm, messages, params, *rest, **how)

    wrap(module.OfflineInferenceMixin, "_add_completion_requests", completions)
    wrap(module.OfflineInferenceMixin, "_add_chat_requests", chats)


def prune_offline_beams(module: ModuleType, pruning_of: PruningOf) -> None:
    """The same for `LLM.beam_search`, whose parameters carry no options: the server's defaults."""

    def search(original: Callable[..., Any], llm: Any, prompts: Any, *rest: Any, **how: Any) -> Any:
        if pruning := pruning_of(llm.renderer):
            given = list(prompts)
            prompts = _with_texts(given, pruning.prune_blocking(_prompt_texts(given), {}))
        return original(llm, prompts, *rest, **how)

    wrap(module.BeamSearchOfflineMixin, "beam_search", search)


def server_error(message: str, *, busy: bool) -> Exception:
    """What a request is answered with: HTTP 503 when `busy`, to be tried again; else HTTP 500."""
    from vllm.exceptions import GenerationError, RetryableRequestError

    return RetryableRequestError(message) if busy else GenerationError(message)


def engine_input(token_ids: Sequence[int], salt: str) -> Any:
    """A prompt for `EngineClient.generate`; prompts of different `salt` share no cached prefix."""
    from vllm.inputs import tokens_input

    return tokens_input(list(token_ids), cache_salt=salt)


def target_tokenizer(renderer: Any) -> Any:
    """A `tokenizers.Tokenizer` as the renderer's own, which must not be used from other threads.

    None for a tokenizer of another library.
    """
    from tokenizers import Tokenizer

    backend = getattr(renderer.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    copied = Tokenizer.from_str(backend.to_str())
    copied.no_truncation()
    copied.no_padding()
    return copied


def accepts_key(args: Any, headers: Any) -> bool:
    """Do the headers of a request hold an API key of this server, if it wants one?

    vLLM asks for the key only below some paths, and `/kprune` is none of them.
    """
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    tokens = [key for key in (getattr(args, "api_key", None) or [envs.VLLM_API_KEY]) if key]
    return not tokens or AuthenticationMiddleware(None, tokens).verify_token(headers)


def _wishes(request: Any) -> Mapping[str, Any]:
    if not hasattr(request, "vllm_xargs"):
        return _only_marks({})
    return request.vllm_xargs or {}


def _with_wishes(prompts: Sequence[Any], params: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Each prompt with its options; vLLM refuses more or fewer parameters than prompts."""
    each = params if isinstance(params, Sequence) else [params] * len(prompts)
    for number, prompt in enumerate(prompts):
        one = each[number] if number < len(each) else None
        yield prompt, getattr(one, "extra_args", None) or {}


def _generates(params: Any) -> bool:
    """Are these parameters to generate with, not those of a pooling model?"""
    first = params[0] if isinstance(params, Sequence) and params else params
    return hasattr(first, "extra_args") and hasattr(first, "temperature")


def _only_marks(wishes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a request's options those with which nothing is pruned."""
    marks = {key: value for key, value in wishes.items() if key == "kprune_marks"}
    return {"kprune_keep": "off", **marks}


def _are_mappings(parts: Any) -> bool:
    return isinstance(parts, Sequence) and all(isinstance(part, Mapping) for part in parts)


def _chat_texts(messages: Sequence[Mapping[str, Any]], documents: Any) -> Any:
    from vllm_kprune.prompt.segments import RequestTexts

    return RequestTexts([_readable(message) for message in messages], documents)


def _readable(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its parts in a list: pydantic leaves an iterator, which can be read once."""
    content = message.get("content")
    if content is None or isinstance(content, str | list):
        return message
    return {**message, "content": list(content)}


def _prompt_texts(prompts: Sequence[Any]) -> list[Any]:
    from vllm_kprune.prompt.segments import RequestTexts

    return [RequestTexts(prompt=text) for text in map(_text, prompts) if text is not None]


def _text(prompt: Any) -> str | None:
    """The text of a prompt; None for token ids, embeddings and prompts of an encoder."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping) and not {"prompt_token_ids", "prompt_embeds"} & prompt.keys():
        text = prompt.get("prompt")
        return text if isinstance(text, str) else None
    return None


def _with_texts(prompts: Sequence[Any], prepared: Any) -> list[Any]:
    pruned = iter(prepared.texts)
    found = []
    for prompt in prompts:
        if _text(prompt) is not None:
            text = next(pruned).prompt
            prompt = text if isinstance(prompt, str) else {**prompt, "prompt": text}
        found.append(prompt)
    return found


def _documents(request: Any) -> Any:
    """A chat request's documents, where its template finds them."""
    found = getattr(request, "documents", None) or _template_kwargs(request).get("documents")
    return found if found and _are_mappings(found) else None


@contextmanager
def _documents_replaced(request: Any, documents: Any) -> Iterator[None]:
    """The request with other documents, while it is rendered; later it is as it was sent."""
    if documents is None:
        yield
        return
    name = "documents" if getattr(request, "documents", None) else "chat_template_kwargs"
    before = getattr(request, name)
    replaced = documents if name == "documents" else {**before, "documents": documents}
    setattr(request, name, replaced)
    try:
        yield
    finally:
        setattr(request, name, before)


def _template_kwargs(request: Any) -> Mapping[str, Any]:
    return getattr(request, "chat_template_kwargs", None) or {}


def _tokens(inputs: Sequence[Any]) -> int:
    """Tokens of rendered prompts; embeddings have none that are known."""
    return sum(len(one.get("prompt_token_ids") or ()) for one in inputs)
