"""What kprune puts around vLLM's handling of requests: checks, and explanations of failures.

Each function gives wraps for `installer.hook`. The error of a check is the answer to the request:
HTTP 400 from a server, the exception from `LLM`.
"""

import functools
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat import seams_requests
from vllm_kprune.serving.compat.installer import Around, Wraps
from vllm_kprune.serving.compat.log import logger

__all__ = [
    "admit_requests",
    "at_start",
    "check_adapter_loads",
    "check_adapter_requests",
    "check_beam_options",
    "check_beam_searches",
    "check_requests",
    "client_errors",
    "count_answers",
    "explain_failures",
    "note_requests",
    "prepare_requests",
]


_BEAM_STEP = re.compile(r"-beam-\d+$")


@contextmanager
def client_errors() -> Iterator[None]:
    """Turn a `KPruneError` into the client's error (HTTP 400) that is still one of ours.

    Other errors while a request is taken in, a plain `ValueError` too, are the server's (HTTP 500).
    """
    try:
        yield
    except KPruneError as error:
        # `from None`: the client's mistake needs no traceback of ours in the log.
        raise _refusal()(str(error)) from None


# Made at the first refusal, because vLLM is not imported before; once, so that it is one class.
@functools.cache
def _refusal() -> type[KPruneError]:
    from vllm.exceptions import VLLMValidationError

    class RequestRefused(KPruneError, VLLMValidationError):
        parameter = None
        value = None

    return RequestRefused


def at_start(check: Callable[[Any], None]) -> Wraps:
    """Call `check(vllm_config)` before an engine's front end is made."""

    def init(original: Around, processor: Any, vllm_config: Any, *rest: Any, **how: Any) -> None:
        check(vllm_config)
        original(processor, vllm_config, *rest, **how)

    return {seams_requests.INPUT_PROCESSOR: init}


def check_adapter_requests(check: Callable[[Any, str], None]) -> Wraps:
    """Call `check(vllm_config, adapter)` before any request with a LoRA adapter is accepted."""

    def validate(
        original: Around, processor: Any, lora_request: Any, *rest: Any, **how: Any
    ) -> Any:
        if lora_request is not None:
            with client_errors():
                check(processor.vllm_config, lora_request.lora_path)
        return original(processor, lora_request, *rest, **how)

    return {seams_requests.VALIDATE_LORA: validate}


def check_adapter_loads(check: Callable[[Any, str], None]) -> Wraps:
    """Call `check(vllm_config, adapter)` when a server is asked to load one."""

    async def validate(original: Around, models: Any, request: Any, *rest: Any, **how: Any) -> Any:
        # vLLM's own checks first: it answers with an error, or None if the adapter may be loaded.
        answer = await original(models, request, *rest, **how)
        if answer is not None:
            return answer
        try:
            check(models.engine_client.vllm_config, request.lora_path)
        except KPruneError as error:
            from vllm.entrypoints.serve import create_error_response

            return create_error_response(message=str(error))
        return None

    return {seams_requests.CHECK_LORA_LOAD: validate}


def check_requests(check: Callable[[Any, Any], None]) -> Wraps:
    """Call `check(vllm_config, extra_args)` for every request to generate.

    A logits processor's own `validate_params` is a class method and knows no configuration.
    """

    def validate(original: Around, processor: Any, params: Any, *rest: Any, **how: Any) -> Any:
        with client_errors():
            # Parameters of pooling models come through here as well, and need not have the
            # attribute.
            check(processor.vllm_config, getattr(params, "extra_args", None))
        return original(processor, params, *rest, **how)

    return {seams_requests.VALIDATE_PARAMS: validate}


def admit_requests(admit: Callable[[Any, Any], None]) -> Wraps:
    """Call `admit(vllm_config, params)` for every request to generate that was let in.

    `params` are vLLM's own copy of the sampling parameters, which goes to the engine.
    """

    def process(original: Around, processor: Any, *rest: Any, **how: Any) -> Any:
        request = original(processor, *rest, **how)
        if request.sampling_params is not None:
            with client_errors():
                admit(processor.vllm_config, request.sampling_params)
        return request

    return {seams_requests.PROCESS_INPUTS: process}


def prepare_requests(to_prepare: Callable[[Any, Any], Awaitable[None] | None]) -> Wraps:
    """Await what `to_prepare(vllm_config, params)` gives, before a server admits a request.

    Admission itself runs on the event loop. `LLM` has none, and waits for it.
    """

    async def add(
        original: Around,
        engine: Any,
        request_id: Any,
        prompt: Any,
        params: Any,
        *rest: Any,
        **how: Any,
    ) -> Any:
        # Parameters of pooling models come through here as well.
        if hasattr(params, "extra_args"):
            with client_errors():
                if slow := to_prepare(engine.vllm_config, params):
                    await slow
        return await original(engine, request_id, prompt, params, *rest, **how)

    return {seams_requests.ADD_REQUEST: add}


def note_requests(note: Callable[[Any, Any], None]) -> Wraps:
    """Call `note(request, params)` when a chat or response request becomes sampling parameters."""

    def convert(original: Around, request: Any, *rest: Any, **how: Any) -> Any:
        params = original(request, *rest, **how)
        note(request, params)
        return params

    return {seams_requests.CHAT_PARAMS: convert, seams_requests.RESPONSE_PARAMS: convert}


def check_beam_searches(check: Callable[[Any], None]) -> Wraps:
    """Call `check(vllm_config)` before a beam search of a server or of `LLM`.

    Both begin with this one call, which other requests make too.
    """

    def resolve(original: Around, processor: Any, params: Any, *rest: Any, **how: Any) -> Any:
        # Only parameters of beam searches have it.
        if hasattr(params, "beam_width"):
            with client_errors():
                check(processor.vllm_config)
        return original(processor, params, *rest, **how)

    return {seams_requests.BEAM_SEARCH: resolve}


def check_beam_options(check: Callable[[Any], None]) -> Wraps:
    """Call `check(vllm_xargs)` for requests that ask for a beam search.

    vLLM passes none of these options on to the beams.
    """

    def convert(original: Around, request: Any, *rest: Any, **how: Any) -> Any:
        with client_errors():
            check(request.vllm_xargs)
        return original(request, *rest, **how)

    return {seams_requests.COMPLETION_BEAMS: convert, seams_requests.CHAT_BEAMS: convert}


def count_answers(is_counted: Callable[[], bool], count: Callable[[list[int], Any], None]) -> Wraps:
    """Call `count(token_ids, parent)` for each answer that came to its end, if `is_counted()`.

    `parent` is an object that the `n` answers to one request share; None where there is only one.
    Steps of beam searches are no answers, and what was aborted has no end.
    """

    def finish(original: Around, processor: Any, state: Any, *rest: Any, **how: Any) -> Any:
        # None: a pooling model's request.
        if is_counted() and (found := state.detokenizer) is not None:
            # vLLM's own names; the request of a client that chooses such a name is not counted.
            is_step = _BEAM_STEP.search(state.external_req_id)
            if not is_step:
                count(found.output_token_ids, state.parent_req)
        return original(processor, state, *rest, **how)

    return {seams_requests.FINISH_REQUEST: finish}


def explain_failures(explain: Callable[[], str | None]) -> Wraps:
    """Let `explain()` say why a request ended with an error: HTTP 500 with that message.

    vLLM alone answers "Internal server error".
    """

    def raise_error(
        original: Around,
        serving: Any,
        finish_reason: Any,
        request_id: Any,
        *rest: Any,
        **how: Any,
    ) -> Any:
        if finish_reason == "error" and (message := explain()):
            from vllm.exceptions import GenerationError

            logger.warning("kprune: request %s: %s", request_id, message)
            raise GenerationError(message)
        return original(serving, finish_reason, request_id, *rest, **how)

    return {seams_requests.RAISE_IF_ERROR: raise_error}
