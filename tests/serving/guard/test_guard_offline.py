"""vLLM's `LLM` class: a default guard, beams, preemption, prompts in chunks; input pruning."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import ENVIRONMENT

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.policy import GuardPolicy

pytestmark = [pytest.mark.server, pytest.mark.slow]

ALLOWED = allowed_characters(GuardPolicy(languages=("en", "ko")))
GUARDED = {"kprune": {"languages": "ko,en"}}

# One engine in this process. Few blocks of KV cache, so that requests are preempted and resumed,
# and few tokens for each step, so that prompts come in chunks; these end inside a character.
_SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.sampling_params import BeamSearchParams

def main():
    model = sys.argv[1]
    llm = LLM(
        model=model,
        enforce_eager=True,
        dtype="float32",
        max_model_len=256,
        block_size=16,
        num_gpu_blocks_override=58,
        max_num_batched_tokens=48,
        max_num_seqs=8,
        disable_log_stats=False,
        logprobs_mode="processed_logprobs",
        additional_config={"kprune": {"languages": "ko,en", "input_pruner": "self"}},
    )
    tokenizer = llm.get_tokenizer()
    begun = [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "서".encode()[:2]]
    prompt = [*tokenizer.encode("日本の首都は東京です。大阪は、" * 8), *begun]
    hot = dict(temperature=1.5, max_tokens=40, ignore_eos=True, n=6)  # CPU: no seed with chunks

    def ids(**more):
        (answer,) = llm.generate([{"prompt_token_ids": prompt}], SamplingParams(**hot | more))
        return [list(output.token_ids) for output in answer.outputs]

    beams = llm.beam_search(
        [{"prompt": "日本の首都は"}], BeamSearchParams(beam_width=4, max_tokens=12)
    )
    start = len(tokenizer.encode("日本の首都は"))
    try:
        ids(extra_args={"kprune_languages": "kx"})
        error = None
    except ValueError as raised:
        error = str(raised)
    text = "The captain of the last ship was a man who had never been at sea before. " * 6
    half = {"kprune_keep": 0.5, "kprune_min_tokens": 0}
    # A chat is pruned for the message that follows.
    asked = {**half, "kprune_query": "Who?"}
    each = [SamplingParams(max_tokens=1, extra_args=args) for args in (asked, None, half)]
    chat = [{"role": "user", "content": text}, {"role": "user", "content": "Who?"}]
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}"
    pruned = {
        "text": text,
        "generate": [
            (one.prompt, one.prompt_token_ids)
            for one in llm.generate([text, f"<kprune>{text}</kprune>"], each[:2])
        ],
        "chat": llm.chat(chat, each[2], chat_template=template)[0].prompt,
    }
    answer = {
        "pruned": pruned,
        "prompt": prompt,
        "guarded": ids(),
        "off": ids(extra_args={"kprune_languages": "off"}, max_tokens=16),
        "beams": [tokenizer.decode(s.tokens[start:]) for s in beams[0].sequences],
        "error": error,
        "preemptions": sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"),
    }
    print("ANSWER", json.dumps(answer))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def answer(reference_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script above found."""
    script = tmp_path_factory.mktemp("guard-offline") / "generate.py"
    script.write_text(_SCRIPT)
    done = subprocess.run(
        [sys.executable, script, str(reference_model)],
        env={**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("ANSWER "))
    return found


@pytest.fixture(scope="module")
def texts(answer: dict[str, Any], reference_model: Path) -> dict[str, list[str]]:
    """Answers as text, from where the prompt's unfinished character begins."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(reference_model / "tokenizer.json"))
    begun = answer["prompt"][-2:]
    return {
        kind: [tokenizer.decode([*begun, *ids]) for ids in answer[kind]]
        for kind in ("guarded", "off")
    }


def foreign(text: str) -> set[str]:
    return {character for character in text.rstrip("\ufffd") if not ALLOWED[ord(character)]}


def test_the_default_guard_holds_through_preemption_and_prompts_in_chunks(
    answer: dict[str, Any], texts: dict[str, list[str]]
) -> None:
    assert answer["preemptions"] > 0
    assert len(texts["guarded"]) == 6
    assert set().union(*map(foreign, texts["guarded"])) == set()
    # At most the three bytes of a last character that max_tokens cut off.
    assert all(text.count("\ufffd") <= 3 for text in texts["guarded"])


def test_a_request_can_switch_it_off(texts: dict[str, list[str]]) -> None:
    assert any(foreign(text) for text in texts["off"])


def test_beams_are_guarded(answer: dict[str, Any]) -> None:
    assert len(answer["beams"]) == 4
    assert set().union(*map(foreign, answer["beams"])) == set()


def test_each_prompt_is_pruned_as_its_own_parameters_say(answer: dict[str, Any]) -> None:
    text = answer["pruned"]["text"]
    (short, few), (whole, many) = answer["pruned"]["generate"]
    assert whole == text
    rest = iter(text)
    assert all(character in rest for character in short)
    assert len(few) <= 0.5 * len(many) + 2


def test_earlier_turns_of_a_chat_are_pruned(answer: dict[str, Any]) -> None:
    short = answer["pruned"]["generate"][0][0]
    assert answer["pruned"]["chat"] == f"user: {short}\nuser: Who?\n"


def test_a_bad_option_is_a_value_error(answer: dict[str, Any]) -> None:
    assert "unknown 'kx'" in answer["error"]


def test_a_default_guard_and_drafts_on_the_v1_runner_are_refused_before_anything_is_loaded(
    reference_model: Path, vllm_ready: None
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    drafts = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    args = EngineArgs(
        model=str(reference_model), speculative_config=drafts, additional_config=GUARDED
    )
    with pytest.raises(
        KPruneError, match=r"V1 model runner .* leave --speculative-config \(-sc\) out"
    ):
        args.create_engine_config()
