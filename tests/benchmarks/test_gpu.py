"""`benchmarks/gpu.py`: what it makes of figures, and its steps on the CPU with a tiny model."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gpu
import gpu_answers
import gpu_models
import gpu_steps
import pytest
import torch
from gpu_job import Job, Row
from rich.console import Console
from support.tiny_models import ENVIRONMENT
from support.tiny_tokenizers import byte_level_tokenizer
from tokenizers import AddedToken, Tokenizer

# vLLM and what it imports give warnings of their own.
pytestmark = pytest.mark.filterwarnings("default")

SCRIPT = Path(gpu.__file__)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny tokenizer that can think."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer.from_str(byte_level_tokenizer().to_str())
    made.add_tokens([AddedToken(mark, special=False) for mark in gpu_answers.THINK])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def answers(*tokens: list[int], gaps: float = 1.0) -> dict[str, list[dict[str, list[float]]]]:
    return {"answers": [{"prompt": [1], "tokens": t, "gaps": [gaps] * len(t)} for t in tokens]}


def test_a_first_difference_is_a_tie_only_if_two_tokens_were_about_as_good() -> None:
    original = answers([1, 2, 3], [4, 5, 6])
    same = {"same": 1, "ties": 0, "different": 0}
    assert gpu_answers.compare(original, answers([1, 2, 3], [4, 5, 7])) == same | {"different": 1}
    tied = answers([1, 2, 3], [4, 5, 7], gaps=0.01)
    assert gpu_answers.compare(original, tied) == same | {"ties": 1}
    tied["answers"][0]["prompt"] = [2]  # not the same model at all
    assert gpu_answers.compare(original, tied) == {"same": 0, "ties": 1, "different": 1}


def test_a_text_is_foreign_by_the_languages_that_it_was_asked_for() -> None:
    assert not gpu_answers.foreign("서울 is 1", "ko,en")
    assert gpu_answers.foreign("서울 is 1", "en")
    assert gpu_answers.foreign("中", "off")
    assert gpu_answers.foreign("a\ufffdb", "en")
    assert not gpu_answers.foreign("ab\ufffd", "en")


def test_a_shape_has_at_least_a_row_for_each_token(tokenizer: Path, tmp_path: Path) -> None:
    def config(*given: object) -> dict[str, int]:
        folder = gpu_models.save_shape(tmp_path / "model", *given)  # type: ignore[arg-type]
        return json.loads((folder / "config.json").read_text())

    tokens = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    rows = config("tiny", tokenizer)["vocab_size"]
    assert 0 <= rows - tokens.get_vocab_size() < 128
    assert config("tiny", tokenizer)["eos_token_id"] == tokens.token_to_id("<eos>")
    assert config("qwen3-8b", tokenizer)["vocab_size"] == 151_936
    assert config("tiny", tokenizer, 77)["vocab_size"] == 77


def test_the_original_is_restricted_to_what_the_overlay_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_kept

    monkeypatch.setenv(gpu_kept.OVERLAY, str(tmp_path))
    monkeypatch.setattr(gpu_kept, "kept_rows", lambda folder: [0, 2])
    model = SimpleNamespace(get_vocab_size=lambda: 4)
    kept = gpu_kept.KeptIds(SimpleNamespace(model_config=model), torch.device("cpu"))
    for more in ((), ("a context of V2",)):
        logits = kept.apply(torch.ones(2, 4), *more)
        assert torch.isfinite(logits).tolist() == [[True, False, True, False]] * 2


def test_the_table_names_what_failed_and_what_was_skipped() -> None:
    good = gpu.Outcome("law4", 3.0, (Row("greedy answers", "8 the same"),))
    wrong = replace(good, rows=(Row("greedy answers", "1 differs", is_good=False),))
    failed = gpu.Outcome("cost", 1.0, problem="not done in 600 s; its log is x")
    skipped = gpu.Outcome("drafts", 1.0, problem="V1 has no drafts", is_skipped=True)
    assert [one.is_good for one in (good, wrong, failed, skipped)] == [True, False, False, True]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(gpu.outcome_table([good, failed, skipped]))
    shown = console.export_text()
    for text in ("8 the same", "not done in 600 s", "skipped", "V1 has no drafts"):
        assert text in shown


def test_an_unknown_step_is_a_mistake(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--steps", "law5", "--tokenizer", str(tokenizer)]) == 2
    assert "expected some of models, law4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_that_takes_too_long_is_stopped(tokenizer: Path, tmp_path: Path) -> None:
    job = Job(str(tmp_path), str(tokenizer), "tiny", "tiny", "enko", 0.5, True)
    step = replace(gpu_steps.STEPS[0], seconds=0)
    found = gpu._run_part(step, "all", job, seconds=0.1)
    assert found["failed"].startswith("not done in 0 s")


# A script for borrowed GPU machines: what its steps show is held by tests of their own.
@pytest.mark.exhaustive
@pytest.mark.server
@pytest.mark.slow
def test_steps_run_on_a_cpu_with_a_tiny_model(tokenizer: Path, tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--shape", "tiny", "--speed-shape", "tiny", "--quick"]
    command += ["--steps", "law4", "--tokenizer", tokenizer, "--json", written]
    done = subprocess.run(
        [*map(str, command), "--work", str(tmp_path / "work")],
        env={**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = {one["step"]: one for one in json.loads(written.read_text())["steps"]}
    assert list(steps) == ["models", "law4"]
    figures = steps["law4"]["figures"]
    compared = gpu_answers.compare(figures["original"], figures["pruned"])
    assert compared == {"same": len(gpu_answers.PROMPTS), "ties": 0, "different": 0}


def test_drafts_that_the_runner_cannot_guard_are_skipped_with_its_reason(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM says of them on a CPU is in tests/serving/guard/test_guard_offline.py."""

    def refuse(*given: object, **options: object) -> None:
        raise ValueError(said)

    monkeypatch.setattr(gpu_answers, "engine", refuse)
    job = Job(str(tmp_path), str(tokenizer), "tiny", "tiny", "enko", 0.5, True)
    said = "vLLM's V1 model runner refuses logits processors with speculative decoding"
    assert gpu_answers.drafted(job, "all") == {"skipped": said}
    said = "no memory"
    with pytest.raises(ValueError, match="no memory"):
        gpu_answers.drafted(job, "all")
