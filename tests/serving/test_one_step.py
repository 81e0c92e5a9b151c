"""`vllm serve MODEL --kprune-profile …` in one step: from the hub cache, with two API servers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from urllib.request import urlopen

import pytest
from openai import BadRequestError
from support.live_client import complete, model_name
from support.tiny_models import ENVIRONMENT

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.demo.servers import VllmServer, log_tail
from vllm_kprune.storage.cache import cache_dir

pytestmark = [pytest.mark.server, pytest.mark.slow]

NAME = "acme/smollm2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = """\
plugin: kprune
kprune-profile: enko
kprune-languages: ko,en
kprune-input-pruner: self
kprune-keep: 0.6
kprune-min-tokens: 30
revision: v1.0
api-server-count: 2
enforce-eager: true
max-model-len: 1024
dtype: float32
"""


def save_in_hub_cache(model: Path, home: Path) -> None:
    """Lay out a model folder as `huggingface_hub` stores its downloads."""
    repository = home / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "v1.0").write_text(COMMIT)
    for number, file in enumerate(sorted(model.iterdir())):
        if file.is_file():
            blob = repository / "blobs" / f"{number:064x}"
            if file.suffix == ".safetensors":
                blob.symlink_to(file.resolve())
            else:
                copyfile(file, blob)
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)


@pytest.fixture(scope="module")
def environment(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Offline, with a hub cache that holds revision v1.0 only, and an empty kprune cache."""
    home = tmp_path_factory.mktemp("hub-home")
    save_in_hub_cache(smollm2, home)
    cache = tmp_path_factory.mktemp("kprune-cache")
    return {**ENVIRONMENT, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "KPRUNE_CACHE": str(cache)}


_BUILD = """
import sys
from vllm_kprune.checkpoint.cached import cached_overlay
from vllm_kprune.profile import load_profile
print(cached_overlay(sys.argv[1], load_profile("enko"), revision="v1.0").folder)
"""


def started(server: VllmServer) -> int:
    """How many API servers have started, by their log."""
    return log_tail(server.log, 10_000).count("Application startup complete")


@pytest.fixture(scope="module")
def served(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmServer, Path]]:
    """The model by its hub name behind two API servers, and the folder of its overlay.

    The server and another process, which prints the folder, build the overlay at the same time.
    """
    folder = tmp_path_factory.mktemp("one-step")
    config, log = folder / "serve.yaml", folder / "server.log"
    config.write_text(CONFIG)
    server = VllmServer(NAME, ["--config", str(config)], environment=environment, log=log)
    server.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, NAME],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        server.wait_ready()
        while started(server) < 2:  # ready is when one of them is
            time.sleep(0.2)
        yield server, Path(done.stdout.splitlines()[-1])
    finally:
        server.stop()


@pytest.fixture
def server(served: tuple[VllmServer, Path]) -> VllmServer:
    """The server."""
    return served[0]


def test_a_server_and_another_process_that_build_the_same_overlay_at_once_share_it(
    served: tuple[VllmServer, Path],
) -> None:
    server, built = served
    load_manifest(built).check_files(built)
    left = [p.name for p in built.parent.iterdir() if not p.name.endswith(".lock")]
    assert left == [built.name]
    with urlopen(f"{server.url}/kprune", timeout=30) as response:
        assert json.loads(response.read())["fingerprint"] == load_manifest(built).fingerprint


def test_the_model_answers_under_the_name_that_was_given(server: VllmServer) -> None:
    assert model_name(server) == NAME
    assert complete(server, "대한민국의 수도는").model == NAME


def test_both_api_servers_report_the_same_and_the_revision(
    served: tuple[VllmServer, Path],
) -> None:
    server, built = served
    answers = []
    for _ in range(12):  # the kernel spreads new connections over both
        with urlopen(f"{server.url}/kprune", timeout=30) as response:
            answers.append(json.loads(response.read()))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["active"] is True
    assert answers[0]["base"] == {"model": NAME, "revision": "v1.0"}
    assert answers[0]["guard"]["default"]["languages"] == ["en", "ko"]
    assert answers[0]["fingerprint"] == load_manifest(built).fingerprint
    assert str(cache_dir()) not in json.dumps(answers)
    assert started(server) == 2


def test_log_probabilities_are_a_distribution(server: VllmServer) -> None:
    logprobs = complete(server, "The capital of Korea is", logprobs=5).choices[0].logprobs
    for token, value, best in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert best[token] == value == max(best.values())
        assert value <= 0


@pytest.mark.server
def test_both_api_servers_count_every_guarded_request_once(server: VllmServer) -> None:
    def scrape() -> dict[str, float]:
        with urlopen(f"{server.url}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        counts = (line.split() for line in lines if line.startswith("kprune_guard_requests_total"))
        return {name: float(number) for name, number in counts}

    name = 'kprune_guard_requests_total{languages="en+ko"}'
    before = scrape().get(name, 0)
    for _ in range(6):  # new connections: both servers get some
        complete(server, "대한민국의 수도는", max_tokens=2)
        complete(server, "대한민국의 수도는", max_tokens=2, vllm_xargs={"kprune_languages": "off"})
    counted = [scrape() for _ in range(12)]
    assert all(count == counted[0] for count in counted)
    assert counted[0][name] == before + 6


@pytest.mark.server
def test_beams_that_the_default_guard_would_not_reach_are_refused(server: VllmServer) -> None:
    with pytest.raises(BadRequestError, match="--logprobs-mode processed_logprobs"):
        complete(server, "대한민국의 수도는", use_beam_search=True, n=2)


@pytest.mark.server
def test_both_api_servers_prune_by_default_and_count_every_prompt_once(server: VllmServer) -> None:
    def scrape() -> dict[str, float]:
        with urlopen(f"{server.url}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        found = (line.rsplit(" ", 1) for line in lines if line.startswith("kprune_prune_"))
        return {name: float(number) for name, number in found if "_created" not in name}

    pruned = 'kprune_prune_requests_total{outcome="pruned",reason=""}'
    skipped = 'kprune_prune_requests_total{outcome="skipped",reason="below_break_even"}'
    before, seen = scrape(), 0
    for number in range(6):  # new connections: both servers get some
        text = f"{number} The quick brown fox jumps over the lazy dog by the river. " * 4
        seen += complete(server, text, max_tokens=1).usage.prompt_tokens
        complete(server, text, max_tokens=1, vllm_xargs={"kprune_keep": "off"})
        complete(server, "Too short to prune.", max_tokens=1)
    counted = [scrape() for _ in range(12)]
    assert all(count == counted[0] for count in counted)

    def counts(name: str) -> float:
        return counted[0][name] - before.get(name, 0)

    assert (counts(pruned), counts(skipped)) == (6, 6)
    assert counts("kprune_prune_kept_tokens_total") == seen
    assert counts("kprune_prune_original_tokens_total") > seen / 0.75
    assert counts("kprune_prune_seconds_count") == counts("kprune_prune_keep_rate_count") == 6
