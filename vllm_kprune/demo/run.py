"""The main job, shown: one model served twice, whole and pruned, on one machine, and compared.

`prepare` finds or makes everything that is needed, `compare_demo` asks both servers the same and
compares, with a few suites of `kprune compare`, each so small that the whole takes a minute or two;
the command line shows what comes back. `sizes` is what needs no server.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.run import CompareOptions
from vllm_kprune.compare.suites.language_id import language_identifier
from vllm_kprune.compare.suites.sizes import model_sizes, predicted_ratio
from vllm_kprune.demo.pairs import ModelPair, Servers, open_pair
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.served import Amounts, compare_served
from vllm_kprune.demo.servers import VllmServer
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.progress import Progress

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["ARGUMENTS", "Sizes", "compare_demo", "prepare", "sizes", "stream", "unexplained"]


# Logits tell ties more exactly than log-probabilities do.
ARGUMENTS = (
    *("--max-model-len", "1024", "--max-num-seqs", "8"),
    *("--logprobs-mode", "raw_logits"),
)


@dataclass(frozen=True)
class Sizes:
    """Original and pruned: tokens, parameters, seconds from start to ready; and how much faster a
    decode step at batch 1 would be if the bytes that it reads were all of its cost."""

    tokens: tuple[int, int]
    parameters: tuple[int, int]
    ready_seconds: tuple[float, float]
    predicted_ratio: float


def prepare(
    model: str | None, profile: Profile, *, log: Callable[[str], None], progress: Progress
) -> ModelPair:
    """The base model (the reference model if none is named) and its overlay, made when missing."""
    for needed in (_openai, language_identifier):  # before the long part
        needed()
    if model is None:
        model = str(demo_model("gemma-3-270m", log=log, progress=progress))
    elif is_overlay(model):
        model = str(load_manifest(Path(model)).check_base())
    return open_pair(model, profile, progress)


def compare_demo(servers: Servers, rounds: int, tell: Callable[[str, int, int], None]) -> Report:
    """Compare both; nothing else should run on the machine. The answers are not kept."""
    with tempfile.TemporaryDirectory(prefix="kprune-demo-") as folder:
        return compare_served(servers, _amounts(rounds), CompareOptions(), Path(folder), tell=tell)


def sizes(pair: ModelPair, servers: Servers) -> Sizes:
    """What the headers of the model's files and the servers' start tell."""
    original, pruned = model_sizes(pair.base, pair.manifest)
    first, second = (server.ready_seconds for server in servers)
    return Sizes(
        tokens=(original.tokens, pruned.tokens),
        parameters=(original.parameters, pruned.parameters),
        ready_seconds=(first, second),
        predicted_ratio=predicted_ratio(original, pruned),
    )


def unexplained(report: Report) -> bool:
    """Whether an answer differs without a reason, which the laws of pruning do not allow."""
    metrics = (metric for suite in report.suites for metric in suite.metrics)
    return any(metric.name == "unexplained" and metric.effect.value for metric in metrics)


def stream(server: VllmServer, name: str, prompt: str, tokens: int) -> Iterator[str]:
    """The pieces of a greedy answer of the model `name` as they come."""
    with _connect(server) as client:
        pieces = client.completions.create(
            model=name, prompt=prompt, max_tokens=tokens, temperature=0, stream=True
        )
        for piece in pieces:
            yield "".join(choice.text for choice in piece.choices)


def _connect(server: VllmServer) -> "OpenAI":
    """An OpenAI client for a server on this machine: no proxy, no silent retries."""
    openai = _openai()
    http = openai.DefaultHttpxClient(trust_env=False)
    client: OpenAI = openai.OpenAI(
        base_url=server.base_url, api_key="none", timeout=300, max_retries=0, http_client=http
    )
    return client


def _amounts(rounds: int) -> Amounts:
    return {
        "exactness": {"limit": 24, "max_tokens": 24},
        "latency": {"latency_rounds": rounds, "latency_tokens": 20},
        "stability": {"limit": 16, "max_tokens": 32},
        "memory": {},
    }


def _openai() -> ModuleType:
    try:
        import openai
    except ModuleNotFoundError:
        raise KPruneError(
            "the demo calls its servers with openai; pip install 'vllm-kprune[demo]'"
        ) from None
    return openai
