"""Reference pages of the command line and of the options of servers and requests."""

import argparse
import html
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import typer

from vllm_kprune.cli.app import app
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.guard.policy import SCRIPTS
from vllm_kprune.options import Option, OptionRow, reference_rows
from vllm_kprune.prompt.options import prune_options
from vllm_kprune.serving.options import FLAG_PREFIX, PREFIX, add_options, flag, server_options
from vllm_kprune.serving.request_options import GUARD_OPTIONS, HEAD_OPTIONS

EXIT_CODES = """\
| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a check failed: a law is broken, a `--fail-on` condition holds |
| 2 | a mistake that you can correct; one line says which |
| 3 | only a part was done; the same command resumes |
| 130 | Ctrl-C |
"""

_CODE = re.compile(r"(`[^`]*`)|(</?(?!code>)\w[^<>]*>)")


def cell(text: str) -> str:
    """Text for a table's cell: one line; what looks like a tag is code."""
    line = _CODE.sub(lambda found: code((found[1] or found[2]).strip("`")), " ".join(text.split()))
    return line.replace("|", "&#124;")


def code(text: str) -> str:
    """Inline code. With a pipe, code hosts and the site's generator agree on HTML alone."""
    return f"<code>{html.escape(text, quote=False)}</code>" if "|" in text else f"`{text}`"


# ---- kprune ------------------------------------------------------------------------------------


def cli_page() -> str:
    """Every command of `kprune` with its options, read from Typer."""
    parts = [
        "# Command line\n\n`kprune COMMAND --help` shows the same on your terminal.\n",
        EXIT_CODES,
        *(_command(name, command) for name, command in _commands(typer.main.get_command(app))),
    ]
    return "\n".join(parts)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its name, those of a group (`kprune analyze masks`) after one another."""
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument" and not p.hidden]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join(
        ["kprune", name, *(_usage(p) for p in arguments), "[OPTIONS]" if options else ""]
    )
    parts = [f"## kprune {name}\n", _prose(command.help), f"```text\n{usage.strip()}\n```\n"]
    if arguments:
        parts.append(_table("argument", [(f"`{_named(p)}`", _described(p)) for p in arguments]))
    for panel in dict.fromkeys(p.rich_help_panel for p in options):
        heading = f"**{panel}**\n\n" if panel else ""
        rows = [(_spelled(p), _described(p)) for p in options if p.rich_help_panel == panel]
        parts.append(heading + _table("option", rows))
    if name == "compare":
        parts.append(_suites())
    if command.epilog:
        parts.append(_prose(command.epilog))
    return "\n".join(parts)


_GATES = """
A condition of `--fail-on` names a metric. A suite's name stands for the first of its metrics. `*`
and `?` stand for what differs: a language, a number of requests, a share.
"""


def _suites() -> str:
    lines = ["| suite | what it measures | metrics |", "|---|---|---|"]
    for suite in SUITES.values():
        metrics = ", ".join(f"`{name}`" for name in suite.metrics or ())
        lines.append(f"| `{suite.name}` | {cell(suite.help)} | {cell(metrics)} |")
    return "\n".join(lines) + "\n" + _GATES


def _named(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _usage(argument: Any) -> str:
    return _named(argument) if argument.required else f"[{_named(argument)}]"


def _spelled(option: Any) -> str:
    *short, name = sorted(option.opts, key=len)
    given = "" if option.is_flag else f" {_kind(option)}"
    return ", ".join(code(text) for text in (*short, name + given))


def _kind(option: Any) -> str:
    if option.metavar:
        return str(option.metavar)
    annotation = option.type_descriptor.annotation
    inner = next(iter(get_args(annotation)), annotation)
    return {"int": "N", "float": "X", "Path": "PATH", "str": "TEXT"}.get(
        getattr(inner, "__name__", ""), "TEXT"
    )


def _described(parameter: Any) -> str:
    """Help, bounds, whether it repeats, and the default."""
    text = cell(parameter.help or "")
    if parameter.min is not None or parameter.max is not None:
        text += f" From {parameter.min}" if parameter.min is not None else ""
        text += f" to {parameter.max}." if parameter.max is not None else "."
    if getattr(parameter, "secondary_opts", None):
        text += f" The opposite is `{parameter.secondary_opts[0]}`."
    if parameter.required:
        return text + " Required."
    default = parameter.default
    if isinstance(parameter.show_default, str):  # the default in words
        default = parameter.show_default
    shown = not (default is None or default is False or default == [] or callable(default))
    return text + (f" Default: `{default}`." if shown else "")


def _table(first: str, rows: list[tuple[str, str]]) -> str:
    body = (f"| {cell(a)} | {cell(b)} |" for a, b in rows)
    lines = [f"| {first} | meaning |", "|---|---|", *body]
    return "\n".join(lines) + "\n"


def _prose(text: str | None) -> str:
    """A docstring as Markdown: Typer's marks for text that is not reflowed are taken out."""
    return (text or "").replace("\b", "").strip() + "\n"


# ---- vllm serve and requests -------------------------------------------------------------------

SERVER_PAGE = """\
# Server and request options

## Server options

Give these to `vllm serve`, or as keys of its `--config` YAML file without the two dashes.
`vllm serve --help=kprune` shows them on your terminal. In Python, the same names without the
prefix `kprune_` go into `additional_config`:

```python
LLM(MODEL, additional_config={{"kprune": {{"languages": "ko,en"}}}})
```

{server}

## Request options

Give these in the field `vllm_xargs` of a request, or in `SamplingParams.extra_args` in Python.
What a request does not give is taken from the server's option in the last column. An unknown key
that begins with `kprune_` is answered with HTTP 400 and the known names.

### Language guard

A request that gives languages or scripts replaces both of the server's.

{guard}

### Input pruning

A request that gives `kprune_keep` or `kprune_target_tokens` replaces both of the server's.

{pruner}

### LM head

{head}

### Scripts

`kprune_scripts` and `--kprune-scripts` take these names, in upper or lower case:

{scripts}.
"""


def server_page() -> str:
    """The `--kprune-*` options, and the keys of `vllm_xargs`."""
    return SERVER_PAGE.format(
        server="\n".join(_server_rows()),
        guard="\n".join(_request_rows(GUARD_OPTIONS)),
        pruner="\n".join(_request_rows(prune_options("request"))),
        head="\n".join(_request_rows(HEAD_OPTIONS)),
        scripts=", ".join(f"`{name}`" for name in SCRIPTS),
    )


def serve_parser() -> argparse.ArgumentParser:
    """A parser that knows the options that kprune adds to `vllm serve`, and no others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_options(parser)
    return parser


def option_cells(row: OptionRow) -> str:
    """What it takes, its default, and its help."""
    default = code(row.default) if row.default else ""
    return f"{cell(row.bounds)} | {default} | {cell(row.help)}"


def _server_rows() -> Iterator[str]:
    yield "| option | value | default | meaning |"
    yield "|---|---|---|---|"
    plugin = serve_parser()._option_string_actions["--plugin"]
    yield f"| `--plugin` | a name | | {cell(plugin.help or '')} |"
    for row in reference_rows(server_options(), form="server", prefix=FLAG_PREFIX):
        yield f"| {code(row.flags[0])} | {option_cells(row)} |"


def _request_rows(options: Iterable[Option]) -> Iterator[str]:
    yield "| key in `vllm_xargs` | value | default | meaning | server option |"
    yield "|---|---|---|---|---|"
    for one in options:
        (row,) = reference_rows([one], form="request", prefix=PREFIX)
        of_server = one.name_in("server")
        default = code(flag(of_server)) if of_server else ""
        yield f"| {code(row.flags[0])} | {option_cells(row)} | {default} |"
