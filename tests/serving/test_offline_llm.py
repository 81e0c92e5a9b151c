"""Offline `LLM(model=DIR)` on an untied model: its output is that of the masked original."""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch
from tiny_models import ENVIRONMENT, KEPT, UNTIED, OverlayMaker

pytestmark = [pytest.mark.server, pytest.mark.slow]

PROMPTS = [[0, 5, 9, 2], [31, 1], [7] * 12]

TOKENS = 24

# A process of its own: vLLM starts its engine in yet another one, which imports this script again.
_GENERATE = """
import json, sys
from vllm import LLM, SamplingParams

def main():
    model, options, prompts, tokens = json.loads(sys.argv[1])
    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        **options,
    )
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
    print("ANSWER", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))

if __name__ == "__main__":
    main()
"""


def generate(script: Path, model: Path, options: dict[str, object]) -> list[list[int]]:
    """Greedy token ids of vLLM's offline engine, for each of the prompts."""
    script.write_text(_GENERATE)
    done = subprocess.run(
        [sys.executable, script, json.dumps([str(model), options, PROMPTS, TOKENS])],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stdout[-3000:] + done.stderr[-3000:]
    ids: list[list[int]] = json.loads(answers[-1].removeprefix("ANSWER "))
    return ids


def masked_greedy(model: Path, prompt: list[int]) -> list[int]:
    """Greedy continuation by transformers, of the original, with all but the kept ids masked."""
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(TOKENS):
            logits = network(torch.tensor([ids])).logits[0, -1, list(KEPT)]
            ids.append(KEPT[int(logits.argmax())])
    return ids[len(prompt) :]


def test_an_untied_overlay_generates_what_the_masked_original_does(
    untied_model: Path, make_overlay: OverlayMaker, tmp_path: Path
) -> None:
    original = copytree(untied_model, tmp_path / "original")
    overlay = make_overlay(original, UNTIED)
    moved = original.rename(tmp_path / "moved")
    # The base was moved since: Python says where, as --kprune-base does.
    options = {"additional_config": {"kprune": {"base": str(moved)}}}
    pruned = generate(tmp_path / "generate.py", overlay, options)
    for prompt, answer in zip(PROMPTS, pruned, strict=True):
        expected = masked_greedy(moved, [KEPT[i] for i in prompt])
        assert [KEPT[i] for i in answer] == expected
