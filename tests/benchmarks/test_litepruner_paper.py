"""The paper's tables in small: what is pruned, how a claim is judged, and a run on a tiny model."""

import gzip
import json
import sys
from pathlib import Path

import litepruner_paper as paper
import pytest
from litepruner_paper import TABLES, Item, verdict
from support.tiny_rankers import RANKERS

WORDS = "the cat sat on the mat and the weather in Seoul is fine today for cats"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Made-up files in the form of MGSM and XQuAD: 24 questions, and 24 passages of 4 questions."""
    (tmp_path / "eval-mgsm").mkdir()
    rows = [f"How many cats are {n} and {n} cats?\t{2 * n}" for n in range(24)]
    (tmp_path / "eval-mgsm" / "mgsm_en.tsv").write_text("\n".join(rows))
    (tmp_path / "xquad").mkdir()
    paragraphs = []
    for n in range(24):
        qas = [
            {"question": f"Who sat {n} {k}?", "answers": [{"text": f"cat {k}"}]} for k in range(4)
        ]
        paragraphs.append({"context": f"{WORDS[n % 5 :]} {n}", "qas": qas})
    content = json.dumps(
        {"data": [{"paragraphs": paragraphs[:12]}, {"paragraphs": paragraphs[12:]}]}
    )
    with gzip.open(tmp_path / "xquad" / "xquad.en.json.gz", "wt") as stream:
        stream.write(content)
    return tmp_path


@pytest.mark.parametrize("table", TABLES)
def test_the_gold_answer_is_first_and_no_demonstration_is_asked(table: str, data: Path) -> None:
    items: list[Item] = list(TABLES[table](data, "en", 5))
    assert len(items) > 10
    for item in items:
        assert len(set(item.candidates)) == len(item.candidates) == 4
        assert not any(item.question in text for text, _ in item.texts)
    assert len(items[0].texts) == {"mgsm": 5, "choice": 6, "retrieval": 3}[table]


def test_a_claim_holds_only_if_a_loss_is_ruled_out() -> None:
    assert verdict(-0.01, 0.03, 0.02) == "holds"
    assert verdict(-0.3, -0.1, 0.02) == "does not hold"
    assert verdict(-0.1, 0.1, 0.02) == "cannot be told yet"


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RANKERS["llama"].save(tmp_path / "tiny")
    monkeypatch.setenv("KPRUNE_DATA", str(data))
    cache = tmp_path / "cache.jsonl"
    given = ["paper", str(folder), "--table", "mgsm", "--items", "2", "--cache", str(cache)]

    def output(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [*given, *more])
        paper.main()
        return capsys.readouterr().out

    assert not output("--plan").startswith("0 tokens")
    table = output()
    assert "mgsm en, 5 shots: 2 items" in table
    assert output("--plan").startswith("0 tokens")
    read = cache.read_bytes()
    assert output() == table
    assert cache.read_bytes() == read
