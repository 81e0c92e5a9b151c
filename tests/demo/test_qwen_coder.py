"""The reference model of the paper's experiment: its makers' tokenizer and template; it answers."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.child import in_child
from tokenizers import Tokenizer

pytestmark = pytest.mark.slow
QUESTIONS = {
    "What is the capital of France? Answer in one sentence.": "Paris",
    "대한민국의 수도는 어디인가요? 한 문장으로 답하세요.": "서울",
}
ENDS = ("eos_token", "pad_token")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_its_tokenizer_is_the_makers_own(qwen_coder: Path, published_tokenizer) -> None:
    published = published_tokenizer("qwen2_5")
    ours, theirs = (
        json.loads(Tokenizer.from_file(str(path)).to_str())
        for path in (qwen_coder / "tokenizer.json", published)
    )
    assert ours == theirs
    config, expected = (
        read(folder / "tokenizer_config.json") for folder in (qwen_coder, published.parent)
    )
    assert [config[key] for key in ENDS] == [expected[key] for key in ENDS]
    # Qwen2.5-Coder's template doubles two braces in its words about tools; Qwen2.5's does not.
    template = config["chat_template"].replace("{{\\", "{\\").replace(">}}\\n", ">}\\n")
    assert template == expected["chat_template"] != config["chat_template"]


def test_its_head_is_tied_and_an_answer_ends_with_the_turn_or_the_text(qwen_coder: Path) -> None:
    from safetensors import safe_open

    config = read(qwen_coder / "config.json")
    with safe_open(qwen_coder / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    assert config["tie_word_embeddings"] and "lm_head.weight" not in shapes
    assert sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes.values()) == 1_543_714_304
    assert read(qwen_coder / "generation_config.json")["eos_token_id"] == [151_645, 151_643]


def answers(folder: Path, questions: Sequence[str]) -> list[str]:
    """What the model says; its weights take 3 GB."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    texts = []
    for question in questions:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
        written = answer[inputs["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(written, skip_special_tokens=True))
    return texts


@pytest.mark.exhaustive  # a minute, where the model is there
def test_it_answers_in_english_and_korean(qwen_coder: Path) -> None:
    texts = in_child(answers, qwen_coder, list(QUESTIONS))
    assert [wanted in text for wanted, text in zip(QUESTIONS.values(), texts, strict=True)] == [
        True,
        True,
    ], texts
