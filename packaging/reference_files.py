"""Reference pages of files that kprune reads and writes, from their pydantic models and schema."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from reference_options import cell, code, option_cells

import vllm_kprune
from vllm_kprune.checkpoint.manifest import BaseReference, Evidence, Manifest
from vllm_kprune.options import options_of, reference_rows
from vllm_kprune.profile import LANGUAGES, Profile, load_profile, shipped_profiles
from vllm_kprune.vocabulary.selection import REASONS

_ANY = "JsonValue"
# Where a type is described, if not under a heading of its own name.
_PLACES = {"Profile": "profile.md", "BaseReference": "#base"}
SCHEMA = Path(vllm_kprune.__file__).parent / "compare" / "report" / "report.schema.json"
PROFILE_PAGE = """\
# Profile YAML

A profile says which languages a pruned vocabulary serves. Unknown keys are errors that name the
nearest known key. [Choosing a profile](../profiles.md) explains what to choose.

## Keys

{keys}

Give at most one of `coverage`, `min_count`, `target_size` and `max_extra_tokens`.

## Shipped profiles

{shipped}

## Languages

{languages}
"""
MANIFEST_PAGE = """\
# kprune.json

The manifest of an overlay: what it was built from, what it keeps, and the proof that neither
changed. `kprune export` writes the same content as `kprune-export.json`, for people; no server
reads that one.

Servers treat the file as hostile: it is at most 64 MiB, lengths are checked before contents, every
field is checked, unknown fields are refused, and file names cannot leave their folder.
`fingerprint` is the digest of all other fields; an edited file is refused.

## Manifest

{manifest}

- Position in `kept_ids` is the new token id; the value is the original one.
- `reasons` has one letter for each kept id: {reasons}.
- Kept ids at or above `original_rows` have no embedding row, before or after.
- A folder made by `kprune tokenizer` has no `family`, no rows and no `vocabulary_tensors`.

## base

{base}

## evidence

{evidence}
"""


def profile_page() -> str:
    """Keys of a profile, the shipped ones, and the languages."""
    shipped = (load_profile(name) for name in shipped_profiles())
    return PROFILE_PAGE.format(
        keys="\n".join(_profile_rows()),
        shipped="\n".join(
            [
                "| name | languages | description |",
                "|---|---|---|",
                *(
                    f"| `{p.name}` | {', '.join(p.languages) or 'all'} | {cell(p.description)} |"
                    for p in shipped
                ),
            ]
        ),
        languages="\n".join(
            [
                "| code | language | scripts | word list |",
                "|---|---|---|---|",
                *(
                    f"| `{code}` | {item.name} | {', '.join(item.scripts)} | "
                    f"{'yes' if item.wordlist else 'no'} |"
                    for code, item in LANGUAGES.items()
                ),
            ]
        ),
    )


def _profile_rows() -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for row in reference_rows(options_of(Profile, "profile"), form="profile", prefix=""):
        yield f"| {code(row.name)} | {option_cells(row)} |"


def manifest_page() -> str:
    """Fields of `kprune.json`."""
    return MANIFEST_PAGE.format(
        manifest="\n".join(_model_rows(Manifest)),
        base="\n".join(_model_rows(BaseReference)),
        evidence="\n".join(_model_rows(Evidence)),
        reasons=", ".join(f"`{letter}` {name}" for letter, name in REASONS.items()),
    )


def _model_rows(model: type[BaseModel]) -> Iterator[str]:
    return iter(_schema_rows(model.model_json_schema()))


def _default(value: Any) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


def _type(item: Mapping[str, Any]) -> str:
    """A JSON schema's type in words.

    >>> _type({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]})
    'list of string, or null'
    """
    if "$ref" in item:
        name = item["$ref"].rpartition("/")[2]
        return f"[{name}]({_PLACES.get(name, '#' + name.lower())})" if name != _ANY else "any JSON"
    if "anyOf" in item:
        kinds = [_type(one) for one in item["anyOf"]]
        return ", or ".join(dict.fromkeys(kinds))
    if "enum" in item:
        return ", ".join(f"`{value}`" for value in item["enum"])
    if "const" in item:
        return f"`{json.dumps(item['const'])}`"
    if item.get("type") == "array":
        return f"list of {_type(item['items'])}" if "items" in item else "list"
    if item.get("type") == "object" and isinstance(item.get("additionalProperties"), dict):
        return f"object of {_type(item['additionalProperties'])}"
    return str(item.get("type", "any JSON"))


def report_page() -> str:
    """The parts of `report.json`, from the JSON Schema that the package ships."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    parts = [
        "# report.json\n",
        "`kprune compare` and `kprune demo` write this file. The package ships its JSON Schema as\n"
        "`vllm_kprune/compare/report/report.schema.json`. `schema_version` grows when a field\n"
        "changes its meaning; other versions are refused when a report is read.\n",
        "## Report\n",
        *_schema_rows(schema),
    ]
    for name, item in sorted(schema["$defs"].items()):
        if item.get("properties"):
            parts += [f"\n## {name}\n", f"{cell(item.get('description', ''))}\n"]
            parts += _schema_rows(item)
    return "\n".join(parts) + "\n"


def _schema_rows(item: Mapping[str, Any]) -> list[str]:
    rows = ["| field | type | default |", "|---|---|---|"]
    for name, value in item["properties"].items():
        required = name in item.get("required", ())
        default = "required" if required else _default(value.get("default"))
        rows.append(f"| `{name}` | {_type(value)} | {default} |")
    return rows
