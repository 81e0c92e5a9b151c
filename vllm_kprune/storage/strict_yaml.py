"""Read a small YAML file strictly: it means what people see in it.

YAML can fill the memory with a few lines (aliases), and it surprises: the last of two equal keys
wins, `1:59` is a number of base 60, `010` is 8, and there are tags and merge keys. Here, aliases,
tags and equal keys are refused. Numbers are decimal; true, false, yes, no, on and off are switches;
null, ~ and an empty value mean none. Everything else is a text, dates too.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from vllm_kprune.errors import shown
from vllm_kprune.storage.bounded import Unfit, read_bytes

__all__ = ["read_yaml"]

_MOST_BYTES = 64 << 10
_MOST_DEPTH = 16
_MOST_BRACKETS = 500
_MOST_REASON = 200
_TAG = "tag:yaml.org,2002:"
_MOST_DIGITS = 18
# Type -> how it is spelled, and the characters that it can begin with.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"(?i:true|false|yes|no|on|off)", list("tTfFyYnNoO")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:[0-9]{1,20}\.[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?"
        r"|[-+]?[0-9]{1,20}[eE][-+]?[0-9]{1,3}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


def read_yaml(path: Path) -> Any:
    """The value in a YAML file of at most 64 KiB.

    Raises `Unfit`, whose message is the reason alone, for anything that is not read; `KPruneError`
    if there is no such file, or it is larger.
    """
    data = read_bytes(path, _MOST_BYTES)
    # PyYAML's time grows with the square of the brackets that are open at once.
    if data.count(b"[") + data.count(b"{") > _MOST_BRACKETS:
        raise Unfit(f"more than {_MOST_BRACKETS} opening brackets")
    try:
        return yaml.load(data.decode(), _Loader)
    except Unfit:
        raise
    except (ValueError, yaml.YAMLError) as error:
        # PyYAML quotes the place in several lines.
        raise Unfit(" ".join(str(error).split())[:_MOST_REASON]) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without what its module docstring names."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        # An alias has the anchor that it stands for.
        if event.anchor is not None:
            raise Unfit(f"anchors and aliases are not allowed (line {_line(event)})")
        if getattr(event, "tag", None) is not None:
            raise Unfit(f"tags such as {shown(event.tag)} are not allowed")
        if self.depth == _MOST_DEPTH:
            raise Unfit(f"nested more than {_MOST_DEPTH} levels deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            twice = next(name for n, name in enumerate(names) if name in names[:n])
            raise Unfit(f"the key {shown(twice)} occurs twice")
        # Not that of `SafeLoader`, which merges what stands under `<<`.
        return yaml.constructor.BaseConstructor.construct_mapping(self, node, deep=deep)


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _construct_int(loader: Any, node: Any) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    if len(text) > _MOST_DIGITS + 1:
        raise Unfit(f"a number of {len(text):,} digits (line {_line(node)})")
    return int(text)


for _kind, (_spelling, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_spelling})\Z"), _first)
_Loader.add_constructor(f"{_TAG}int", _construct_int)
