"""kprune on the command line of `vllm serve`: its options, and its mistakes as one line.

Options move into `additional_config`, where every process of the server finds them (see `options`).
A user's mistake ends the command with one line and exit code 2 before anything slow begins.
"""

import argparse
import errno
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vllm_kprune.errors import KPruneError, nearest, shown
from vllm_kprune.serving.compat import features, seams_engine
from vllm_kprune.serving.compat.installer import Wraps, require

if TYPE_CHECKING:
    from vllm_kprune.serving.settings import ServerSettings

__all__ = ["command_wraps", "named_plugins", "refuse_flags_in_vain"]

_PLUGIN_GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")


def command_wraps() -> Wraps:
    """What goes around vLLM's own reading of the command line."""
    return {
        seams_engine.ADD_CLI_ARGS: _add_cli_args,
        seams_engine.FROM_CLI_ARGS: _from_cli_args,
        seams_engine.SERVE_COMMAND: _serve,
    }


def refuse_flags_in_vain() -> None:
    """End the command if it has `--kprune-*` flags that this vLLM gives us no way to read.

    vLLM itself would say no more than that it does not know them.
    """
    flags = [flag for flag in sys.argv[1:] if flag.startswith("--kprune-")]
    # Not in children: a process that was spawned has the flags of its parent in `sys.argv`.
    if flags and multiprocessing.parent_process() is None:
        with _mistakes_as_one_line():
            require([features.COMMAND_LINE])


def _add_cli_args(
    original: Callable[..., Any], parser: argparse.ArgumentParser, *rest: Any, **how: Any
) -> Any:
    from vllm_kprune.serving.options import add_options

    parser = original(parser, *rest, **how)
    add_options(parser)
    return parser


def _from_cli_args(
    original: Callable[..., Any], cls: type, args: argparse.Namespace, *rest: Any, **how: Any
) -> Any:
    _settle(args)
    return original(cls, args, *rest, **how)


def _settle(args: argparse.Namespace) -> None:
    """Move our options to where every process of this server finds them; again is harmless.

    vLLM hands the parsed arguments to further API servers. These load plugins only while they make
    engine arguments of them, which is too late for `from_cli_args` to be ours there.
    """
    from vllm_kprune.serving.environment import NAMED
    from vllm_kprune.serving.guard.markers import remember_serving
    from vllm_kprune.serving.options import KEY, given_options

    remember_serving(args)
    if names := named_plugins(args):
        os.environ[NAMED] = ",".join(names)
    if given := given_options(args):
        extra = dict(getattr(args, "additional_config", None) or {})
        ours = extra.get(KEY) or {}
        if not isinstance(ours, dict):
            raise KPruneError(
                f"additional_config[{KEY!r}] is {shown(ours)}, expected options by their names"
            )
        # A flag wins over the same option in `--additional-config`.
        args.additional_config = {**extra, KEY: {**ours, **given}}
    _add_headers(args)


def named_plugins(args: argparse.Namespace) -> tuple[str, ...]:
    """The plugins named with `--plugin`; `KPruneError` for one that is not installed."""
    given = getattr(args, "plugin", None) or []
    names = tuple(name.strip() for item in given for name in item.split(","))
    installed = {point.name for group in _PLUGIN_GROUPS for point in entry_points(group=group)}
    for name in names:
        if name not in installed:
            raise KPruneError(f"--plugin: no vLLM plugin '{name}'; {nearest(name, installed)}")
    return names


def _add_headers(args: argparse.Namespace) -> None:
    """Name our middleware where users name theirs; only an input pruner sends headers."""
    from vllm_kprune.serving.options import KEY
    from vllm_kprune.serving.pruning.options import MIDDLEWARE

    ours = (getattr(args, "additional_config", None) or {}).get(KEY)
    named = getattr(args, "middleware", None)
    # None: this vLLM has no `--middleware` (seam `MIDDLEWARE`). Nothing is checked here; a wrong
    # value is left to `_settings`, which names it.
    if isinstance(ours, dict) and ours.get("input_pruner") and named is not None:
        args.middleware = [*named, *([] if MIDDLEWARE in named else [MIDDLEWARE])]


def _serve(original: Callable[..., Any], args: argparse.Namespace, *rest: Any, **how: Any) -> None:
    """Run `vllm serve`; a user's mistake with kprune is one line and exit code 2."""
    try:
        with _mistakes_as_one_line():
            _settle(args)
            settings = _settings(args)
            if settings.asks_for_kprune:
                _refuse_missing_folder(_model(args))
                _require_asked(args, settings)
                _refuse_unfit_adapters(args, settings)
            original(args, *rest, **how)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _settings(args).asks_for_kprune:
            raise
        _exit(f"port {args.port} is in use; stop what uses it, or choose another with --port")


def _model(args: argparse.Namespace) -> str:
    model: str = getattr(args, "model_tag", None) or args.model
    return model


def _settings(args: argparse.Namespace) -> "ServerSettings":
    """What this server asked for, once its options are where `_settle` puts them."""
    from vllm_kprune.serving.settings import resolve_settings

    return resolve_settings(getattr(args, "additional_config", None), _model(args))


def _require_asked(args: argparse.Namespace, settings: "ServerSettings") -> None:
    """What this server asked for must be possible with this vLLM."""
    from vllm_kprune.serving.asked import require_asked

    require_asked(settings, lora=bool(getattr(args, "enable_lora", False)), front_end="server")
    require([features.COMMAND_LINE])


def _refuse_missing_folder(model: str) -> None:
    # A hub id has one slash at most: "google/gemma-3-270m".
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_local and not Path(model).exists():
        raise KPruneError(f"model folder {model} does not exist; check the path")


def _refuse_unfit_adapters(args: argparse.Namespace, settings: "ServerSettings") -> None:
    modules = getattr(args, "lora_modules", None)
    if modules and (settings.overlay or settings.vocabulary.profile):
        from vllm_kprune.serving.adapters import check_static_adapters

        check_static_adapters(module.path for module in modules)


@contextmanager
def _mistakes_as_one_line() -> Iterator[None]:
    try:
        yield
    except KPruneError as error:
        _exit(str(error))


def _exit(message: str) -> NoReturn:
    # One line even if the message quotes a text with line breaks.
    sys.stderr.write(f"vllm serve: {' '.join(message.split())}\n")
    raise SystemExit(2)
