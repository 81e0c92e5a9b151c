"""A vLLM that has renamed what kprune hooks into: who did not ask never notices, who did is told.

It is the installed one with classes renamed in all of its files, started as users start it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from support.renamed_vllm import rename_classes
from support.run_limits import EXHAUSTIVE
from support.tiny_models import ENVIRONMENT, OverlayMaker

pytestmark = [pytest.mark.slow, pytest.mark.server]

OWNERS = (
    *("EngineArgs", "ServeSubcommand", "InputProcessor", "OnlineRenderer", "DefaultModelLoader"),
    *("GenerateBaseServing", "OpenAIServingModels", "OfflineInferenceMixin"),
    *("BeamSearchOfflineMixin", "AuthenticationMiddleware", "CompletionRequest"),
)
_SERVE = "from vllm.entrypoints.cli.main import main; main()"
_GENERATE = """
import json, sys
from vllm import LLM, SamplingParams
model, extra = sys.argv[1], json.loads(sys.argv[2])
llm = LLM(model=model, skip_tokenizer_init=True, enforce_eager=True, max_model_len=64,
          dtype="float32", additional_config=extra)
params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
(answer,) = llm.generate([{"prompt_token_ids": [1, 2, 3]}], params)
print("TOKENS", len(answer.outputs[0].token_ids))
"""

Renamed = Callable[[Sequence[str]], Path]
Done = subprocess.CompletedProcess


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Renamed:
    """Makes a vLLM with classes renamed, of each kind only one."""

    @cache
    def make(words: tuple[str, ...]) -> Path:
        return rename_classes(words, tmp_path_factory.mktemp(words[0]))

    return lambda words: make(tuple(words))


def run(vllm: Path, code: str, *words: object) -> Done[str]:
    path = os.pathsep.join([str(vllm), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_an_llm_that_did_not_ask_runs_and_says_nothing_of_kprune(
    renamed: Renamed, tied_model: Path
) -> None:
    done = run(renamed(OWNERS), _GENERATE, tied_model, "{}")
    assert "TOKENS 4" in done.stdout, done.stderr[-3000:]
    assert "kprune" not in (done.stdout + done.stderr).lower().replace(str(tied_model), "")


def test_a_command_that_did_not_ask_is_configured_as_ever(renamed: Renamed) -> None:
    """Up to the model, which is not there: vLLM says so itself."""
    done = run(renamed(OWNERS), _SERVE, "serve", "./no-such-model")
    assert done.returncode == 1
    assert "no-such-model" in done.stderr
    # A traceback of vLLM's shows where it is installed: in a checkout that may be named after us.
    text = (done.stdout + done.stderr).replace(sys.prefix, "")
    assert "kprune" not in text.lower()


def test_a_command_that_asked_ends_with_the_feature_and_the_name(
    renamed: Renamed, tied_model: Path, make_overlay: OverlayMaker, request: pytest.FixtureRequest
) -> None:
    """`test_seams` has every name; of a whole command two are enough, each takes ten seconds."""
    overlay = make_overlay(tied_model)
    guard, pruner = ("--kprune-languages", "ko"), ("--kprune-input-pruner", "self")
    cases = [
        (["ServeSubcommand"], [tied_model, *guard], "command line: {}:ServeSubcommand.cmd"),
        (["DefaultModelLoader"], [overlay], "pruned vocabulary: {}:DefaultModelLoader.__init__"),
    ]
    more = [
        (["EngineArgs"], [tied_model, *guard], "command line: {}:EngineArgs.add_cli_args"),
        (["InputProcessor"], [tied_model, *guard], "request checks: {}:InputProcessor._validate"),
        (["OnlineRenderer"], [tied_model, *pruner], "input pruning: {}:OnlineRenderer.warmup"),
    ]
    if request.config.getoption(EXHAUSTIVE):
        cases += more

    def serve(case: tuple[list[str], list[object], str]) -> Done[str]:
        return run(renamed(case[0]), _SERVE, "serve", *case[1])

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(serve, cases))
    for (_, _, expected), done in zip(cases, answers, strict=True):
        feature, name = expected.split("{}")
        lines = [line for line in done.stderr.splitlines() if line.startswith("vllm serve: ")]
        assert done.returncode == 2, done.stderr[-3000:]
        assert len(lines) == 1
        assert lines[0].startswith(f"vllm serve: {feature}vLLM ")
        assert name in lines[0]
        assert ": expected " in lines[0] and ", found no " in lines[0]
        assert "install vLLM >=0.31,<0.34, or " in lines[0]
        assert "Traceback" not in done.stderr


def test_an_llm_that_asked_for_a_guard_does_not_run_without_it(
    renamed: Renamed, tied_model: Path
) -> None:
    """Its settings are made by a class that kprune does not know; the next hook notices."""
    done = run(renamed(["EngineArgs"]), _GENERATE, tied_model, '{"kprune": {"languages": "ko"}}')
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "KPruneError: language guard: vLLM " in last
    assert "vllm.engine.arg_utils:EngineArgs.create_engine_config: expected " in last
