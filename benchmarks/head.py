"""Decode speed of a pruned head and a pruned vocabulary against the original, side by side.

    .venv/bin/python benchmarks/head.py [MODEL] [--profile enko] [--forms original,head,overlay]
        [--batches 1,8,32] [--rounds 7] [--tokens 33] [--dtype float32] [--compiled]
        [--json FILE]

MODEL is a folder, or a reference model's name (gemma-3-270m). All forms are loaded at the same time
and take turns, one at a time, in an order that changes with every round; so what the machine does
besides hits all of them. A ratio is that of one round. Shown are the median and the range of the
rounds, beside the ratio that the bytes of a step predict (`kprune inspect`). A step is the time of
an answer of N tokens, less that of one token, by N - 1.

Of the head it is also measured which share of a step the way from the logits of the kept rows to
those of the whole vocabulary takes, and of every form how many bytes of weights are in memory. On
a CPU these are the vocabulary's alone, because vLLM packs the other matrices away.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

FORMS = ("original", "head", "overlay")
_READY = "READY "


def main() -> None:
    """Start an engine for each form, let them take turns, and print the table."""
    options = _arguments()
    if options.work:
        work(options)
        return
    model = _folder(options.model)
    forms = options.forms.split(",")
    with ExitStack() as stack:
        engines = {form: stack.enter_context(_engine(model, form, options)) for form in forms}
        for form, engine in engines.items():
            sys.stderr.write(f"{form}: {engine.facts['weight_bytes'] / 1e6:,.0f} MB of weights\n")
        found = {
            batch: _rounds(engines, batch, options)
            for batch in map(int, options.batches.split(","))
        }
    sys.stdout.write(_table(found, _predicted(model, options.profile)) + "\n")
    if options.json:
        facts = {form: engine.facts for form, engine in engines.items()}
        options.json.write_text(json.dumps({"engines": facts, "ms": found}, indent=1))


class Engine:
    """A form's process, which answers one question at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.facts: dict[str, Any] = self._next()

    def ask(self, batch: int, tokens: int) -> dict[str, float]:
        """Milliseconds of a step, and of the expansion of its logits."""
        assert self._process.stdin
        self._process.stdin.write(f"{batch} {tokens}\n")
        self._process.stdin.flush()
        return self._next()

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(_READY):
                found: dict[str, Any] = json.loads(line.removeprefix(_READY))
                return found
        raise SystemExit(f"an engine ended with status {self._process.wait()}")


@contextmanager
def _engine(model: Path, form: str, options: argparse.Namespace) -> Iterator[Engine]:
    command = [sys.executable, __file__, str(model), "--work", form, "--profile", options.profile]
    command += ["--dtype", options.dtype, *(["--compiled"] if options.compiled else [])]
    # All engines may use all cores, since only one of them works at a time.
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_AOT_COMPILE": "0",  # a CPU does not load again what was compiled so
        "VLLM_LOGGING_LEVEL": "ERROR",
        **os.environ,
    }
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield Engine(process)
    finally:
        process.terminate()
        process.wait()


def _rounds(
    engines: dict[str, Engine], batch: int, options: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {form: [] for form in engines}
    for engine in engines.values():
        engine.ask(batch, 3)  # shapes that were not seen before
    for number in range(options.rounds):
        forms = list(engines)
        forms = forms[number % len(forms) :] + forms[: number % len(forms)]
        for form in forms:
            found[form].append(engines[form].ask(batch, options.tokens))
    return found


def work(options: argparse.Namespace) -> None:
    """Hold an engine, and answer questions from standard input."""
    from vllm import LLM

    more: dict[str, Any] = {}
    key = {"head": "head", "overlay": "profile"}.get(options.work)
    if key:
        more = {"additional_config": {"kprune": {key: options.profile}}}
    llm = LLM(
        model=options.model,
        dtype=options.dtype,
        enforce_eager=not options.compiled,
        max_model_len=512,
        num_gpu_blocks_override=128,  # what the answers need: more would only take memory
        seed=0,
        **more,
    )
    spent = _watch_expansion() if options.work == "head" else []
    _tell({"weight_bytes": _weight_bytes(llm)})
    for line in sys.stdin:
        batch, tokens = map(int, line.split())
        first = _answer_seconds(llm, batch, 1)
        spent.clear()
        whole = _answer_seconds(llm, batch, tokens)
        expansion = statistics.median(spent) if spent else 0.0
        _tell({"step": (whole - first) / (tokens - 1) * 1e3, "expansion": expansion * 1e3})


def _tell(found: dict[str, Any]) -> None:
    sys.stdout.write(_READY + json.dumps(found) + "\n")
    sys.stdout.flush()


def _answer_seconds(llm: Any, batch: int, tokens: int) -> float:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [5 + (n + i) % 90 for i in range(16)]} for n in range(batch)]
    began = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - began


def _watch_expansion() -> list[float]:
    """A list that gets the seconds of every expansion."""
    from vllm_kprune.serving.head import kept

    spent: list[float] = []
    original = kept.expand

    def expand(*args: Any) -> Any:
        began = time.perf_counter()
        result = original(*args)
        spent.append(time.perf_counter() - began)
        return result

    kept.expand = expand
    return spent


def _weight_bytes(llm: Any) -> int:
    """Bytes of all weights, those of a pruned head among them, each stretch of memory once."""
    from vllm_kprune.serving.head.state import ATTRIBUTE

    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    heads = (vars(one).get(ATTRIBUTE) for one in model.modules())
    parameters = [*model.parameters(), *(head.layer.weight for head in heads if head)]
    return sum({one.data_ptr(): one.nbytes for one in parameters}.values())


def _folder(model: str) -> Path:
    from vllm_kprune.demo.reference.build import demo_model

    return Path(model) if Path(model).is_dir() else demo_model(model)


def _predicted(model: Path, profile: str) -> float:
    from vllm_kprune.checkpoint.inspection import inspect_model
    from vllm_kprune.profile import load_profile

    step = inspect_model(str(model), load_profile(profile)).step_bytes
    assert step and step.pruned
    return step.original / step.pruned


def _table(found: dict[int, dict[str, list[dict[str, float]]]], predicted: float) -> str:
    lines = [
        f"| batch | form | step, ms | original / form, median (range) | of × {predicted:.2f} "
        "predicted | expansion, share of a step |",
        "|---|---|---|---|---|---|",
    ]
    for batch, forms in found.items():
        for form, rounds in forms.items():
            step = statistics.median(one["step"] for one in rounds)
            share = statistics.median(one["expansion"] / one["step"] for one in rounds)
            cells = [str(batch), form, f"{step:.1f}"]
            ratios = _ratios(forms, form)
            middle = statistics.median(ratios)
            cells += [f"× {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
            cells += [f"{middle / predicted:.0%}" if form != "original" else ""]
            cells += [f"{share:.1%}" if form == "head" else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratios(forms: dict[str, list[dict[str, float]]], form: str) -> Sequence[float]:
    pairs = zip(forms["original"], forms[form], strict=True)
    return [one["step"] / other["step"] for one, other in pairs]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="gemma-3-270m")
    parser.add_argument("--profile", default="enko")
    parser.add_argument("--forms", default=",".join(FORMS), help="the original comes first")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compiled", action="store_true", help="as vLLM serves by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", choices=FORMS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
