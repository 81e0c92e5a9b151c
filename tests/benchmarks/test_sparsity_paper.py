"""`benchmarks/sparsity_paper.py`: its texts, a small grid from start to tables, and its claims."""

import gzip
import json
import math
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sparsity_paper_claims as claims
import torch
from sparsity_paper_cell import PARTS, Cell, Workplace, missing_parts, run_cell
from sparsity_paper_data import LANGUAGES, read_texts, write_calibration
from sparsity_paper_results import read_grids
from sparsity_paper_tables import write_tables
from support.tiny_architectures import ARCHITECTURES
from support.tiny_tokenizers import SENTENCES

from vllm_kprune.errors import KPruneError

AMOUNTS = {
    "samples": 2, "length": 16, "dtype": "float32", "perplexity_passages": 2, "parallel_lines": 2,
    "xquad_passages": 1, "xquad_questions_each": 1, "mgsm_problems": 2, "boolq_questions": 2,
}  # fmt: skip
WORDS = " ".join(SENTENCES).split()


def sentence(seed: int, words: int = 12) -> str:
    return " ".join(random.Random(seed).sample(WORDS, words))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that are read, each with made-up text."""
    root = tmp_path_factory.mktemp("data")
    for name in ("calib-tldr", "calib-udhr", "xquad", "eval-mgsm", "kobest-dev"):
        (root / name).mkdir()
    for place, language in enumerate(LANGUAGES):
        pages = [f"# x\n\n> {sentence(100 * place + n)}.\n\n- see <http>\n`x`" for n in range(40)]
        rows = "\n".join(json.dumps({"text": page}) for page in pages)
        (root / f"calib-tldr/{language}.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
        lines = ["head"] * 3 + [sentence(5000 + 100 * place + n) for n in range(4)]
        (root / f"calib-udhr/{language}.txt").write_text("\n".join(lines), encoding="utf-8")
        problems = [f"{sentence(6000 + 100 * place + n)}\t{n + 1}" for n in range(6)]
        (root / f"eval-mgsm/mgsm_{language}.tsv").write_text("\n".join(problems))
        paragraphs = [
            {
                "context": sentence(7000 + 100 * place + n),
                "qas": [{"question": "what?", "answers": [{"text": WORDS[n]}]}],
            }
            for n in range(6)
        ]
        xquad = json.dumps({"data": [{"paragraphs": paragraphs}]})
        (root / f"xquad/xquad.{language}.json.gz").write_bytes(gzip.compress(xquad.encode()))
    boolq = [f"{n}\t{sentence(9000 + n)}\tis it?\t{n % 2 == 0}" for n in range(210)]
    table = "\n".join(["ID\tText\tQuestion\tAnswer", *boolq])
    (root / "kobest-dev/boolq_first400.tsv").write_text(table, encoding="utf-8")
    return root


def workplace(data: Path, folder: Path, amounts: Mapping[str, Any] = AMOUNTS) -> Workplace:
    calibration = write_calibration(data, folder / "calibration", 2)
    base = folder / "base"
    if not base.is_dir():
        ARCHITECTURES["llama-3.2"].save(base)
    cells = folder / "out" / "tiny"
    cells.mkdir(parents=True, exist_ok=True)
    texts = read_texts(data, amounts, list(calibration.values()))
    return Workplace(base, cells, cells / "scratch-1", "cpu", amounts, calibration, texts)


def test_seeds_share_no_page_and_calibration_is_not_what_is_measured(
    data: Path, tmp_path: Path
) -> None:
    files = write_calibration(data, tmp_path, 2)
    one, two = (set(files["ko", seed].read_text().splitlines()) - {""} for seed in (0, 1))
    assert len(one) == len(two) == 20
    assert not one & two
    assert not any("<http" in line or "`" in line for line in one)
    texts = read_texts(data, AMOUNTS, list(files.values()))
    assert {question.task for question in texts["ko"].questions} == {"boolq"}
    assert {question.task for question in texts["ar"].questions} == {"xquad"}
    assert {question.task for question in texts["en"].questions} == {"xquad", "mgsm"}
    files["ko", 0].write_text(f"{texts['de'].perplexity[0]}\n")
    with pytest.raises(KPruneError, match=r"de: .* is in calibration and evaluation text"):
        read_texts(data, AMOUNTS, list(files.values()))
    with pytest.raises(KPruneError, match=r"KPRUNE_DATA names the folder with the texts"):
        write_calibration(tmp_path, tmp_path, 1)


@pytest.fixture
def small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, no waiting for the disk, and one thread for tiny matrices."""
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("small_machine")
@pytest.mark.slow
def test_a_small_grid_gives_tables_and_claims_and_goes_on_where_it_was(
    data: Path, tmp_path: Path
) -> None:
    place, every = workplace(data, tmp_path), list(PARTS)
    original = Cell("tiny")
    pruned = [Cell("tiny", "wanda", name, seed) for name in ("ko", "en") for seed in (0, 1)]
    for cell in (original, *pruned):
        wanted = missing_parts(cell, place, every)
        assert wanted == [part for part in every if part != "masks" or cell is not original]
        run_cell(cell, place, wanted)
        assert missing_parts(cell, place, every) == []
    assert not (place.folder / "scratch").exists()
    more = workplace(data, tmp_path, {**AMOUNTS, "perplexity_passages": 1})
    assert missing_parts(pruned[0], more, every) == ["perplexity"]
    half = workplace(data, tmp_path, {**AMOUNTS, "dtype": "bfloat16"})
    assert missing_parts(pruned[0], half, every) == every
    run_cell(pruned[0], half, every)
    assert missing_parts(pruned[0], half, every) == []
    (grid,) = read_grids(tmp_path / "out")
    assert (grid.languages, grid.seeds, len(grid.masks)) == (("en", "ko"), 2, 4)
    same = grid.similarity
    assert same is not None
    assert same.models[0].sparsity == pytest.approx(0.5)
    # Exactly the bits per character that `kprune analyze` has found.
    values = grid.original["parts"]["perplexity"]["values"]["ko"]
    assert grid.nats(grid.original)["ko"] / math.log(2) == pytest.approx(
        values["bits_per_character"]["value"]
    )
    assert len(grid.changes("agnostic")["ko", 0]["de"]) == 2  # layers
    text = write_tables(tmp_path / "out").read_text("utf-8")
    assert "## tiny, wanda, 4 cells" in text
    assert "not measured" not in text
    page = (tmp_path / "out/sparsity-paper.html").read_text("utf-8")
    assert page.count("<section>") == 1 + 4  # claims; text and task, masks, features twice
    assert "calibrated: ko" in page
    read = json.loads((tmp_path / "out/sparsity-paper.json").read_text("utf-8"))
    assert len(read["tiny wanda"]["claims"]) == len(claims.CLAIMS)


def results(task: Mapping[claims.Key, Mapping[str, float]]) -> claims.Results:
    nothing: dict[Any, Any] = {}
    return claims.Results({}, task, nothing, nothing, nothing, nothing, nothing)


def test_claims_on_cases_worked_out_by_hand() -> None:
    # Loss 1 with the own calibration, 2 and 4 with the others: 3 - 1 = 2 saved in "a".
    measured = {
        ("a", 0): {"a": 1.0, "b": 5.0, "c": 3.0},
        ("b", 0): {"a": 2.0, "b": 3.0, "c": 2.0},
        ("c", 0): {"a": 4.0, "b": 4.0, "c": 2.0},
    }
    assert claims.own_advantage(measured) == {"a": 2.0, "b": 1.5, "c": 0.5}
    low, high = claims.interval([2.0, 1.5, 0.5])
    # Mean 4/3, standard deviation 0.7638, t(2) = 4.303: 1.3333 -+ 1.8974.
    assert (low, high) == pytest.approx((-0.5641, 3.2308), abs=1e-3)
    found = {one.claim: one for one in claims.answer_claims(results(measured))}
    denied = found["It does not reliably improve the downstream task"]
    assert (denied.verdict, denied.mean) == ("cannot be told", pytest.approx(4 / 3))
    surely = {
        (c, s): {e: 1.0 + (c != e) + 0.01 * (ord(e) + s) for e in "abcdef"}
        for c in "abcdef"
        for s in (0, 1)
    }
    found = {one.claim: one for one in claims.answer_claims(results(surely))}
    assert found["It does not reliably improve the downstream task"].verdict == "does not hold here"
    other = found["Another language is sometimes the better calibration for the task"]
    assert (other.verdict, other.mean) == ("does not hold here", pytest.approx(-1.0))
    assert found["It helps perplexity more than the task"].mean is None


def test_the_best_other_language_is_chosen_on_the_other_seeds() -> None:
    # b is best for a by chance in seed 0 and worst in seed 1: no advantage may come from choosing.
    measured = {
        ("a", 0): {"a": 2.0}, ("b", 0): {"a": 1.0}, ("c", 0): {"a": 2.0},
        ("a", 1): {"a": 2.0}, ("b", 1): {"a": 3.0}, ("c", 1): {"a": 2.5},
    }  # fmt: skip
    full = {key: {**value, "b": 0.0, "c": 0.0} for key, value in measured.items()}
    # On seed 1, c is chosen for seed 0: 2 - 2 = 0. On seed 0, b for seed 1: 2 - 3 = -1.
    assert claims.best_other_advantage(full)["a"] == pytest.approx(-0.5)
