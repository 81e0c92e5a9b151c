"""What vLLM calls in each of its processes: hooks kprune in, and changes nothing by itself.

`register()` imports nothing heavy; the hooks decide. With a folder made by `kprune build`, or with
a `--kprune-*` option, they select the pruned model. Otherwise vLLM runs as if kprune were not
there, except for its group of options in `--help`. `VLLM_KPRUNE_DISABLE=1` turns all of it off.
"""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from vllm_kprune.serving.command import command_wraps, refuse_flags_in_vain
from vllm_kprune.serving.compat import requests, seams_engine, seams_routes
from vllm_kprune.serving.compat.engine import endpoint_plugins_allowed, settle_tied_head
from vllm_kprune.serving.compat.installer import Wraps, hook, installer
from vllm_kprune.serving.guard.hooks import guard_wraps
from vllm_kprune.serving.head.hooks import head_wraps
from vllm_kprune.serving.pruning.hooks import pruner_wraps
from vllm_kprune.serving.usage.hooks import usage_wraps

__all__ = ["DISABLE", "all_wraps", "register"]

DISABLE = "VLLM_KPRUNE_DISABLE"


def register() -> None:
    """Entry point `vllm.general_plugins`; may run many times, in any process."""
    if os.environ.get(DISABLE, "0") not in ("", "0"):
        return
    # Wraps wait for their modules. At this moment most of vLLM is not imported, and must not be.
    hook(all_wraps())
    installer.when_usable(seams_engine.LOADER_SEAMS, _register_loader)
    refuse_flags_in_vain()


def all_wraps() -> Wraps:
    """Everything that kprune puts around functions of vLLM."""
    return {
        # One wrap for each seam: a second entry for the same seam would silently replace the first.
        **command_wraps(),
        seams_engine.CREATE_ENGINE_CONFIG: _create_engine_config,
        seams_engine.CREATE_MODEL_CONFIG: _create_model_config,
        seams_routes.LOAD_ENDPOINTS: _load_endpoint_plugins,
        **requests.at_start(_require_engine_features),
        **requests.check_adapter_requests(_check_adapter),
        **requests.check_adapter_loads(_check_adapter),
        **head_wraps(),
        **guard_wraps(),
        **pruner_wraps(),
        **usage_wraps(),
    }


def _register_loader() -> None:
    import_module("vllm_kprune.serving.loader")  # registers itself


def _check_adapter(config: Any, adapter: str) -> None:
    from vllm_kprune.serving.adapters import check_served_adapter

    check_served_adapter(config, adapter)


def _create_engine_config(
    original: Callable[..., Any],
    engine_args: Any,
    usage_context: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # Earlier than the model config: vLLM first looks into the model for a speculator.
    from vllm_kprune.serving.activation import activate
    from vllm_kprune.serving.asked import require_asked
    from vllm_kprune.serving.settings import settings_of, share_settings

    # `UsageContext` is an enum of strings. Without one, it is not known who calls.
    offline = getattr(usage_context, "value", usage_context) == "LLM_CLASS"
    require_asked(
        settings_of(engine_args),
        lora=engine_args.enable_lora,
        front_end="offline" if offline else "server" if usage_context else None,
    )
    activate(engine_args)
    config = original(engine_args, usage_context, *args, **kwargs)
    # From here on it is the `VllmConfig` that travels to other processes, not the arguments.
    settings = share_settings(engine_args, config)
    if settings.usage.counted:
        from vllm_kprune.serving.usage.hooks import start_counting

        start_counting(config)
    if settings.asks_for_kprune:
        from vllm_kprune.serving.drafts import check_resolved_drafts
        from vllm_kprune.serving.guard.attach import attach_guard

        check_resolved_drafts(config)
        attach_guard(config)
    return config


def _create_model_config(
    original: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any
) -> Any:
    from vllm_kprune.serving.activation import LOAD_FORMAT, activate

    # The second time, after `create_engine_config`: nothing changes any more.
    active = activate(engine_args)
    model_config = original(engine_args, *args, **kwargs)
    if active and engine_args.load_format == LOAD_FORMAT:
        settle_tied_head(model_config, Path(engine_args.model_weights))
    return model_config


def _require_engine_features(config: Any) -> None:
    """What `_create_engine_config` does, for a vLLM where it could not be wrapped."""
    from vllm_kprune.serving.asked import require_asked
    from vllm_kprune.serving.settings import settings_of

    require_asked(settings_of(config), lora=config.lora_config is not None)


def _load_endpoint_plugins(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from vllm_kprune.serving.environment import NAMED

    # From the environment, which the other API servers of this server inherit.
    named = os.environ.get(NAMED)
    if not named:
        return original(*args, **kwargs)
    with endpoint_plugins_allowed(named.split(",")):
        return original(*args, **kwargs)
