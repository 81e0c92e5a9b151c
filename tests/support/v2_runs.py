"""Random traffic through vLLM's V2 sampler with the guard inside: what runs, and its figures.

`v2_runner` has the runner, `v2_traffic` the requests, `v2_judge` says what was allowed, and
`v2_simulation` is the script that runs this.
"""

import os
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm
from tokenizers import AddedToken, Tokenizer

from support.guard_engines import NUM_ROWS, Engine
from support.tiny_tokenizers import TINY
from support.v2_judge import Judge, spell
from support.v2_runner import V2Runner, speculative_config
from support.v2_traffic import Kind, Traffic
from vllm_kprune.guard.phases import ReasoningTokens
from vllm_kprune.serving.environment import COUNTER_FOLDER
from vllm_kprune.serving.guard.admission import admit
from vllm_kprune.serving.guard.counters import REASONING, read_totals
from vllm_kprune.serving.guard.markers import Markers
from vllm_kprune.serving.guard.settings import request_policies
from vllm_kprune.serving.request_options import ADMITTED
from vllm_kprune.serving.settings import attach_settings, settings_of

__all__ = ["RUNS", "Run", "simulate"]

_SLOTS, _LENGTH = 6, 256


@dataclass(frozen=True)
class Run:
    """What one run has.

    `thinks`: the model has tokens that begin and end reasoning, `hidden` or shown by decoders.
    `kernels`: the guard's own kernels run, otherwise its reference on the CPU.
    """

    tokenizer: str
    num_drafts: int = 0
    method: str = "standard"
    draft_logits: bool = False
    thinks: str = ""
    kernels: bool = True


RUNS = (
    Run("byte_level"),
    Run("byte_fallback", thinks="hidden", kernels=False),
    Run("byte_fallback", 3, thinks="shown"),
    Run("byte_level", 3, "block", draft_logits=True, thinks="shown"),
    Run("byte_fallback", 2, "block", thinks="hidden", kernels=False),
)
REQUESTS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"kprune_languages": "off"},
    {"kprune_languages": "ko", "kprune_hanja": "all"},
    {"kprune_scripts": ["Hiragana", "Han"]},
    {"kprune_languages": "en", "kprune_digits": False},
    # What a chat request with tools leaves for `admit`: answers may be JSON.
    {"kprune_languages": "ko,en", ADMITTED: {"tools": True}},
)
THINKING: tuple[dict[str, Any], ...] = (
    {"kprune_languages": "en", "kprune_think_languages": "ko"},
    {"kprune_languages": "off", "kprune_think_languages": "ko,en"},
)
_THINK = ("<think>", "</think>")


def simulate(run: Run, steps: int, seed: int) -> dict[str, Any]:
    """The figures of one run."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        counters = Path(scratch) / "counters"
        counters.mkdir()
        os.environ[COUNTER_FOLDER] = str(counters)
        engine = _engine(run, Path(scratch))
        config = _config(engine, run)
        traffic = Traffic(
            _runner(config, run),
            _kinds(engine, config, run),
            engine.tokenizer,
            admit=partial(admit, config),
            eos=engine.eos,
            think_ids=_think_ids(engine) if run.thinks else None,
            seed=seed,
        )
        traffic.warm_up()
        warm_up = read_totals(counters)
        traffic.run(steps)
        return {
            **asdict(run),
            "vllm": vllm.__version__,
            "seconds": round(time.monotonic() - began, 1),
            "figures": dict(traffic.figures),
            "warm_up_counts": warm_up,
            "counts": read_totals(counters),
            "expected_counts": {
                label: {name: n[name] for name in ("requests", "changed_steps", "dead_ends")}
                for label, n in traffic.counts.items()
            },
        }


def _engine(run: Run, folder: Path) -> Engine:
    tokenizer = Tokenizer.from_str(TINY[run.tokenizer]().to_str())
    if run.thinks:
        is_special = run.thinks == "hidden"
        marks = [AddedToken(mark, special=is_special, normalized=False) for mark in _THINK]
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(marks)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Engine(folder, tokenizer)


def _think_ids(engine: Engine) -> tuple[int, int]:
    start, end = map(engine.tokenizer.token_to_id, _THINK)
    return start, end


def _config(engine: Engine, run: Run) -> Any:
    config = engine.config
    config.speculative_config = speculative_config(run.num_drafts, run.method)
    config.use_v2_model_runner = True
    config.reasoning_config = None
    settings = settings_of(config)
    # As `attach` leaves it in an engine whose reasoning parser knows these tokens.
    markers = Markers(
        ReasoningTokens(*_think_ids(engine)) if run.thinks else None, stop_ids=(engine.eos,)
    )
    guard = replace(settings.guard, attached=True, markers=markers)
    attach_settings(config, replace(settings, guard=guard))
    return config


def _runner(config: Any, run: Run) -> V2Runner:
    # Read by the guard when it is made; vLLM's kernels have read it when they were imported.
    os.environ["TRITON_INTERPRET"] = str(int(run.kernels))
    return V2Runner(
        config,
        num_slots=_SLOTS,
        length=_LENGTH,
        num_rows=NUM_ROWS,
        draft_logits=run.draft_logits,
    )


def _kinds(engine: Engine, config: Any, run: Run) -> list[Kind]:
    spelling = spell(engine.tokenizer, NUM_ROWS)
    think_ids = _think_ids(engine) if run.thinks else None
    kinds = []
    for xargs in (*REQUESTS, *(THINKING if run.thinks else ())):
        is_json = ADMITTED in (xargs or {})
        policies = request_policies(settings_of(config).guard, xargs)
        policies = policies.resolved("json" if is_json else "off")
        answer, reasoning = policies.answer, policies.reasoning
        judge = Judge(spelling, answer, reasoning, think_ids)
        policy = answer or reasoning
        label = policy.label if policy else None
        reasoning_label = reasoning and REASONING + reasoning.label
        kinds.append(Kind(xargs, judge, label, reasoning_label, is_json))
    return kinds
