"""A body that is quantised, in the formats that vLLM's CPU build runs, is served as it was.

INT8 is computed in float32 here, but on CPUs with AMX, whose kernel has none (vLLM 0.32 takes it
all the same); nor has the kernel of INT4. Those are in bfloat16. The three formats of INT4 hold the
same numbers: one original is enough for all, and one format where `--exhaustive` is not given. vLLM
builds the kernel of INT4 only for CPUs with AVX-512: on others its tests are skipped.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.forks import ask
from support.offline_pairs import TEXTS, Pair, make_pair
from support.run_limits import EXHAUSTIVE
from support.tiny_architectures import ARCHITECTURES
from support.tiny_quantised import quantise

from vllm_kprune.checkpoint.export import export_overlay

BFLOAT16 = {"dtype": "bfloat16"}
INT8_OPTIONS = BFLOAT16 if torch.cpu._is_amx_tile_supported() else {}
pytestmark = [pytest.mark.server, pytest.mark.slow]

# The kernels take sizes that are multiples of 32.
ARCHITECTURE = replace(ARCHITECTURES["llama-3.1"], settings={"intermediate_size": 64})
# One of them shows what the others would: what differs between them is vLLM's to read.
INT4 = ("int4", "awq", "gptq")
INT4_CASES = [
    pytest.param(name, marks=pytest.mark.exhaustive if name != INT4[0] else []) for name in INT4
]


@pytest.fixture(scope="module")
def formats(request: pytest.FixtureRequest, vllm_ready: None) -> tuple[str, ...]:
    """The formats that this CPU and this run have."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    if not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        return ("int8",)
    return ("int8", *(INT4 if request.config.getoption(EXHAUSTIVE) else INT4[:1]))


@pytest.fixture(scope="module")
def pairs(formats: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """The same tiny Llama in each format, and its overlay."""
    folders = {name: tmp_path_factory.mktemp(name) for name in formats}
    return {
        name: make_pair(quantise(ARCHITECTURE.save(folder / "original"), name), folder)
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def answers(
    pairs: dict[str, Pair], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[list[int]]]:
    """Greedy ids of the original vocabulary, by what was asked."""
    folder = tmp_path_factory.mktemp("jobs")
    export_overlay(pairs["int8"].overlay, folder / "int8")
    pruned, original = pairs["int8"].jobs(options=INT8_OPTIONS)
    jobs = {
        "int8 original": original,
        "int8 overlay": pruned,
        "int8 export": {**pruned, "model": str(folder / "int8")},
    }
    for name in (name for name in pairs if name in INT4):
        jobs[f"{name} overlay"], original = pairs[name].jobs(options=BFLOAT16)
        jobs["int4 original"] = original
    found: dict[str, Any] = dict(
        zip(jobs, ask("offline_jobs.py", list(jobs.values()), folder), strict=True)
    )
    assert not any("error" in answer for answer in found.values()), found
    kept = pairs["int8"].original_ids
    return {
        name: answer["ids"] if name.endswith("original") else [kept(ids) for ids in answer["ids"]]
        for name, answer in found.items()
    }


def test_an_int8_body_answers_as_the_masked_original_from_overlay_and_export(
    answers: dict[str, list[list[int]]],
) -> None:
    assert len(set(map(tuple, answers["int8 original"]))) == len(TEXTS)
    assert answers["int8 overlay"] == answers["int8 export"] == answers["int8 original"]


@pytest.mark.parametrize("name", INT4_CASES)
def test_an_int4_body_answers_as_the_masked_original(
    name: str, answers: dict[str, list[list[int]]]
) -> None:
    if "int4 original" not in answers:
        pytest.skip("vLLM has no INT4 kernel for this CPU, which lacks AVX-512")
    assert answers["int4 original"] != answers["int8 original"]
    assert answers[f"{name} overlay"] == answers["int4 original"]
