"""Reference pages of the command line and of the options of servers and requests."""

import argparse
import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args

import typer

from vllm_kprune.cli.app import app
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.guard.policy import OPTIONS as GUARD_NAMES
from vllm_kprune.guard.policy import SCRIPTS
from vllm_kprune.prompt.options import OPTIONS as PRUNE_NAMES
from vllm_kprune.serving.options import ServingOptions, add_options

EXIT_CODES = """\
| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a check failed: a law is broken, a `--fail-on` condition holds |
| 2 | a mistake that you can correct; one line says which |
| 3 | only a part was done; the same command resumes |
| 130 | Ctrl-C |
"""

# Of a request's options: what they take and do. The server's option of the same name, where there
# is one, is their default.
REQUEST_HELP: Mapping[str, tuple[str, str]] = {
    "languages": ('`"ko,en"` or a list; `"off"`', "languages of the answer (ISO 639-1)"),
    "scripts": ('`"Hangul,Latin"` or a list', "Unicode scripts, instead of languages or with them"),
    "hanja": ("`none`, `ksx1001`, `all`", "Han characters that are allowed as well"),
    "allow": ("up to 256 characters", "single characters that are allowed as well"),
    "digits": ("true or false", "false refuses digits"),
    "punctuation": ("true or false", "false refuses punctuation and symbols"),
    "emoji": ("true or false", "false refuses emoji"),
    "keep": ('0 < share ≤ 1; `"off"`', "share of the tokens to keep"),
    "target_tokens": ("1 to 10,000,000", "the most tokens to keep, instead of a share"),
    "unit": ("`token` or `word`", "what is kept or dropped as a whole"),
    "scorer": ("`rarity`, `question`, `attention`, `random`", "how tokens are ranked"),
    "force_tokens": ("a text or a list, up to 64", "texts that stay wherever they occur"),
    "force_digits": ("true or false", "every token with a digit stays"),
    "force_first": ("number of tokens", "the first tokens of each part stay"),
    "force_last": ("number of tokens", "the last tokens of each part stay"),
    "min_tokens": ("number of tokens", "shorter requests are left alone; 0 prunes any length"),
    "roles": ('`"user,assistant"` or a list', "roles whose earlier messages are pruned"),
    "marks": ("true or false", "false treats `<kprune>` as plain text"),
    "strict": ("true or false", "a failure of the pruner fails the request"),
}


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
    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line\n\n`kprune COMMAND --help` shows the same on your terminal.\n",
        EXIT_CODES,
        *(_command(name, group.commands[name]) for name in sorted(group.commands)),
    ]
    return "\n".join(parts)


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

### Scripts

`kprune_scripts` and `--kprune-scripts` take these names, in upper or lower case:

{scripts}.
"""


def server_page() -> str:
    """The `--kprune-*` options as argparse has them, and the keys of `vllm_xargs`."""
    return SERVER_PAGE.format(
        server="\n".join(_server_rows()),
        guard="\n".join(_request_rows(GUARD_NAMES)),
        pruner="\n".join(_request_rows(PRUNE_NAMES)),
        scripts=", ".join(f"`{name}`" for name in SCRIPTS),
    )


def serve_parser() -> argparse.ArgumentParser:
    """A parser that knows the options that kprune adds to `vllm serve`, and no others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_options(parser)
    return parser


def _server_rows() -> Iterator[str]:
    yield "| option | meaning |"
    yield "|---|---|"
    for action in serve_parser()._actions:
        spelled = f"{action.option_strings[0]} {action.metavar or ''}".rstrip()
        yield f"| {cell(code(spelled))} | {cell(action.help or '')} |"


def _request_rows(names: Mapping[str, Any]) -> Iterator[str]:
    yield "| key in `vllm_xargs` | value | meaning | server option |"
    yield "|---|---|---|---|"
    of_server = {field.name for field in fields(ServingOptions)}
    for name in names:
        key = {"roles": "prune_roles"}.get(name, name)
        option = {"strict": "pruner_strict"}.get(key, key)
        flag = f"`--kprune-{option.replace('_', '-')}`" if option in of_server else ""
        values, meaning = REQUEST_HELP[name]
        yield f"| `kprune_{key}` | {cell(values)} | {cell(meaning)} | {flag} |"
