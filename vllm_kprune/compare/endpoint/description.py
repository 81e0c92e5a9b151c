"""How an endpoint describes itself, for the report: versions, profile, and missing abilities."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_kprune.compare.endpoint.client import Client

__all__ = ["checked_description", "describe_endpoint", "machine"]

_MAX_CHARACTERS = 400  # of one value


async def describe_endpoint(client: Client) -> dict[str, str]:
    """What the endpoint says about itself, and what it cannot do, by name."""
    description: dict[str, str] = {}
    if client.abilities.can("kprune"):
        description |= _of_kprune(await client.get("/kprune"))
    # vLLM's path; other servers answer with an error or something else.
    version = await client.get("/version")
    if isinstance(version, dict) and isinstance(version.get("version"), str):
        description["vllm"] = version["version"]
    if client.endpoint.is_local:
        description["hardware"] = machine()
    for name, reason in client.abilities.missing.items():
        description[f"without {name}"] = reason
    return checked_description(description)


def machine() -> str:
    """The processor, the number of cores and the GPUs of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [
        line.partition(":")[2].strip()
        for path in gpus
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("Model")
    ]
    return ", ".join([f"{name}, {os.cpu_count()} cores", *models])


def checked_description(value: Any) -> dict[str, str]:
    """A description as short texts, whatever a journal or a server put into it."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {str(name): str(text)[:_MAX_CHARACTERS] for name, text in items}


def _of_kprune(status: Any) -> dict[str, str]:
    if not isinstance(status, Mapping):
        return {}
    description = {"pruned": "yes" if status.get("active") else "no"}
    profile, tokens = status.get("profile"), status.get("tokens")
    if isinstance(profile, Mapping):
        description["profile"] = str(profile.get("name"))
    if isinstance(tokens, Mapping):
        description["tokens"] = f"{tokens.get('kept')} of {tokens.get('original')}"
    if isinstance(status.get("fingerprint"), str):
        description["fingerprint"] = status["fingerprint"]
    return description
