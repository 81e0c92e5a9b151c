"""The experiment of Kurz et al. on small models: which calibration language to prune with.

.venv/bin/python benchmarks/sparsity_paper.py [--models NAME ...] [--seeds N] [--tables]
    [--device auto|cpu|cuda] [--threads N] [--share K/N] [-o build/sparsity-paper]

Each model is pruned to 50 % with Wanda and with SparseGPT, calibrated in each of seven languages
with several seeds, and measured in all of them: perplexity, bits per character, tasks scored by the
likelihood of the answer, masks, features and neurons. `KPRUNE_DATA` names the folder with the texts
(`sparsity_paper_data.py`). `AMOUNTS` says how much of everything.

A pruned model is a cell: OUT/MODEL/METHOD-LANGUAGE-SEED.json, with its mask beside it, one bit for
each weight. A cell's weights are deleted when it is measured. Finished cells are not repeated, so
an interrupted run goes on. `--tables` only makes the tables, figures and claims of the cells that
are there: OUT/sparsity-paper.md, .html and .json.

A small model leaves most of a GPU or of many cores idle: start N processes with --share 1/N ...
N/N, which divide the cells among themselves, and make the tables afterwards.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import transformers
from filelock import FileLock, Timeout
from sparsity_paper_cell import PARTS, Cell, Workplace, missing_parts, run_cell
from sparsity_paper_data import LANGUAGES, read_texts, write_calibration
from sparsity_paper_tables import write_tables

from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.device import pick_device

METHODS = ("wanda", "sparsegpt")
SEEDS = 3
_ALL = {"languages": LANGUAGES, "methods": METHODS, "seeds": SEEDS, "dtype": "bfloat16"}
# Cells, calibration (samples of so many tokens), and what is measured in each language, in `dtype`,
# which is that of the weights. Pruning itself is done in float32.
AMOUNTS: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m-instruct": {
        **_ALL, "samples": 8, "length": 256, "perplexity_passages": 2, "parallel_lines": 4,
        "xquad_passages": 3, "xquad_questions_each": 3, "mgsm_problems": 4, "boolq_questions": 8,
    },
    "gemma-3-270m": {
        **_ALL, "samples": 12, "length": 256, "perplexity_passages": 4, "parallel_lines": 8,
        "xquad_passages": 5, "xquad_questions_each": 3, "mgsm_problems": 6, "boolq_questions": 12,
    },
    "qwen2.5-coder-1.5b-instruct": {
        "languages": ("en", "ko", "zh"), "methods": METHODS, "seeds": 1, "dtype": "bfloat16",
        "samples": 6, "length": 256, "perplexity_passages": 2, "parallel_lines": 4,
        "xquad_passages": 2, "xquad_questions_each": 3, "mgsm_problems": 4, "boolq_questions": 6,
    },
}  # fmt: skip


def main() -> None:
    """Run every cell that is not finished, and write the tables."""
    options = parse()
    if not options.tables:
        run_cells(options)
        if options.share != (1, 1):
            return  # the other shares are not there yet
    path = write_tables(options.output)
    say(path.read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(AMOUNTS), default=list(AMOUNTS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="run fewer seeds")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tables", action="store_true", help="only the tables of what is there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="threads to calculate with")
    parser.add_argument("--share", type=_share, default=(1, 1), help="K/N: every Nth cell")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/sparsity-paper"))
    return parser.parse_args()


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d?)/([1-9]\d?)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give K/N, such as 2/4")
    return int(found[1]), int(found[2])


def planned(models: list[str], seeds: int) -> Iterator[Cell]:
    """All cells: a whole seed of all models before the next, so that half of a run says much."""
    for seed in range(seeds):
        for model in models:
            amounts = AMOUNTS[model]
            if seed == 0:
                yield Cell(model)
            if seed < amounts["seeds"]:
                for language in amounts["languages"]:
                    for method in amounts["methods"]:
                        yield Cell(model, method, language, seed)


def run_cells(options: argparse.Namespace) -> None:
    data = os.environ.get("KPRUNE_DATA")
    if not data:
        raise KPruneError("KPRUNE_DATA is not set; it names the folder with the texts")
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    # One line for each cell is enough to see how far it is.
    transformers.utils.logging.disable_progress_bar()
    places = {model: prepare(model, Path(data), options) for model in options.models}
    number, of = options.share
    cells = list(planned(options.models, options.seeds))[number - 1 :: of]
    todo = [
        (cell, parts)
        for cell in cells
        if (parts := missing_parts(cell, places[cell.model], options.parts))
    ]
    say(f"{len(cells)} cells, {len(todo)} to do")
    clock = Clock([cell for cell, _ in todo])
    with ExitStack() as locks:
        for place in places.values():
            locks.enter_context(alone(place))
        for cell, parts in todo:
            run_cell(cell, places[cell.model], parts)
            say(f"{cell.model} {cell.name}: {clock.done(cell)}")


@contextmanager
def alone(place: Workplace) -> Iterator[None]:
    """Refuse to work beside another run on the same share of a model's cells."""
    try:
        with FileLock(place.scratch.with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise KPruneError(
            f"another run is at work in {place.folder}; name other --models or another --share"
        ) from None


def prepare(model: str, data: Path, options: argparse.Namespace) -> Workplace:
    """The texts of a model, and where its cells go."""
    amounts, output = AMOUNTS[model], options.output
    calibration = write_calibration(data, output / "calibration", SEEDS)
    texts = read_texts(data, amounts, list(calibration.values()))
    folder = output / model
    folder.mkdir(parents=True, exist_ok=True)
    return Workplace(
        base=demo_model(model, log=say),
        folder=folder,
        scratch=folder / f"scratch-{options.share[0]}",
        device=str(pick_device(options.device)),
        amounts=amounts,
        calibration=calibration,
        texts=texts,
    )


class Clock:
    """Tells how long the rest takes, from the cells of the same model and method."""

    def __init__(self, todo: list[Cell]) -> None:
        self.todo, self.before = todo, time.monotonic()
        self.seconds: dict[tuple[str, str], list[float]] = {}

    def done(self, cell: Cell) -> str:
        now = time.monotonic()
        self.seconds.setdefault((cell.model, cell.method), []).append(now - self.before)
        self.todo.remove(cell)
        known = {kind: sum(took) / len(took) for kind, took in self.seconds.items()}
        left = sum(known.get((c.model, c.method), 0) for c in self.todo) / 60
        new = sum((c.model, c.method) not in known for c in self.todo)
        text = f"{now - self.before:.0f} s; {len(self.todo)} cells left, about {left:.0f} min"
        self.before = now
        return text + (f" and {new} of kinds that no time is known of" if new else "")


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        main()
    except KPruneError as error:
        sys.exit(f"error: {error}")
