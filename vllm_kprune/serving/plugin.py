"""What vLLM calls in each of its processes: hooks kprune in, and changes nothing by itself.

`register()` imports nothing heavy; the hooks decide. With a folder made by `kprune build`, or with
a `--kprune-*` option, they select the pruned model. Otherwise vLLM runs as if kprune were not
there, except for its group of options in `--help`. `VLLM_KPRUNE_DISABLE=1` turns all of it off.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving import compat
from vllm_kprune.serving.guard.hooks import hook_guard
from vllm_kprune.serving.pruning.hooks import hook_pruner

__all__ = ["DISABLE", "register"]

DISABLE = "VLLM_KPRUNE_DISABLE"
NAME = "kprune"


def register() -> None:
    """Entry point `vllm.general_plugins`; may run many times, in any process."""
    if os.environ.get(DISABLE, "0") not in ("", "0"):
        return
    compat.when_imported("vllm.plugins", _hook_plugins)
    compat.when_imported("vllm.engine.arg_utils", _hook_engine_args)
    compat.when_imported("vllm.entrypoints.cli.serve", _hook_serve_command)
    compat.when_imported("vllm.model_executor.model_loader", _register_loader)
    compat.when_imported("vllm.v1.engine.input_processor", _hook_adapter_requests)
    compat.when_imported("vllm.entrypoints.openai.models.serving", _hook_adapter_loads)
    hook_guard()
    hook_pruner()


def _hook_plugins(module: ModuleType) -> None:
    compat.wrap(module, "load_endpoint_plugins", _load_endpoint_plugins)


def _hook_engine_args(module: ModuleType) -> None:
    compat.wrap(module.EngineArgs, "add_cli_args", _add_cli_args)
    compat.wrap(module.EngineArgs, "from_cli_args", _from_cli_args)
    compat.wrap(module.EngineArgs, "create_engine_config", _create_engine_config)
    compat.wrap(module.EngineArgs, "create_model_config", _create_model_config)


def _hook_serve_command(module: ModuleType) -> None:
    compat.wrap(module.ServeSubcommand, "cmd", _serve)


def _register_loader(module: ModuleType) -> None:
    try:
        import_module("vllm_kprune.serving.loader")  # registers itself
    except ImportError as error:  # an untested vLLM; an unrelated server must not stop for it
        compat.logger.warning("kprune: load format %s is off: %s", NAME, error)


def _hook_adapter_requests(module: ModuleType) -> None:
    compat.check_adapter_requests(module, _check_adapter)


def _hook_adapter_loads(module: ModuleType) -> None:
    compat.check_adapter_loads(module, _check_adapter)


def _check_adapter(model: str, adapter: str) -> None:
    from vllm_kprune.serving.adapters import check_served_adapter

    check_served_adapter(model, adapter)


def _add_cli_args(original: Callable[..., Any], parser: argparse.ArgumentParser) -> Any:
    from vllm_kprune.serving.options import add_options

    parser = original(parser)
    add_options(parser)
    return parser


def _from_cli_args(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    _settle(args)
    return original(cls, args)


def _settle(args: argparse.Namespace) -> None:
    """Move our options to where every process of this server finds them; again is harmless.

    vLLM hands the parsed arguments to further API servers, which load plugins only while they make
    engine arguments of them: too late for `from_cli_args` to be ours there.
    """
    from vllm_kprune.serving.options import KEY, NAMED, given_options, named_plugins

    if names := named_plugins(args):
        os.environ[NAMED] = ",".join(names)
    if given := given_options(args):
        extra = dict(getattr(args, "additional_config", None) or {})
        args.additional_config = {**extra, KEY: {**extra.get(KEY, {}), **given}}
    _add_headers(args)


def _add_headers(args: argparse.Namespace) -> None:
    """Name our middleware where users name theirs; only an input pruner has something to tell."""
    from vllm_kprune.serving.options import KEY
    from vllm_kprune.serving.pruning.options import MIDDLEWARE

    ours = (getattr(args, "additional_config", None) or {}).get(KEY)
    named = getattr(args, "middleware", None)
    if isinstance(ours, dict) and ours.get("input_pruner") and named is not None:
        args.middleware = [*named, *([] if MIDDLEWARE in named else [MIDDLEWARE])]


def _create_engine_config(
    original: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any
) -> Any:
    # Earlier than the model config: vLLM first looks into the model for a speculator.
    from vllm_kprune.serving.activation import activate
    from vllm_kprune.serving.settings import share_settings

    activate(engine_args)
    config = original(engine_args, *args, **kwargs)
    if share_settings(engine_args, config).asks_for_kprune:
        from vllm_kprune.serving.guard.attach import attach_guard

        attach_guard(config)
    return config


def _create_model_config(original: Callable[..., Any], engine_args: Any) -> Any:
    from vllm_kprune.serving.activation import LOAD_FORMAT, activate

    active = activate(engine_args)
    model_config = original(engine_args)
    if active and engine_args.load_format == LOAD_FORMAT:
        compat.settle_tied_head(model_config, Path(engine_args.model_weights))
    return model_config


def _load_endpoint_plugins(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from vllm_kprune.serving.options import NAMED

    named = os.environ.get(NAMED)
    if not named:
        return original(*args, **kwargs)
    with compat.endpoint_plugins_allowed(named.split(",")):
        return original(*args, **kwargs)


def _serve(original: Callable[..., Any], args: argparse.Namespace) -> None:
    """Run `vllm serve`; a user's mistake with kprune is one line and exit code 2."""
    try:
        _settle(args)
        if _asks_for_kprune(args):
            _refuse_missing_folder(getattr(args, "model_tag", None) or args.model)
            _refuse_unfit_adapters(args)
        original(args)
    except KPruneError as error:
        _exit(str(error))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _asks_for_kprune(args):
            raise
        _exit(f"port {args.port} is in use; stop what uses it, or choose another with --port")


def _asks_for_kprune(args: argparse.Namespace) -> bool:
    from vllm_kprune.checkpoint.manifest import is_overlay
    from vllm_kprune.serving.options import given_options, named_plugins

    model = getattr(args, "model_tag", None) or args.model
    return NAME in named_plugins(args) or bool(given_options(args)) or is_overlay(model)


def _refuse_missing_folder(model: str) -> None:
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local and not Path(model).exists():
        raise KPruneError(f"model folder {model} does not exist; check the path")


def _refuse_unfit_adapters(args: argparse.Namespace) -> None:
    from vllm_kprune.checkpoint.manifest import is_overlay
    from vllm_kprune.serving.options import given_options

    model = getattr(args, "model_tag", None) or args.model
    modules = getattr(args, "lora_modules", None)
    if modules and (is_overlay(model) or "profile" in given_options(args)):
        from vllm_kprune.serving.adapters import check_static_adapters

        check_static_adapters(module.path for module in modules)


def _exit(message: str) -> NoReturn:
    sys.stderr.write(f"vllm serve: {' '.join(message.split())}\n")
    raise SystemExit(2)
