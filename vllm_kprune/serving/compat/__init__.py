"""Every private or unstable vLLM name that kprune touches, and the versions they were checked in.

The other modules of `serving/` use vLLM's documented interfaces only. Names are looked up when they
are needed, never at import: `register()` runs in every vLLM process on the machine, also those that
have nothing to do with kprune. Read in vLLM 0.32.0 and 0.33.0.
"""

import functools
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from vllm_kprune.errors import KPruneError

__all__ = [
    "ALLOW_UNTESTED",
    "TESTED",
    "adapter_folder",
    "check_adapter_loads",
    "check_adapter_requests",
    "check_beam_options",
    "check_beam_searches",
    "check_requests",
    "check_version",
    "client_errors",
    "endpoint_plugins_allowed",
    "explain_failures",
    "refuses_logits_processors",
    "settle_tied_head",
    "staged_tokens",
    "stream_weights",
    "tensor_parallel_rank",
    "vllm_version",
    "when_imported",
    "wrap",
]

logger = logging.getLogger("vllm.kprune")

TESTED = ">=0.32,<0.34"
ALLOW_UNTESTED = "VLLM_KPRUNE_ALLOW_UNTESTED_VLLM"
_SENTINEL = "__kprune_wraps__"


def vllm_version() -> str:
    """The running vLLM's version, such as `0.32.0+cpu`."""
    from vllm.version import __version__

    return str(__version__)


def check_version() -> None:
    """Raise `KPruneError` when this vLLM is outside the range that kprune was checked against."""
    from packaging.specifiers import SpecifierSet

    version = vllm_version()
    if SpecifierSet(TESTED).contains(version, prereleases=True):
        return
    if os.environ.get(ALLOW_UNTESTED, "0") != "0":
        logger.warning("kprune is checked with vLLM %s; this is %s", TESTED, version)
        return
    raise KPruneError(
        f"kprune is checked with vLLM {TESTED} and this is {version}; install one of those, "
        f"or set {ALLOW_UNTESTED}=1 to try it"
    )


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace `owner.name` by `around(original, …)`, once; static and class methods stay so.

    When this vLLM has no such name, that feature is off and one warning says so: a plugin must not
    stop a server that did not ask for it.
    """
    found = inspect.getattr_static(owner, name, None)
    if found is None:
        logger.warning("kprune: vLLM %s has no %s; some options are off", vllm_version(), name)
        return
    kind = type(found) if isinstance(found, staticmethod | classmethod) else None
    original = found.__func__ if kind else found
    if hasattr(original, _SENTINEL):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapped, _SENTINEL, True)
    setattr(owner, name, kind(wrapped) if kind else wrapped)


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call `action(module)` now if module `name` is imported, otherwise when it will be.

    The model loaders take over a second to import, and an API server never needs them; engine
    processes do, in an order that differs between executors.
    """
    if module := sys.modules.get(name):
        action(module)
    elif not any(
        isinstance(f, _ImportHook) and f.waits_for == (name, action) for f in sys.meta_path
    ):
        sys.meta_path.insert(0, _ImportHook(name, action))


class _ImportHook(MetaPathFinder):
    """Lets the import of one module run as usual, then calls `action` and is gone."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.waits_for = (name, action)

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name, action = self.waits_for
        if fullname != name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                action(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def endpoint_plugins_allowed(names: Iterable[str]) -> Iterator[None]:
    """Let `vllm.plugins.load_endpoint_plugins` load these too.

    It reads `VLLM_PLUGINS`, which filters *general* plugins as well when set; so it is set for the
    duration of that one call only, and child processes inherit what the user had.
    """
    before = os.environ.get("VLLM_PLUGINS")
    allowed = [*(before.split(",") if before else []), *names]
    os.environ["VLLM_PLUGINS"] = ",".join(allowed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["VLLM_PLUGINS"]
        else:
            os.environ["VLLM_PLUGINS"] = before


def settle_tied_head(model_config: Any, base: Path) -> None:
    """Let vLLM look into the *base* for an LM head that its config denies.

    Some checkpoints say `tie_word_embeddings` and yet hold an `lm_head.weight`; vLLM then loads it
    and compares. It looks for that tensor in `model_config.model`, which for an overlay has none.
    """
    overlay = model_config.model
    model_config.model = str(base)
    try:
        model_config.maybe_untie_word_embeddings()
    finally:
        model_config.model = overlay


def stream_weights(loader: Any, folder: Path, model: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of all weights in `folder`, as vLLM's default loader would yield them."""
    source = loader.Source(
        model_or_path=str(folder),
        revision=None,
        fall_back_to_pt=False,
        is_unused_weight=getattr(model, "is_unused_checkpoint_weight", None),
    )
    yield from loader._get_weights_iterator(source)


@contextmanager
def client_errors() -> Iterator[None]:
    """Let a `KPruneError` be the client's error (HTTP 400), and still one of ours.

    Other errors while a request is taken in, a plain `ValueError` too, are the server's (HTTP 500).
    """
    try:
        yield
    except KPruneError as error:
        raise _refusal()(str(error)) from None


@functools.cache
def _refusal() -> type[KPruneError]:
    from vllm.exceptions import VLLMValidationError

    class RequestRefused(KPruneError, VLLMValidationError):
        parameter = None
        value = None

    return RequestRefused


def adapter_folder(adapter: str) -> Path:
    """The folder of a LoRA adapter, downloaded if it is a hub id."""
    from vllm.lora.utils import get_adapter_absolute_path

    return Path(get_adapter_absolute_path(adapter))


def check_adapter_requests(module: ModuleType, check: Callable[[str, str], None]) -> None:
    """Call `check(model, adapter)` before any request with a LoRA adapter is accepted.

    `module` is `vllm.v1.engine.input_processor`. The error of a check is the answer to the request.
    """

    def validate(original: Callable[..., Any], processor: Any, lora_request: Any) -> Any:
        if lora_request is not None:
            with client_errors():
                check(processor.model_config.model, lora_request.lora_path)
        return original(processor, lora_request)

    wrap(module.InputProcessor, "_validate_lora", validate)


def check_adapter_loads(module: ModuleType, check: Callable[[str, str], None]) -> None:
    """Call `check(model, adapter)` when a server is asked to load one: an error is HTTP 400.

    `module` is `vllm.entrypoints.openai.models.serving`.
    """

    async def validate(original: Callable[..., Any], models: Any, request: Any) -> Any:
        answer = await original(models, request)
        if answer is not None:
            return answer
        try:
            check(models.model_config.model, request.lora_path)
        except KPruneError as error:
            return module.create_error_response(message=str(error))
        return None

    wrap(module.OpenAIServingModels, "_check_load_lora_adapter_request", validate)


def refuses_logits_processors(config: Any) -> str | None:
    """Why the engine of a `VllmConfig` takes no logits processors; None if it takes them.

    vLLM says no more than that when it refuses one, or takes no notice of it at all.
    """
    from vllm.platforms import current_platform

    model = config.model_config
    if model.runner_type == "pooling":
        return "a pooling model produces no text"
    if getattr(model, "is_diffusion", False):
        return "a diffusion model samples without logits processors"
    if current_platform.is_tpu():
        return "vLLM runs no logits processors on TPUs"
    if getattr(model, "return_sampling_mask", False):
        return "--return-sampling-mask refuses logits processors; leave it out"
    if config.speculative_config is not None and not config.use_v2_model_runner:
        return (
            "vLLM's V1 model runner refuses logits processors with speculative decoding; "
            "leave --speculative-config (-sc) out"
        )
    return None


def tensor_parallel_rank() -> int:
    """This process's place in its tensor-parallel group; 0 where there is no group."""
    from vllm.distributed import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        return 0
    return int(parallel_state.get_tensor_model_parallel_rank())


def staged_tokens(tokens: Any, slot: int) -> list[int] | None:
    """What is staged for a row of the V2 runner's token tensor and not on the device yet.

    None if nothing is, or if this vLLM stages in another way. The tensor can be read instead, but
    that waits for the device.
    """
    names = ("_staged_write_indices", "_staged_write_contents", "_staged_write_cu_lens")
    if not all(hasattr(tokens, name) for name in names):
        return None
    indices, contents, ends = (getattr(tokens, name) for name in names)
    written = [n for n, index in enumerate(indices) if index == slot]
    if not written:
        return None
    begin = ends[written[-1] - 1] if written[-1] else 0
    return list(contents[begin : ends[written[-1]]])


def check_requests(module: ModuleType, check: Callable[[Any, Any], None]) -> None:
    """Call `check(vllm_config, extra_args)` for every request to generate: an error is HTTP 400.

    `module` is `vllm.v1.engine.input_processor`. A processor's own `validate_params` is a class
    method and knows no configuration.
    """

    def validate(
        original: Callable[..., Any], processor: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        with client_errors():
            check(processor.vllm_config, getattr(params, "extra_args", None))
        return original(processor, params, *args, **kwargs)

    wrap(module.InputProcessor, "_validate_params", validate)


def check_beam_searches(module: ModuleType, check: Callable[[Any], None]) -> None:
    """Call `check(vllm_config)` before a beam search, of a server or of `LLM`.

    `module` is `vllm.v1.engine.input_processor`. Both kinds begin with this one call.
    """

    def resolve(original: Callable[..., Any], processor: Any, params: Any) -> Any:
        if hasattr(params, "beam_width"):
            with client_errors():
                check(processor.vllm_config)
        return original(processor, params)

    wrap(module.InputProcessor, "resolve_watermarking", resolve)


def check_beam_options(module: ModuleType, check: Callable[[Any], None]) -> None:
    """Call `check(vllm_xargs)` for requests of a beam search, whose beams vLLM hands none of them.

    `module` is the protocol module of completions or of chat. An error is HTTP 400.
    """

    def convert(original: Callable[..., Any], request: Any, *args: Any, **kwargs: Any) -> Any:
        with client_errors():
            check(request.vllm_xargs)
        return original(request, *args, **kwargs)

    for name in ("CompletionRequest", "ChatCompletionRequest"):
        if hasattr(module, name):
            wrap(getattr(module, name), "to_beam_search_params", convert)


def explain_failures(module: ModuleType, explain: Callable[[], str | None]) -> None:
    """Let `explain()` say why a request ended with an error: HTTP 500 with that message.

    `module` is `vllm.entrypoints.generate.base.serving`, which says "Internal server error".
    """

    def raise_error(original: Callable[..., Any], serving: Any, reason: Any, request: Any) -> Any:
        if reason == "error" and (message := explain()):
            logger.warning("kprune: request %s: %s", request, message)
            raise module.GenerationError(message)
        return original(serving, reason, request)

    wrap(module.GenerateBaseServing, "_raise_if_error", raise_error)
