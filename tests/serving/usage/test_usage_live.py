"""Token usage of the live server of a pruned model."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from support.live_client import complete

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.demo.servers import VllmServer
from vllm_kprune.vocabulary.evidence import Source, check_usage
from vllm_kprune.vocabulary.usage import LEAST_FLOOR, TokenUsage

pytestmark = pytest.mark.server


def usage_of(server: VllmServer) -> TokenUsage:
    with urlopen(f"{server.url}/kprune/usage", timeout=60) as response:
        return TokenUsage.model_validate_json(response.read())


def ask(server: VllmServer, token: int, n: int) -> None:
    complete(server, "1, 2,", max_tokens=2, temperature=1.0, allowed_token_ids=[token], n=n)


def test_answers_are_told_in_ids_of_the_original_from_the_floor_on(
    pruned: VllmServer, overlay: Path
) -> None:
    manifest = load_manifest(overlay)
    # Tokens that no other test makes this server answer with.
    often, rare = 50_000, 50_001
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ask(pruned, often, n=1 + n % 2), range(2 * LEAST_FLOOR)))
        list(pool.map(lambda _: ask(pruned, rare, n=4), range(5)))
    usage = usage_of(pruned)
    assert usage.objection() is None
    at = usage.ids.index(manifest.kept_ids[often])
    # At least those of the first releases; the last requests may not be told yet.
    assert LEAST_FLOOR <= usage.in_requests[at] <= 2 * LEAST_FLOOR
    assert usage.in_requests[at] < usage.occurrences[at]
    assert manifest.kept_ids[rare] not in usage.ids
    base = Path(manifest.base.path)
    check_usage([Source("usage", "", lambda: iter(()), usage=usage)], base)


def test_the_status_tells_that_answers_are_counted(
    pruned: VllmServer, original: VllmServer
) -> None:
    with urlopen(f"{pruned.url}/kprune", timeout=60) as response:
        assert json.load(response)["usage"] == {"active": True, "floor": LEAST_FLOOR}
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{original.url}/kprune/usage", timeout=60)
