"""What an endpoint tells about itself, for the report: versions, profile, what it cannot do."""

from collections.abc import Mapping
from typing import Any

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.journal import Journal

__all__ = ["ask_facts", "kept_facts"]

_MAX_FACT = 400  # characters


async def ask_facts(client: Client) -> dict[str, str]:
    """What it is, in its own words, and what it cannot do."""
    facts: dict[str, str] = {}
    if client.abilities.can("kprune"):
        facts |= _of_kprune(await client.get("/kprune"))
    version = await client.get("/version")
    if isinstance(version, dict) and isinstance(version.get("version"), str):
        facts["vllm"] = version["version"]
    for name, reason in client.abilities.missing.items():
        facts[f"without {name}"] = reason
    return {name: fact[:_MAX_FACT] for name, fact in facts.items()}


def kept_facts(journal: Journal, name: str) -> dict[str, str]:
    """What `ask_facts` found when the run began: a server that died since tells nothing."""
    told = journal.get("endpoints", f"facts of {name}")
    items = told.items() if isinstance(told, dict) else ()
    return {str(key): str(value)[:_MAX_FACT] for key, value in items}


def _of_kprune(status: Any) -> dict[str, str]:
    if not isinstance(status, Mapping):
        return {}
    facts = {"pruned": "yes" if status.get("active") else "no"}
    profile, tokens = status.get("profile"), status.get("tokens")
    if isinstance(profile, Mapping):
        facts["profile"] = str(profile.get("name"))
    if isinstance(tokens, Mapping):
        facts["tokens"] = f"{tokens.get('kept')} of {tokens.get('original')}"
    if isinstance(status.get("fingerprint"), str):
        facts["fingerprint"] = status["fingerprint"]
    return facts
