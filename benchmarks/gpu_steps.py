"""The steps of `gpu.py` and what each line of its table means.

A step has parts, each a process of its own that returns figures; `rows` makes lines of them.
"""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_answers
import gpu_servers
import gpu_speed
from gpu_job import Job, Row, Rows
from gpu_models import kept_rows, make_overlay, save_model, save_shape

__all__ = ["STEPS", "Job", "Row", "Rows", "Step", "run_part"]

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A step that may take so many `seconds`, all of its parts together."""

    name: str
    what: str
    seconds: int
    run: Callable[[Job, str], dict[str, Any]]
    rows: Callable[[Mapping[str, Figures]], Rows]
    parts: tuple[str, ...] = ("all",)
    environment: Mapping[str, str] = field(default_factory=dict)


def run_part(name: str, part: str, job: Job) -> dict[str, Any]:
    """Run one part in this process."""
    (step,) = (one for one in STEPS if one.name == name)
    os.environ.update(step.environment)
    return step.run(job, part)


def _models(job: Job, part: str) -> dict[str, Any]:
    tokenizer = Path(job.tokenizer)
    saved = save_model(job.model, job.shape, tokenizer)
    built = make_overlay(job.model, job.profile, job.overlay)
    rows = len(kept_rows(job.overlay))
    save_shape(job.speed_model, job.speed_shape, tokenizer)
    save_shape(job.pruned_speed_model, job.speed_shape, tokenizer, rows)
    return {"save_seconds": saved, "build_seconds": built, "rows": rows}


def _models_rows(figures: Mapping[str, Figures]) -> Rows:
    found = figures["all"]
    yield Row("overlay", f"{found['rows']:,} rows, built in {found['build_seconds']:.0f} s")


def _law4_rows(figures: Mapping[str, Figures]) -> Rows:
    original = figures["original"]
    for part in ("pruned", "head"):
        found = gpu_answers.compare(original, figures[part])
        yield Row(
            f"greedy answers, original and {part} ({original['runner']}, "
            f"{figures[part]['runner']})",
            f"{found['same']} the same, {found['ties']} differ by a tie, "
            f"{found['different']} differ",
            found["different"] == 0,
        )
    loads = (figures[part]["load_seconds"] for part in _FORMS)
    yield Row("engine start, original → pruned → head", "{:.1f} → {:.1f} → {:.1f} s".format(*loads))


def _guard_rows(figures: Mapping[str, Figures]) -> Rows:
    for part, found in figures.items():
        guarded = sum(n for name, n in found["answers"].items() if name != "off")
        wrong = sum(n for name, n in found["foreign"].items() if name != "off")
        off = f"{found['foreign']['off']} of {found['answers']['off']} unguarded ones"
        model = "" if part == "all" else f"{part}, "
        yield Row(
            f"{model}T=1.5, {len(found['answers'])} policies in one batch ({found['runner']})",
            f"{wrong} of {guarded} guarded answers with another script or U+FFFD; {off}",
            wrong == 0,
        )


def _phases_rows(figures: Mapping[str, Figures]) -> Rows:
    found = figures["all"]
    yield Row(
        "answer guarded, reasoning not",
        f"another script in {found['foreign_answers']} of {found['answers']} answers and in "
        f"{found['foreign_reasoning']} of {found['answers']} reasonings",
        found["foreign_answers"] == 0 and found["answers"] > 0,
    )


def _decode_rows(figures: Mapping[str, Figures]) -> Rows:
    original, pruned = figures["original"], figures["pruned"]
    predicted = original["predicted"] / pruned["predicted"]
    for batch, times in original["ms"].items():
        whole = statistics.median(times["off"])
        seen = [f"{whole:.2f} ms"]
        for part in ("pruned", "head"):
            less = statistics.median(figures[part]["ms"][batch]["off"])
            seen.append(f"{part} {less:.2f} ms (× {whole / less:.3f} faster)")
        yield Row(
            f"decode, batch {batch}: {original['rows']:,} → {pruned['rows']:,} rows",
            f"{'; '.join(seen)}; bytes predict × {predicted:.3f}",
        )


def _expansion_rows(figures: Mapping[str, Figures]) -> Rows:
    for batch, ways in figures["all"]["ms"].items():
        seen = ", ".join(f"{name} {ms:.3f}" for name, ms in ways.items())
        yield Row(f"logits of the whole vocabulary, batch {batch}, ms", seen)


def _cost_rows(figures: Mapping[str, Figures]) -> Rows:
    for batch, times in figures["all"]["ms"].items():
        off = statistics.median(times["off"])
        ratio = statistics.median(
            on / other for on, other in zip(times["on"], times["off"], strict=True)
        )
        spent = figures["all"]["in_guard_ms"][batch]
        yield Row(
            f"guard, batch {batch}",
            f"{spent['device']:.3f} ms on the device, {spent['host']:.3f} ms on the host: "
            f"{spent['device'] / off:.1%} of a step of {off:.2f} ms (whole step × {ratio:.3f})",
        )


def _http_rows(figures: Mapping[str, Figures]) -> Rows:
    found = figures["all"]
    yield Row(
        f"{found['requests']} requests, {found['at_once']} at once",
        f"{found['failed']} failed; another script in {found['foreign']} of {found['guarded']} "
        f"guarded answers; ready in {found['ready_seconds']:.0f} s",
        found["failed"] == 0 and found["foreign"] == 0,
    )
    counted = f"{found['counted']} guarded requests counted, {found['guarded_requests']} sent"
    yield Row("metrics", counted, found["counted"] == found["guarded_requests"])
    yield Row("an unknown language", f"HTTP {found['bad_status']}", found["bad_status"] == 400)


def _ttft_rows(figures: Mapping[str, Figures]) -> Rows:
    for tokens, ways in figures["all"]["ms"].items():
        whole = statistics.median(ways["whole"])
        seen = [f"whole {whole:.0f} ms"]
        for name, times in ways.items():
            if name != "whole":
                median = statistics.median(times)
                seen.append(f"{name} {median:.0f} ms (× {median / whole:.2f})")
        yield Row(f"first token, {int(tokens):,} tokens", "; ".join(seen))


_BOTH = ("original", "pruned")
_FORMS = (*_BOTH, "head")
STEPS: Sequence[Step] = (
    Step("models", "random weights of --shape, and its overlay", 600, _models, _models_rows),
    Step(
        "law4",
        "greedy answers: the original restricted to the kept ids against overlay and pruned head",
        600,
        gpu_answers.greedy,
        _law4_rows,
        _FORMS,
    ),
    Step(
        "guard",
        "no other script at T=1.5, with several policies in one batch",
        400,
        gpu_answers.guarded,
        _guard_rows,
        _BOTH,
    ),
    Step(
        "drafts",
        "the same with n-gram speculative decoding, 3 drafts",
        600,
        gpu_answers.drafted,
        _guard_rows,
        ("original", "head"),
    ),
    Step(
        "phases",
        "reasoning unguarded, the answer guarded",
        300,
        gpu_answers.thinking,
        _phases_rows,
    ),
    Step(
        "http",
        "vllm serve under load, its metrics, a bad request",
        400,
        gpu_servers.http,
        _http_rows,
    ),
    Step(
        "decode",
        "a decode step of --speed-shape: the original, the overlay's vocabulary, a pruned head",
        900,
        gpu_speed.decode,
        _decode_rows,
        _FORMS,
    ),
    Step(
        "expansion",
        "from the logits of a pruned head to those of the vocabulary, in several ways",
        120,
        gpu_speed.expansion,
        _expansion_rows,
    ),
    Step("cost", "the guard's share of such a step", 600, gpu_speed.cost, _cost_rows),
    Step(
        "ttft",
        "time to first token at 1k, 4k and 12k tokens, whole and pruned prompts",
        900,
        gpu_servers.ttft,
        _ttft_rows,
    ),
)
