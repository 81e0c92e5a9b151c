"""A user's mistake at `vllm serve` is one line that says what to do, and exit code 2."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from support.forks import ask
from support.tiny_models import overlay_by_hand

pytestmark = pytest.mark.slow

# What was done wrong -> what the one line has to say.
CASES = {
    "missing folder": "does not exist",
    "missing folder with a profile": "does not exist",
    "unknown profile": "unknown profile 'enk'; did you mean 'enko'?",
    "unknown language": "languages: unknown 'kr'; did you mean 'ko'?",
    "hanja for no language": "--kprune-hanja needs --kprune-languages or --kprune-scripts",
    "pruner that is not there": "--kprune-input-pruner",
    "pruner that cannot rank": "has no tokenizer.json",
    "keep without a pruner": "--kprune-keep needs --kprune-input-pruner MODEL, or self",
    "unknown scorer": "expected sentences, rarity, question, attention or random",
    "unknown plugin": "no vLLM plugin 'kprun'; did you mean 'kprune'?",
    "edited manifest": "kprune.json was edited (its fingerprint does not match); build it again",
    "broken manifest": "is not readable JSON",
    "changed base": "model.safetensors changed since the overlay was built from it",
    "moved base": "--kprune-base",
    "another tokenizer": "leave the option out",
    "drafts of the original": "method eagle3 does not fit a pruned model",
    "drafts of the original, in one step": "kprune build DRAFT --profile enko",
    "draft model of the original, in YAML": "it is not pruned itself",
    "untested vLLM": "set VLLM_KPRUNE_ALLOW_UNTESTED_VLLM=1 to try it",
    "port in use": "is in use; stop what uses it, or choose another with --port",
}


def _case(*words: Any, **more: Any) -> dict[str, Any]:
    return {"words": [str(word) for word in words], **more}


@pytest.fixture(scope="module")
def busy_port() -> Iterator[int]:
    """A port that something else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture(scope="module")
def answers(
    tied_model: Path, busy_port: int, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Exit code and output of every case."""
    folder = tmp_path_factory.mktemp("bad-input")
    plugin = ("--plugin", "kprune")

    def overlay(name: str) -> tuple[Path, Path]:
        base = copytree(tied_model, folder / f"{name}-base")
        return overlay_by_hand(folder / name, base), base

    whole, _ = overlay("whole")
    edited, _ = overlay("edited")
    text = (edited / "kprune.json").read_text()
    (edited / "kprune.json").write_text(text.replace('"third"', '"other"'))
    broken, _ = overlay("broken")
    (broken / "kprune.json").write_text("{")
    changed, base = overlay("changed")
    with (base / "model.safetensors").open("ab") as weights:
        weights.write(b"\0")
    orphan, base = overlay("orphan")
    base.rename(folder / "elsewhere")
    missing = folder / "missing"
    two = {"num_speculative_tokens": 2}
    yaml = folder / "serve.yaml"
    drafts = json.dumps({"model": str(tied_model), **two})
    yaml.write_text(f"model: {whole}\nspeculative-config: '{drafts}'\n")
    cases = [
        _case(missing, *plugin),
        _case(missing, "--kprune-profile", "enko"),
        _case(tied_model, "--kprune-profile", "enk"),
        _case(tied_model, "--kprune-languages", "ko,kr"),
        _case(tied_model, "--kprune-hanja", "all"),
        _case(tied_model, "--kprune-input-pruner", missing),
        _case(tied_model, "--kprune-input-pruner", "self"),
        _case(tied_model, "--kprune-keep", "0.8"),
        _case(tied_model, "--kprune-input-pruner", "self", "--kprune-scorer", "best"),
        _case(tied_model, "--plugin", "kprun"),
        _case(edited),
        _case(broken),
        _case(changed),
        _case(orphan, *plugin),
        _case(whole, "--tokenizer", tied_model),
        _case(whole, "-sc", json.dumps({"method": "eagle3", "model": str(tied_model), **two})),
        _case(tied_model, "--kprune-profile", "enko", "--spec-method", "mtp", "--spec-tokens", "2"),
        _case("--config", yaml),
        _case(whole, vllm="0.40.0"),
        _case(whole, *plugin, "--host", "127.0.0.1", "--port", busy_port),
    ]
    return dict(zip(CASES, ask("serve_cases.py", cases, folder), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "message"), list(CASES.items()))
def test_a_mistake_is_one_line_and_exit_code_2(
    case: str, message: str, answers: dict[str, dict[str, Any]]
) -> None:
    answer = answers[case]
    lines = answer["text"].strip().splitlines()
    assert answer["code"] == 2, answer["text"][-3000:]
    assert lines[-1].startswith("vllm serve: ")
    assert message in lines[-1]
    assert "Traceback" not in answer["text"]
