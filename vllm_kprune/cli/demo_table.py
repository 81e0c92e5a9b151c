"""The table that `kprune demo` prints: a row for each figure, whole and pruned side by side."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from vllm_kprune.evaluate.decode_speed import SpeedComparison
from vllm_kprune.evaluate.demo_result import DemoResult, ServedModel

__all__ = ["demo_table", "difference_lines"]

_KINDS = {
    "tie": "the two best logits tie",
    "pruned token": "the original chose a pruned token",
    "prompt": "the prompt needs a pruned token",
    "unexplained": "[bold red]unexplained[/]",
}


def demo_table(result: DemoResult) -> Table:
    """All figures of a run."""
    table = Table(
        title=f"{escape(result.model)}, profile {escape(result.profile)}",
        caption=_caption(result),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for column in ("original", "pruned", "pruned / original"):
        table.add_column(column, justify="right")
    for row in (*_size_rows(result.original, result.pruned), *_run_rows(result)):
        table.add_row(*row)
    return table


def difference_lines(result: DemoResult) -> Iterator[str]:
    """A line for each answer that differs: where, why, and how near the two best logits were."""
    for pairs in result.different.values():
        for pair in pairs:
            place = pair.difference
            assert place is not None
            gap = f", top-2 gap {place.gap:.4f}" if place.gap is not None else ""
            where = f"token {place.position + 1}: {place.detail}{gap}"
            yield f"{_KINDS[place.kind]}: {escape(f'“{pair.prompt}”, {where}')}"


def _size_rows(original: ServedModel, pruned: ServedModel) -> Iterator[tuple[str, ...]]:
    before, after = original.size, pruned.size
    yield (
        "vocabulary (tokens)",
        f"{before.tokens:,}",
        f"{after.tokens:,}",
        _share(after.tokens, before.tokens),
    )
    yield (
        "parameters",
        f"{before.parameters / 1e6:,.1f} M",
        f"{after.parameters / 1e6:,.1f} M",
        (_share(after.parameters, before.parameters)),
    )
    yield "weights, loaded", *_megabytes(before.weight_bytes, after.weight_bytes)
    yield (
        "on disk",
        f"{original.disk_bytes / 1e6:,.1f} MB",
        f"+ {pruned.disk_bytes / 1e6:,.1f} MB",
        "same weights",
    )
    kind = original.memory.kind
    yield f"server memory ({kind})", *_megabytes(original.memory.bytes, pruned.memory.bytes)


def _run_rows(result: DemoResult) -> Iterator[tuple[str, ...]]:
    original, pruned = result.original, result.pruned
    yield "start to ready", f"{original.ready_seconds:.0f} s", f"{pruned.ready_seconds:.0f} s", ""
    if original.load_seconds is not None and pruned.load_seconds is not None:
        loads = f"{original.load_seconds:.1f} s", f"{pruned.load_seconds:.1f} s"
        yield "  reading weights", *loads, ""
    for speed in result.speeds:
        yield _speed_row(speed)
    yield "  predicted by bytes", "", "", f"x {result.predicted_ratio:.2f} at batch 1"
    yield "identical greedy answers", "", f"{result.identical} of {len(result.answers)}", ""
    for kind, pairs in result.different.items():
        yield f"  {_KINDS[kind]}", "", str(len(pairs)), ""


def _speed_row(speed: SpeedComparison) -> tuple[str, ...]:
    least, most = speed.ratio_range
    return (
        f"decode, batch {speed.batch}",
        f"{speed.original:,.1f} tok/s",
        f"{speed.pruned:,.1f} tok/s",
        f"x {speed.ratio:.2f} ({least:.2f} - {most:.2f})",
    )


def _megabytes(before: int, after: int) -> tuple[str, str, str]:
    return f"{before / 1e6:,.0f} MB", f"{after / 1e6:,.0f} MB", _share(after, before)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}"


def _caption(result: DemoResult) -> str:
    speed = result.speeds[0] if result.speeds else None
    rounds = f"; {len(speed.rounds)} rounds in turns, median (min - max)" if speed else ""
    return escape(f"{result.hardware}, load {result.load_average:.1f} before{rounds}")
