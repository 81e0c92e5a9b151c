"""The options of `kprune compare` about its choice of suites, its judgement and its report."""

from dataclasses import dataclass
from pathlib import Path

from vllm_kprune.compare.options import MEASURED
from vllm_kprune.options import option

__all__ = ["JudgeOptions", "OutputOptions", "SelectionOptions"]

_JUDGED = "How it is judged"
_REPORT = "Report"


@dataclass(frozen=True)
class SelectionOptions:
    """Which suites run."""

    suites: tuple[str, ...] = option(
        (),
        "What to measure (all by default; see --list); repeat for several.",
        flags=("--suite", "-s"),
        commas=True,
        group=MEASURED,
    )


@dataclass(frozen=True)
class JudgeOptions:
    """What may change when a run is judged again."""

    rejudge: Path | None = option(
        None,
        "Judge the answers of an earlier run again, without servers. Takes its folder (-o), and "
        "beside it only --suite and the options of these two panels.",
        existing="folder",
        group=_JUDGED,
    )
    margins: tuple[str, ...] = option(
        (),
        "Largest difference that counts as equal, such as stability=0.03 (3 percentage points) or "
        "latency.ttft_p50=0.1 (a ratio: 10 %); repeat for several.",
        flags=("--margin",),
        commas=True,
        group=_JUDGED,
    )
    fail_on: tuple[str, ...] = option(
        (),
        'Exit with code 1 if the data show this: worse (any metric is worse), "stability<0" (the '
        'main metric of a suite, pruned - original), "decode_ratio<1.5?" (with ?: unless the data '
        "rule it out). Several may follow.",
        group=_JUDGED,
    )


@dataclass(frozen=True)
class OutputOptions:
    """Where the report goes."""

    output: Path | None = option(
        None,
        "Folder for the answers, report.json and report.html. If a run was interrupted, the same "
        "command resumes it. With --rejudge, where the new report goes.",
        default_text="kprune-compare",
        flags=("--output", "-o"),
        group=_REPORT,
    )
    fresh: bool = option(
        False,
        "Start over; the contents of the folder are moved to FOLDER.1.",
        flags=("--fresh",),
        group=_REPORT,
    )
    plan: bool = option(
        False,
        "Only say what each suite would ask, about how long it would take, and which differences "
        "it could find; a few prompts measure the speed of the servers.",
        flags=("--plan",),
        group=_REPORT,
    )
    junit: Path | None = option(
        None,
        "Also write the verdicts and conditions as JUnit XML to this file.",
        group=_REPORT,
    )
    summary_md: Path | None = option(
        None,
        'Also write a summary in Markdown to this file, such as "$GITHUB_STEP_SUMMARY".',
        group=_REPORT,
    )
    verbose: bool = option(
        False, "Print every metric and note.", flags=("--verbose", "-v"), group=_REPORT
    )
    json_to: str | None = option(
        None,
        "Also write the report as JSON to this file; - prints it.",
        flags=("--json",),
        group=_REPORT,
    )
