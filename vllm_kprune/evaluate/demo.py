"""The main job, shown: one model served twice, whole and pruned, on one machine, with figures.

`prepare` finds or makes everything that is needed, `serve_demo` runs both servers, `measure` asks
both the same things; the command line shows what comes back.
"""

import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.reference import demo_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.evaluate.answers import AnswerPair, Vocabularies, ask, explain
from vllm_kprune.evaluate.decode_speed import SpeedComparison, Target, compare_speed
from vllm_kprune.evaluate.demo_result import DemoResult, ServedModel
from vllm_kprune.evaluate.pairs import NAMES, ModelPair, Servers, open_pair, serve_pair
from vllm_kprune.evaluate.prompts import PROMPTS
from vllm_kprune.evaluate.server_memory import server_memory
from vllm_kprune.evaluate.servers import VllmServer
from vllm_kprune.evaluate.sizes import ModelSize, model_sizes, predicted_ratio
from vllm_kprune.profile import Profile

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = [
    "DemoSettings",
    "ServedPair",
    "connect",
    "measure",
    "prepare",
    "serve_demo",
    "stream",
]

Progress = Callable[[str, float], None]

_SETTINGS = (
    *("--max-model-len", "1024", "--max-num-seqs", "8"),
    *("--logprobs-mode", "raw_logits"),  # logits tell ties
)
_LOAD_TIME = re.compile(r"Loading weights took ([\d.]+) seconds")


@dataclass(frozen=True)
class DemoSettings:
    """How much is measured: tokens per timed request, rounds for each batch size, tokens of an
    answer that is compared."""

    tokens: int = 20
    rounds: int = 9
    batches: tuple[int, ...] = (1, 8)
    answer_tokens: int = 24


@dataclass(frozen=True)
class ServedPair:
    """Two running servers, the original's first, and how to talk to them."""

    servers: Servers
    targets: tuple[Target, Target]


def prepare(
    model: str | None, profile: Profile, *, log: Callable[[str], None], progress: Progress
) -> ModelPair:
    """The base model (the reference model if none is named) and its overlay, made when missing."""
    _openai()  # before the long part
    if model is None:
        model = str(demo_model("gemma-3-270m", log=log, progress=progress))
    elif is_overlay(model):
        model = str(load_manifest(Path(model)).check_base())
    return open_pair(model, profile, progress)


@contextmanager
def serve_demo(pair: ModelPair, *, eager: bool = False) -> Iterator[ServedPair]:
    """Both models, served, with a client for each."""
    with serve_pair(pair, _SETTINGS, eager=eager) as servers, ExitStack() as stack:
        original, pruned = (
            Target(stack.enter_context(connect(server)), name)
            for server, name in zip(servers, NAMES, strict=True)
        )
        yield ServedPair(servers, (original, pruned))


def connect(server: VllmServer) -> "OpenAI":
    """An OpenAI client for a server on this machine: no proxy, no silent retries."""
    openai = _openai()
    http = openai.DefaultHttpxClient(trust_env=False)
    client: OpenAI = openai.OpenAI(
        base_url=server.base_url, api_key="none", timeout=300, max_retries=0, http_client=http
    )
    return client


def stream(target: Target, prompt: str, tokens: int) -> Iterator[str]:
    """The pieces of a greedy answer as they come."""
    pieces = target.client.completions.create(
        model=target.model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True
    )
    for piece in pieces:
        yield "".join(choice.text for choice in piece.choices)


def measure(
    pair: ModelPair, served: ServedPair, settings: DemoSettings, progress: Progress
) -> DemoResult:
    """Ask both servers the same and compare; nothing else should run on the machine."""
    load_average = os.getloadavg()[0]
    sizes = model_sizes(pair.base, pair.manifest)
    answers = tuple(_answers(pair, served, settings.answer_tokens, progress))
    speeds = tuple(_speeds(served, settings, progress))
    weights = [pair.base.folder / name for name in pair.base.shards]
    files = weights, list(pair.overlay.iterdir())
    original, pruned = map(_served_model, sizes, files, served.servers)
    return DemoResult(
        model=pair.base.folder.name if Path(pair.base.reference).is_dir() else pair.base.reference,
        profile=pair.manifest.profile.name,
        hardware=_hardware(),
        load_average=load_average,
        original=original,
        pruned=pruned,
        predicted_ratio=predicted_ratio(*sizes),
        speeds=speeds,
        answers=answers,
    )


def _answers(
    pair: ModelPair, served: ServedPair, tokens: int, progress: Progress
) -> Iterator[AnswerPair]:
    words = Vocabularies(pair.base.tokenizer, pair.manifest.kept_ids)
    asked = [(language, prompt) for language, texts in PROMPTS.items() for prompt in texts]
    answers = []
    for target in served.targets:  # one server after the other: the one in use has the cores
        for _, prompt in asked:
            answers.append(ask(target, prompt, tokens))
            progress("compare greedy answers", len(answers) / (2 * len(asked)))
    halves = answers[: len(asked)], answers[len(asked) :]
    for (language, prompt), original, pruned in zip(asked, *halves, strict=True):
        difference = explain(original, pruned, words)
        yield AnswerPair(language, prompt, original.text, pruned.text, difference)


def _speeds(
    served: ServedPair, settings: DemoSettings, progress: Progress
) -> Iterator[SpeedComparison]:
    languages = zip(*PROMPTS.values(), strict=True)
    prompts = [prompt for texts in languages for prompt in texts]
    for batch in settings.batches:
        step = f"decode speed at batch {batch}"
        yield compare_speed(
            *served.targets,
            prompts[:batch],
            tokens=settings.tokens,
            rounds=settings.rounds,
            tell=lambda share, step=step: progress(step, share),  # type: ignore[misc]
        )


def _served_model(size: ModelSize, files: Sequence[Path], server: VllmServer) -> ServedModel:
    found = _LOAD_TIME.findall(server.log.read_text(encoding="utf-8", errors="replace"))
    return ServedModel(
        size=size,
        disk_bytes=sum(path.stat().st_size for path in files),
        ready_seconds=server.ready_seconds,
        load_seconds=float(found[-1]) if found else None,
        memory=server_memory(server.pid),
    )


def _hardware() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _openai() -> ModuleType:
    try:
        import openai
    except ModuleNotFoundError:
        raise KPruneError(
            "the demo calls its servers with openai; pip install 'vllm-kprune[demo]'"
        ) from None
    return openai
