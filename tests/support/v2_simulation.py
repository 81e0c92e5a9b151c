"""Script: random traffic through vLLM's V2 sampler with the guard inside; writes JSON.

    python v2_simulation.py STEPS SEED

It runs in the environment of `triton_package.py`. Every line of the table below is a run of its
own. `v2_runner` has the runner, `v2_traffic` the requests, `v2_judge` says what was allowed.
"""

from support.triton_interpreter import use_interpreter

use_interpreter()

import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm

from support.guard_engines import DEFAULT, NUM_ROWS, Engine, make_engine
from support.v2_judge import Judge, spell
from support.v2_runner import V2Runner, speculative_config
from support.v2_traffic import Kind, Traffic
from vllm_kprune.guard.policy import parse_policy
from vllm_kprune.serving.guard.counters import read_totals
from vllm_kprune.serving.options import COUNTER_FOLDER
from vllm_kprune.serving.plugin import register

_SLOTS, _LENGTH = 6, 256


@dataclass(frozen=True)
class Run:
    """A tokenizer, how drafts are verified, and which of the guard's two steps runs."""

    tokenizer: str
    num_drafts: int = 0
    method: str = "standard"
    draft_logits: bool = False
    kernels: bool = True


RUNS = (
    Run("byte_level"),
    Run("byte_fallback", kernels=False),
    Run("byte_fallback", 3),
    Run("byte_level", 3, "block", draft_logits=True),
    Run("byte_fallback", 2, "block", kernels=False),
)
REQUESTS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"kprune_languages": "off"},
    {"kprune_languages": "ko", "kprune_hanja": "all"},
    {"kprune_scripts": ["Hiragana", "Han"]},
    {"kprune_languages": "en", "kprune_digits": False},
)


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
        engine = make_engine(run.tokenizer, Path(scratch))
        runner = _runner(_config(engine, run), run)
        traffic = Traffic(
            runner, _kinds(engine), engine.tokenizer, eos=engine.eos, think_ids=None, seed=seed
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


def _config(engine: Engine, run: Run) -> Any:
    config = engine.config
    config.speculative_config = speculative_config(run.num_drafts, run.method)
    config.use_v2_model_runner = True
    config.reasoning_config = None
    return config


def _kinds(engine: Engine) -> list[Kind]:
    spelling = spell(engine.tokenizer, NUM_ROWS)
    default = parse_policy(DEFAULT)
    kinds = []
    for xargs in REQUESTS:
        options = {key.removeprefix("kprune_"): value for key, value in (xargs or {}).items()}
        policy = parse_policy(options, default)
        kinds.append(Kind(xargs, Judge(spelling, policy), policy.label if policy else None))
    return kinds


if __name__ == "__main__":
    register()
    how_many, first_seed = int(sys.argv[1]), int(sys.argv[2])
    results = [simulate(run, how_many, first_seed + n) for n, run in enumerate(RUNS)]
    sys.stdout.write(json.dumps(results) + "\n")
