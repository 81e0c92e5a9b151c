"""Write a report as JSON, and read one back, which may come from an untrusted source."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vllm_kprune.compare.report.document import SCHEMA_VERSION, Report
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.bounded import Limits, Unfit, parse_json, read_bytes
from vllm_kprune.storage.folders import new_file

__all__ = ["MOST_BYTES", "read_report", "schema", "write_report"]

MOST_BYTES = 64 << 20
_LIMITS = Limits(bytes=MOST_BYTES, values=4_000_000)


def write_report(report: Report, path: Path) -> None:
    """Write the report to a temporary name and rename it; `KPruneError` if that fails."""
    text = json.dumps(report.model_dump(mode="json"), ensure_ascii=False, indent=1, allow_nan=False)
    try:
        with new_file(path) as stream:
            stream.write(f"{text}\n".encode())
    except OSError as error:
        raise KPruneError(f"report {path} cannot be written: {error.strerror}") from None


def read_report(path: Path) -> Report:
    """Read a report of this schema version of at most 64 MiB; `KPruneError` for anything else."""
    try:
        data = parse_json(read_bytes(path, MOST_BYTES), _LIMITS)
    except Unfit as error:
        raise KPruneError(
            f"report {path} is not JSON: {error}; expected a report.json that kprune wrote"
        ) from None
    except KPruneError as error:
        raise KPruneError(f"report {error}") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise KPruneError(
            f"report {path} has schema version {shown(version)}, but this version of kprune reads "
            f"{SCHEMA_VERSION}; create it again with `kprune compare`"
        )
    return _checked(path, data)


def _checked(path: Path, data: dict[str, Any]) -> Report:
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise KPruneError(
            f"report {path} was not written by kprune: {shown(place)}: {first['msg']} "
            f"({error.error_count()} such errors)"
        ) from None


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `report.json`, stored in `report.schema.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
    }
