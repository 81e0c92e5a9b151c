"""Reference page of the Python API: what the package exports, with signatures and docstrings."""

import inspect
import re
from typing import Any

import vllm_kprune

INTRODUCTION = """\
# Python API

Everything here is imported from `vllm_kprune` itself, is typed, and works where vLLM is not
installed. Other modules are internal and may change.
"""
EXAMPLE = """\
```python
from vllm_kprune import build_overlay, export_overlay, verify_overlay

manifest = build_overlay("MODEL", "enko", "build/enko")
print(len(manifest.kept_ids), "of", manifest.original_tokens, "tokens kept")
for law in verify_overlay("build/enko"):
    print(law.law, law.title, "holds" if law.holds else law.counter_example)
export_overlay("build/enko", "build/enko-standalone")
```

A mistake that you can correct raises `KPruneError`, which is a `ValueError`.
"""
# Classes whose fields are described on another page.
FIELDS = {"Manifest": "kprune-json.md", "Profile": "profile.md"}
_CODE_LINE = re.compile(r"^( {4}|>>> |\.\.\. )")


def python_page() -> str:
    """One section for each name in `vllm_kprune.__all__`."""
    names = [name for name in vllm_kprune.__all__ if not name.startswith("__")]
    sections = [_section(name, getattr(vllm_kprune, name)) for name in names]
    version = "`vllm_kprune.__version__` is the installed version.\n"
    return "\n".join([INTRODUCTION, version, EXAMPLE, *sections])


def _section(name: str, value: Any) -> str:
    call = f"Its fields: [{name}]({FIELDS[name]}).\n" if name in FIELDS else _signature(name, value)
    parts = [f"## {name}\n", call, markdown(inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        for member, method in _public(value):
            parts += [
                f"### {name}.{member}\n",
                _signature(member, method),
                markdown(inspect.getdoc(method) or ""),
            ]
    return "\n".join(parts)


def _public(cls: type) -> list[tuple[str, Any]]:
    """A class's own public methods, in the order of the source."""
    return [
        (name, getattr(cls, name))
        for name, member in vars(cls).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, classmethod | staticmethod))
    ]


def _signature(name: str, value: Any) -> str:
    """The call as one writes it; long ones have a line for each parameter."""
    if not callable(value):
        return f"```python\n{name}: {type(value).__name__}\n```\n"
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    returns = "" if inspect.isclass(value) else str(found).rpartition(") -> ")[2]
    returns = f" -> {returns}" if returns else ""
    lines = [_short(line) for line in _parameters(found)]
    text = f"{name}({', '.join(lines)}){returns}"
    if len(text) > 80:
        text = "\n".join([f"{name}(", *(f"    {line}," for line in lines), f"){returns}"])
    return f"```python\n{_short(text)}\n```\n"


def _parameters(signature: inspect.Signature) -> list[str]:
    lines, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.name.startswith("_") or parameter.name == "self":
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            lines.append("*")
            starred = True
        lines.append(str(parameter))
    return lines


def _short(text: str) -> str:
    """Annotations without the modules that they come from, and no addresses."""
    text = re.sub(
        r"\b(?:vllm_kprune|collections|pathlib|typing|numpy)(?:\.\w+)*\.(\w+)", r"\1", text
    )
    return re.sub(r"<factory>|<(?:[^<>]|<lambda>)* at 0x[0-9a-f]+>", "…", text)


def markdown(doc: str) -> str:
    """A docstring as Markdown: indented and doctest lines become blocks of code."""
    lines: list[str] = []
    inside = False
    for line in doc.splitlines():
        is_code = bool(_CODE_LINE.match(line)) or (inside and bool(line.strip()))
        if is_code != inside:
            lines.append("```python" if is_code else "```")
            inside = is_code
        lines.append(line.removeprefix("    ") if is_code else line)
    return "\n".join([*lines, *(["```"] if inside else [])]).strip() + "\n"
