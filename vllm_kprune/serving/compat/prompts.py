"""Where prompts pass through vLLM as text, and kprune prunes them.

All of a server's requests become tokens in `OnlineRenderer`: chat, completions, responses, the
routes of Anthropic and Cohere, batches and `/render`. `LLM` has methods of its own. Not covered:
gpt-oss (Harmony), whose chats do not pass through either, and pooling models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from vllm_kprune.serving.compat import seams_prompts
from vllm_kprune.serving.compat.installer import Around, Wraps
from vllm_kprune.serving.compat.requests import client_errors

__all__ = [
    "accepts_key",
    "attached",
    "engine_input",
    "prune_offline",
    "prune_online",
    "server_error",
    "target_tokenizer",
]

# The `PromptPruning` of a renderer; None for a server that did not ask for kprune.
PruningOf = Callable[[Any], Any]
_ATTACHED = "kprune_pruning"


def attached(renderer: Any, make: PruningOf) -> Any:
    """What `make(renderer)` made for this renderer, at the first call."""
    # `hasattr`, because None is an answer, too: it must not be made again for every prompt.
    if not hasattr(renderer, _ATTACHED):
        setattr(renderer, _ATTACHED, make(renderer))
    return getattr(renderer, _ATTACHED)


def prune_online(pruning_of: PruningOf) -> Wraps:
    """Prune what a server renders.

    The pruner is loaded before the server is ready. A request without `vllm_xargs`, such as that
    of `/tokenize`, only loses its marks.
    """

    def warm_up(original: Around, online: Any, *rest: Any, **how: Any) -> Any:
        pruning_of(online.renderer)
        return original(online, *rest, **how)

    async def chat(
        original: Around,
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
            # Only this is inside `client_errors`: what vLLM raises while rendering keeps its
            # meaning.
            prepared = await pruning.prune([texts], _options_of(request), _salt(request))
        (pruned,) = prepared.texts
        with _documents_replaced(request, pruned.documents):
            conversation, inputs = await original(online, request, pruned.messages, *rest, **how)
        pruning.rendered(prepared, _tokens(inputs))
        return conversation, inputs

    async def completion(
        original: Around,
        online: Any,
        request: Any,
        prompts: Any,
        *rest: Any,
        **how: Any,
    ) -> Any:
        pruning = pruning_of(online.renderer)
        if pruning is None:
            return await original(online, request, prompts, *rest, **how)
        # A list, because the prompts are gone through twice.
        prompts, options = list(prompts), _options_of(request)
        if getattr(request, "suffix", None) is not None:  # fill in the middle: a rendered template
            options = _only_marks(options)
        with client_errors():
            prepared = await pruning.prune(_prompt_texts(prompts), options, _salt(request))
        inputs = await original(online, request, _with_texts(prompts, prepared), *rest, **how)
        pruning.rendered(prepared, _tokens(inputs))
        return inputs

    return {
        seams_prompts.WARM_UP: warm_up,
        seams_prompts.PREPROCESS_CHAT: chat,
        seams_prompts.PREPROCESS_COMPLETION: completion,
    }


def prune_offline(pruning_of: PruningOf) -> Wraps:
    """Prune the prompts of `LLM.generate`, `LLM.chat`, `LLM.beam_search` and the like.

    Each prompt has its own options, in `SamplingParams.extra_args`. Beam searches have none: they
    get the defaults.
    """

    def completions(
        original: Around, llm: Any, prompts: Any, params: Any, *rest: Any, **how: Any
    ) -> Any:
        pruning = pruning_of(llm.renderer)
        if pruning is not None and _generates(params):
            from vllm.renderers.inputs.preprocess import prompt_to_seq

            # vLLM's own idea of what is one prompt: a list of ids is one, a list of texts is
            # several.
            given = list(prompt_to_seq(prompts))

            def prune(prompt: Any, options: Mapping[str, Any]) -> Any:
                salt = prompt.get("cache_salt") if isinstance(prompt, Mapping) else None
                prepared = pruning.prune_blocking(_prompt_texts([prompt]), options, salt)
                return _with_texts([prompt], prepared)[0]

            prompts = [prune(prompt, options) for prompt, options in _with_options(given, params)]
        return original(llm, prompts, params, *rest, **how)

    def chats(
        original: Around, llm: Any, messages: Any, params: Any, *rest: Any, **how: Any
    ) -> Any:
        pruning = pruning_of(llm.renderer)
        if pruning is not None and _generates(params):
            from vllm.renderers.inputs.preprocess import conversation_to_seq

            given = list(conversation_to_seq(messages))
            messages = [
                pruning.prune_blocking([_chat_texts(chat, None)], options).texts[0].messages
                for chat, options in _with_options(given, params)
            ]
        return original(llm, messages, params, *rest, **how)

    def search(original: Around, llm: Any, prompts: Any, *rest: Any, **how: Any) -> Any:
        if pruning := pruning_of(llm.renderer):
            given = list(prompts)
            prompts = _with_texts(given, pruning.prune_blocking(_prompt_texts(given), {}))
        return original(llm, prompts, *rest, **how)

    return {
        seams_prompts.OFFLINE_PROMPTS: completions,
        seams_prompts.OFFLINE_CHATS: chats,
        seams_prompts.OFFLINE_BEAMS: search,
    }


def server_error(message: str, *, busy: bool) -> Exception:
    """The answer to a request: HTTP 503, to be tried again, when `busy`; otherwise HTTP 500."""
    from vllm.exceptions import GenerationError

    if not busy:
        return GenerationError(message)
    try:
        from vllm.exceptions import RetryableRequestError
    except ImportError:  # vLLM 0.31
        return _unavailable(message)
    return RetryableRequestError(message)


def _unavailable(message: str) -> Exception:
    """HTTP 503 where vLLM has no error of its own for it; HTTP 500 where nothing gives 503."""
    try:
        from vllm.exceptions import GracefulHTTPError
    except ImportError:
        return server_error(message, busy=False)
    return GracefulHTTPError(message, HTTPStatus.SERVICE_UNAVAILABLE)


def engine_input(token_ids: Sequence[int], salt: str) -> Any:
    """A prompt for `EngineClient.generate`; it shares no cached prefix with other salts."""
    from vllm.inputs import tokens_input

    return tokens_input(list(token_ids), cache_salt=salt)


def target_tokenizer(renderer: Any) -> Any:
    """A copy of the renderer's `tokenizers.Tokenizer`, which other threads must not use.

    None for a tokenizer of another library.
    """
    from tokenizers import Tokenizer

    from vllm_kprune.tokenizer.encoder import whole_texts

    backend = getattr(renderer.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    return whole_texts(Tokenizer.from_str(backend.to_str()))


def accepts_key(args: Any, headers: Any) -> bool:
    """Do the headers of a request contain an API key of this server, if it has any?

    vLLM asks for the key only below some paths, and `/kprune` is not one of them.
    """
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    tokens = [key for key in (getattr(args, "api_key", None) or [envs.VLLM_API_KEY]) if key]
    return not tokens or AuthenticationMiddleware(None, tokens).verify_token(headers)


def _salt(request: Any) -> str | None:
    """What keeps vLLM's prefix cache of one tenant apart from others, and our cache as well."""
    return getattr(request, "cache_salt", None)


def _options_of(request: Any) -> Mapping[str, Any]:
    # No way for its client to ask for pruning or against it, so the server's default is not
    # applied.
    if not hasattr(request, "vllm_xargs"):
        return _only_marks({})
    return request.vllm_xargs or {}


def _with_options(prompts: Sequence[Any], params: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Each prompt with its options; vLLM refuses more or fewer parameters than prompts."""
    each = params if isinstance(params, Sequence) else [params] * len(prompts)
    for number, prompt in enumerate(prompts):
        # Too few: let vLLM refuse them, with its own message, after this.
        one = each[number] if number < len(each) else None
        yield prompt, getattr(one, "extra_args", None) or {}


def _generates(params: Any) -> bool:
    """Are these parameters to generate with, not those of a pooling model?"""
    first = params[0] if isinstance(params, Sequence) and params else params
    return hasattr(first, "extra_args") and hasattr(first, "temperature")


def _only_marks(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request's options without any that would prune."""
    marks = {key: value for key, value in options.items() if key == "kprune_marks"}
    # "off" and not 1: with `keep` 1, spans that are marked with a rate of their own would be
    # pruned.
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
        # The same question as in `_prompt_texts`, so the pruned texts come in step with these
        # prompts.
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
    """Give the request other documents while it is rendered, and its own again afterwards."""
    if documents is None:
        yield
        return
    # Where `_documents` found them. The request is used again after rendering, so it gets back its
    # own.
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
    """Number of tokens in rendered prompts; that of embeddings is not known and left out."""
    return sum(len(one.get("prompt_token_ids") or ()) for one in inputs)
