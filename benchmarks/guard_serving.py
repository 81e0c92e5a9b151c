"""The guard in vLLM's engine: what still leaks, and what a decode step costs with it.

.venv/bin/python benchmarks/guard_serving.py [MODEL...] [--leaks 20000] [--rounds 9] [--eager]
    [--json FILE]

MODELs are the reference model and its `enko` overlay by default. Leaks are counted on the first
MODEL: N continuations of Korean and English prompts at temperature 1.5 and top-p 1, guarded with
`ko,en`, and a tenth as many unguarded. A step is one `engine.step()` while all of a batch decode:
scheduling, model, sampling and detokenising. Rounds with and without the guard take turns in one
process (on off, off on, ...), and a round's figure is the median of its steps. The time that a step
spends in the guard itself is measured besides: a virtual machine's rounds differ by more. Run it on
an idle machine, and name the machine with the figures. `benchmarks/guard.py` measures masks alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROMPTS = (
    "대한민국의 수도는",
    "오늘 저녁에는 친구와 함께",
    "이 제품의 가장 큰 장점은",
    "한국어로 번역하면 다음과 같습니다.",
    "The capital of South Korea is",
    "def fibonacci(n):",
)
GUARD = {"kprune_languages": "ko,en"}
OFF = {"kprune_languages": "off"}
BATCHES = (1, 8, 32)
LEAK_TOKENS = 16
LEAK_BATCH = 128
STEPS_BEFORE = 4  # the first ones of a batch prefill, or are of a new shape


def main() -> None:
    """Measure each model in a process of its own, and print the tables."""
    options = parse()
    if options.measure:
        figures = measure(options)
        sys.stdout.write(f"FIGURES {json.dumps(figures)}\n")
        return
    results = []
    for number, model in enumerate(options.models or default_models()):
        results.append(in_own_process(model, options, leaks=0 if number else options.leaks))
        show(results[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--leaks", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=48, help="steps of a round")
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def default_models() -> list[str]:
    """The reference model, and its overlay in kprune's cache."""
    from vllm_kprune.checkpoint.cached import cached_overlay
    from vllm_kprune.demo.reference.build import demo_model
    from vllm_kprune.profile import load_profile

    original = str(demo_model("gemma-3-270m"))
    return [original, str(cached_overlay(original, load_profile("enko")).folder)]


def in_own_process(model: str, options: argparse.Namespace, leaks: int) -> dict[str, Any]:
    """One engine for each process: the memory of another would not come back."""
    command = [sys.executable, __file__, "--measure", model, "--leaks", str(leaks)]
    command += ["--rounds", str(options.rounds), "--tokens", str(options.tokens)]
    command += ["--batches", *map(str, options.batches), *(["--eager"] * options.eager)]
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        command, env={**environment, **os.environ}, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    figures: dict[str, Any] = json.loads(lines[-1].removeprefix("FIGURES "))
    return figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    from vllm import LLM

    llm = LLM(
        model=options.measure,
        max_model_len=512,
        max_num_seqs=max(LEAK_BATCH, *options.batches),
        enforce_eager=options.eager,
        enable_prefix_caching=False,
        additional_config={"kprune": {"languages": "ko,en"}},
    )
    spent = watch_guard()
    steps = {batch: rounds(llm, batch, spent, options) for batch in options.batches}
    return {
        "model": Path(options.measure).name,
        "columns": llm.llm_engine.model_config.get_vocab_size(),
        "eager": options.eager,
        "steps": steps,
        "leaks": {
            name: leaks(llm, number, guard)
            for name, number, guard in (
                ("guarded", options.leaks, GUARD),
                ("unguarded", options.leaks // 10, OFF),
            )
            if number
        },
    }


def watch_guard() -> list[float]:
    """A list to which every call into the guard adds its seconds."""
    from vllm_kprune.serving.guard.processor import LanguageGuard

    spent: list[float] = []

    def timed(call: Any) -> Any:
        def run(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args)
            finally:
                spent.append(time.perf_counter() - started)

        return run

    for name in ("update_state", "apply"):
        setattr(LanguageGuard, name, timed(getattr(LanguageGuard, name)))
    return spent


def rounds(
    llm: Any, batch: int, spent: list[float], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Milliseconds of a step in each round, guarded (`on`) and not (`off`).

    Of these `in_guard_on` and `in_guard_off` are spent in the guard.
    """
    found: dict[str, list[float]] = {"on": [], "off": [], "in_guard_on": [], "in_guard_off": []}
    step_ms(llm, batch, GUARD, STEPS_BEFORE, spent)
    for number in range(options.rounds):
        for name in ("on", "off") if number % 2 else ("off", "on"):
            guard = GUARD if name == "on" else OFF
            step, inside = step_ms(llm, batch, guard, options.tokens, spent)
            found[name].append(step)
            found[f"in_guard_{name}"].append(inside)
    return found


def step_ms(
    llm: Any, batch: int, guard: dict[str, str], tokens: int, spent: list[float]
) -> tuple[float, float]:
    """Median milliseconds of a step in which `batch` greedy requests decode one token each.

    And those of it that are spent in the guard.
    """
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(
        temperature=0, max_tokens=STEPS_BEFORE + tokens, ignore_eos=True, extra_args=guard
    )
    for number in range(batch):
        engine.add_request(f"{time.monotonic_ns()}-{number}", PROMPTS[number % 6], params)
    times, inside = [], []
    while engine.has_unfinished_requests():
        spent.clear()
        started = time.perf_counter()
        engine.step()
        times.append((time.perf_counter() - started) * 1e3)
        inside.append(sum(spent) * 1e3)
    steps = slice(STEPS_BEFORE, -1)
    return statistics.median(times[steps]), statistics.median(inside[steps])


def leaks(llm: Any, number: int, guard: dict[str, str]) -> dict[str, float]:
    """How many of `number` hot continuations have a character that the guard must not let pass.

    A last character that `max_tokens` cut off is none; every other U+FFFD is counted by itself.
    """
    from vllm import SamplingParams

    from vllm_kprune.guard.characters import allowed_characters
    from vllm_kprune.guard.policy import parse_policy

    policy = parse_policy({"languages": "ko,en"})
    assert policy is not None
    allowed = allowed_characters(policy)
    found = {"continuations": number, "foreign": 0, "broken": 0, "seconds": -time.perf_counter()}
    params = SamplingParams(temperature=1.5, top_p=1.0, max_tokens=LEAK_TOKENS, extra_args=guard)
    for texts in continuations(llm, number, params):
        for text in texts:
            characters = set(text.rstrip("\ufffd"))
            found["broken"] += "\ufffd" in characters
            found["foreign"] += any(not allowed[ord(c)] for c in characters - {"\ufffd"})
    found["seconds"] += time.perf_counter()
    return found


def continuations(llm: Any, number: int, params: Any) -> Any:
    """Lists of texts, some thousand at a time."""
    for first in range(0, number, 4096):
        prompts = [PROMPTS[i % 6] for i in range(first, min(first + 4096, number))]
        yield [answer.outputs[0].text for answer in llm.generate(prompts, params, use_tqdm=False)]


def show(figures: dict[str, Any]) -> None:
    """The tables of one model."""
    sys.stdout.write(f"\n{figures['model']}: {figures['columns']:,} columns\n")
    for batch, times in figures["steps"].items():
        on, off = (statistics.median(times[name]) for name in ("on", "off"))
        sys.stdout.write(
            f"  batch {batch:>2}: {off:.2f} ms without, {on:.2f} ms with the guard: "
            f"× {spread(times['on'], times['off'])}; in the guard "
            f"{statistics.median(times['in_guard_off']):.3f} and "
            f"{statistics.median(times['in_guard_on']):.3f} ms, {share(times):.1%} of a step\n"
        )
    for name, found in figures["leaks"].items():
        sys.stdout.write(
            f"  {name}: of {found['continuations']:,} continuations {found['foreign']} with a "
            f"foreign character, {found['broken']} with U+FFFD ({found['seconds']:.0f} s)\n"
        )


def share(times: dict[str, list[float]]) -> float:
    """What a guarded step spends in the guard more than an unguarded one, as a share of that."""
    more = statistics.median(times["in_guard_on"]) - statistics.median(times["in_guard_off"])
    return more / statistics.median(times["off"])


def spread(on: Sequence[float], off: Sequence[float]) -> str:
    """Median of the rounds' ratios, least and greatest."""
    ratios = [one / other for one, other in zip(on, off, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})"


if __name__ == "__main__":
    main()
