"""The steps of `kprune demo`: one model, served both whole and pruned on one machine, compared.

`prepare` finds or builds everything that is needed. `compare_demo` runs a few suites of `kprune
compare` on both servers, small enough to take a minute or two in all. `sizes` reports what is known
without asking the servers. The command line shows the results.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.sizes import weight_sizes
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.planning import finds
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.run import SuiteProgress
from vllm_kprune.demo.pairs import ModelPair, Servers, make_pair
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.served import Amounts, amounts_of, compare_served
from vllm_kprune.demo.servers import VllmServer
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.progress import Progress
from vllm_kprune.vocabulary.language_id import language_identifier

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = [
    "ARGUMENTS",
    "Sizes",
    "compare_demo",
    "prepare",
    "resolution",
    "sizes",
    "stream",
    "unexplained",
]


# Logits show ties more exactly than log-probabilities do.
ARGUMENTS = (
    *("--max-model-len", "1024", "--max-num-seqs", "8"),
    *("--logprobs-mode", "raw_logits"),
)


@dataclass(frozen=True)
class Sizes:
    """Tokens, parameters, and seconds from start to ready, of the original and the pruned model.

    `predicted_ratio` is how much faster a decode step at batch 1 would be if reading bytes were its
    only cost.
    """

    tokens: tuple[int, int]
    parameters: tuple[int, int]
    ready_seconds: tuple[float, float]
    predicted_ratio: float


def prepare(
    model: str | None, profile: Profile, *, log: Callable[[str], None], progress: Progress
) -> ModelPair:
    """The base model (by default the reference model) and its overlay, built if missing."""
    for needed in (_openai, language_identifier):  # fail before the long part
        needed()
    if model is None:
        model = str(demo_model("gemma-3-270m", log=log, progress=progress))
    elif is_overlay(model):
        # An overlay stands for its base: the demo serves both.
        model = str(load_manifest(Path(model)).check_base())
    return make_pair(model, profile, progress)


def compare_demo(servers: Servers, rounds: int, progress: SuiteProgress) -> Report:
    """Compare both servers; nothing else should run on the machine. The answers are not kept."""
    with tempfile.TemporaryDirectory(prefix="kprune-demo-") as folder:
        return compare_served(
            servers, _amounts(rounds), CommonOptions(), Path(folder), progress=progress
        )


def resolution(rounds: int) -> Iterator[str]:
    """What the few items of the demo can find, a line for each suite that has items."""
    yield "a small comparison, for a few minutes; `kprune compare` asks more:"
    for suite, amount in amounts_of(_amounts(rounds), CommonOptions()):
        found = finds(amount)
        yield f"  {suite}: {amount.items} items{found and '; '}{found}"


def sizes(pair: ModelPair, servers: Servers) -> Sizes:
    """The sizes, from the headers of the model's files and from the start of the servers."""
    manifest = pair.manifest
    found = weight_sizes(pair.base, len(manifest.kept_rows))
    parameters, step = found.parameters, found.step_bytes
    first, second = (server.ready_seconds for server in servers)
    return Sizes(
        tokens=(manifest.original_tokens, len(manifest.kept_ids)),
        parameters=(int(parameters.original), int(parameters.last)),
        ready_seconds=(first, second),
        predicted_ratio=step.original / step.last,
    )


def unexplained(report: Report) -> bool:
    """Whether an answer differs without a reason, which pruning must never cause."""
    metrics = (metric for suite in report.suites for metric in suite.metrics)
    return any(metric.name == "unexplained" and metric.effect.value for metric in metrics)


def stream(server: VllmServer, name: str, prompt: str, tokens: int) -> Iterator[str]:
    """The parts of a greedy answer of the model `name`, as they arrive."""
    with _connect(server) as client:
        chunks = client.completions.create(
            model=name, prompt=prompt, max_tokens=tokens, temperature=0, stream=True
        )
        for chunk in chunks:
            yield "".join(choice.text for choice in chunk.choices)


def _connect(server: VllmServer) -> "OpenAI":
    """An OpenAI client for a server on this machine, without a proxy and without retries."""
    openai = _openai()
    http = openai.DefaultHttpxClient(trust_env=False)
    # The client insists on a key; the server asks for none.
    client: OpenAI = openai.OpenAI(
        base_url=server.base_url, api_key="none", timeout=300, max_retries=0, http_client=http
    )
    return client


def _amounts(rounds: int) -> Amounts:
    return {
        "exactness": {"limit": 24, "max_tokens": 24},
        "latency": {"rounds": rounds, "tokens": 20},
        "stability": {"limit": 16, "max_tokens": 32},
        "memory": {},
    }


def _openai() -> ModuleType:
    try:
        import openai
    except ModuleNotFoundError:
        raise KPruneError("kprune demo needs openai; pip install 'vllm-kprune[demo]'") from None
    return openai
