"""Write a report as JSON, and read one back, which may come from an untrusted source."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vllm_kprune.compare.report.document import SCHEMA_VERSION, Report
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.folders import new_file

__all__ = ["MOST_BYTES", "read_report", "schema", "write_report"]

MOST_BYTES = 64 << 20


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
        if path.stat().st_size > MOST_BYTES:
            raise KPruneError(
                f"report {path} is larger than {MOST_BYTES >> 20} MiB, which no report of kprune is"
            )
        # Python's parser accepts NaN and Infinity, which are not JSON.
        data = json.loads(path.read_bytes(), parse_constant=_refuse)
    except OSError as error:
        raise KPruneError(f"report {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # It is a ValueError too: "larger than" must not become "not JSON".
        if isinstance(error, KPruneError):
            raise
        raise KPruneError(
            f"report {path} is not JSON; expected a report.json that kprune wrote"
        ) from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise KPruneError(
            f"report {path} has schema version {shown(version)}, but this version of kprune reads "
            f"{SCHEMA_VERSION}; create it again with `kprune compare`"
        )
    return _checked(path, data)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


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
