"""Perplexity: against the whole model at once, and a case worked out by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_tokenizers import SENTENCES, TINY
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from vllm_kprune.analyze import perplexity
from vllm_kprune.analyze.perplexity import measure_perplexity, signal_to_noise
from vllm_kprune.analyze.ratio import estimate_ratio, student_quantile
from vllm_kprune.analyze.windows import begin_ids, cut_windows
from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.encoder import load_encoder

TEXT = " ".join(SENTENCES)


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def whole_loss(model: Any, ids: list[int], scored: int) -> float:
    """The loss of the last tokens, from all logits of the model at once."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return float(losses[len(losses) - scored :].sum())


FAMILIES = ("aya-expanse", "gemma3-multimodal", "gemma3-text", "llama-3.1", "qwen2-tied",
            "qwen3-moe", "qwen3-untied")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_that_of_the_whole_model(
    saved: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, encoder = load(saved(name)).train(), load_encoder(saved(name))
    # Logits of three positions at a time.
    monkeypatch.setattr(perplexity, "_MOST_LOGITS", 3 * model.get_output_embeddings().out_features)
    found = measure_perplexity(model, encoder, {"xx": TEXT}, length=40, stride=25)["xx"]
    assert model.training
    begin = begin_ids(encoder, model.config)
    ids = encoder.encode(TEXT, add_special_tokens=False).ids
    model.eval()
    # The first window has all its tokens scored, the others those that are new.
    width, start, done, nats = 40 - len(begin), 0, 0, 0.0
    while done < len(ids):
        end = min(start + width, len(ids))
        nats += whole_loss(model, [*begin, *ids[start:end]], end - done)
        start, done = start + 25, end
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (found.tokens, found.characters) == (len(ids), len(TEXT))
    assert found.perplexity.value == pytest.approx(math.exp(nats / len(ids)), rel=1e-5)
    bits = nats / math.log(2) / len(TEXT)
    assert found.bits_per_character.value == pytest.approx(bits, rel=1e-5)


def test_gemma_caps_its_logits(saved: Callable[[str], Path]) -> None:
    """The head is the model's own code, with what it does after the product."""
    model, encoder = load(saved("gemma3-text")), load_encoder(saved("gemma3-text"))
    free = measure_perplexity(model, encoder, {"xx": TEXT})["xx"]
    model.config.final_logit_softcapping = 0.5
    capped = measure_perplexity(model, encoder, {"xx": TEXT})["xx"]
    assert capped.nats != pytest.approx(free.nats, rel=1e-3)
    assert capped.nats == pytest.approx(
        whole_loss(model, encoder.encode(TEXT).ids, capped.tokens), rel=1e-5
    )


class FixedLogits(torch.nn.Module):
    """A model that gives token 0 (`a`) a half, token 1 (`b`) and token 2 (`c`) a quarter each."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(4, 1), torch.nn.Linear(1, 4)
        self.config: Any = SimpleNamespace(bos_token_id=3)
        self.config.get_text_config = lambda: self.config
        self.base_model = _Body()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        hidden = self.base_model(input_ids=input_ids, use_cache=use_cache).last_hidden_state
        odds = torch.tensor([0.5, 0.25, 0.25, 0.0])
        return SimpleNamespace(logits=odds.log().expand(*hidden.shape[:2], 4))


class _Body(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(last_hidden_state=torch.zeros(*input_ids.shape, 1))


@pytest.fixture
def letters() -> Tokenizer:
    """A tokenizer of three letters; `<s>` begins no text by itself."""
    encoder = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "<s>": 3}, unk_token="c"))
    encoder.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return encoder


def test_a_case_worked_out_by_hand(letters: Tokenizer) -> None:
    """`a` costs 1 bit, `b` and `c` 2. Windows of 2 letters: ab | ac | bb | a.

    They cost 3, 3, 4 and 1 bits and have 2, 2, 2 and 1 characters: 11 bits, 7 characters.
    """
    found = measure_perplexity(FixedLogits(), letters, {"en": "abacbba"}, length=3)["en"]
    assert (found.windows, found.tokens, found.characters) == (4, 7, 7)
    bits = found.bits_per_character
    assert found.nats == pytest.approx(11 * math.log(2))
    assert bits.value == pytest.approx(11 / 7)
    assert found.perplexity.value == pytest.approx(2 ** (11 / 7))
    # Residuals n - 11/7 d: -1/7, -1/7, 6/7 and -4/7; their squares add up to 54/49.
    error = math.sqrt(4 / 3 * 54 / 49) / 7
    assert bits.standard_error == pytest.approx(error)
    assert bits.interval == pytest.approx((11 / 7 - 3.182 * error, 11 / 7 + 3.182 * error))


@given(
    st.lists(st.text(max_size=60), max_size=4),
    st.integers(3, 30),
    st.integers(1, 29),
    st.sampled_from(sorted(TINY)),
)
def test_every_token_and_character_counts_once(
    documents: list[str], length: int, stride: int, kind: str
) -> None:
    encoder = TINY[kind]()
    windows = cut_windows(encoder, documents, (7, 8), length, min(stride, length - 2))
    scored = [i for window in windows for i in window.ids[len(window.ids) - window.scored :]]
    encoded = [encoder.encode(text, add_special_tokens=False).ids for text in documents]
    assert scored == [i for ids in encoded for i in ids]
    counted = [len(text) for text, ids in zip(documents, encoded, strict=True) if ids]
    assert sum(window.characters for window in windows) == sum(counted)
    assert all(window.characters >= 0 for window in windows)
    assert all(len(w.ids) <= length and list(w.ids[:2]) == [7, 8] for w in windows)


def test_bytes_of_a_character_count_with_the_first(letters: Tokenizer) -> None:
    """The bytes of a rare character are tokens of the same place; a window may end inside it."""
    encoder = TINY["byte_level"]()
    text = "𓀀𓀀"  # four bytes each
    assert len(encoder.encode(text, add_special_tokens=False).ids) == 8
    windows = cut_windows(encoder, [text], (0,), 4)
    assert [window.characters for window in windows] == [1, 1, 0]


def test_characters_that_a_normalizer_drops_count_too(letters: Tokenizer) -> None:
    letters.normalizer = normalizers.Strip()
    windows = cut_windows(letters, ["  ab  "], (3,), 2)
    assert [window.characters for window in windows] == [3, 3]


def test_the_first_token_of_a_text(letters: Tokenizer) -> None:
    def config(**ids: Any) -> Any:
        made = SimpleNamespace(**ids)
        made.get_text_config = lambda: made
        return made

    assert begin_ids(letters, config(bos_token_id=3, eos_token_id=1)) == (3,)
    assert begin_ids(letters, config(bos_token_id=None, eos_token_id=[2, 1])) == (2,)
    with pytest.raises(KPruneError, match="nothing says which token a text begins with"):
        begin_ids(letters, config())


@pytest.mark.parametrize(
    ("text", "length", "stride", "message"),
    [
        ("", 4, None, "the text of en is empty"),
        ("ab", 1, None, "a window of 1 tokens has no room"),
        ("ab", 4, 4, "a stride of 4 with windows of 4 tokens: expected 1 to 3"),
        ("ab", 4, 0, "a stride of 0"),
    ],
)
def test_bad_input(
    letters: Tokenizer, text: str, length: int, stride: int | None, message: str
) -> None:
    with pytest.raises(KPruneError, match=message):
        measure_perplexity(FixedLogits(), letters, {"en": text}, length=length, stride=stride)


def test_infinite_loss_is_an_error(letters: Tokenizer) -> None:
    letters.add_special_tokens(["<s>"])
    with pytest.raises(KPruneError, match="NaN or infinity for the text of en"):
        measure_perplexity(FixedLogits(), letters, {"en": "a<s>a"})


def test_signal_to_noise_needs_a_spread() -> None:
    assert signal_to_noise([1.0]) is None
    assert signal_to_noise([2.0, 2.0]) is None
    assert signal_to_noise([3.0, 5.0]) == pytest.approx(4 / math.sqrt(2))


def test_student_quantiles_have_no_gap_at_the_end_of_their_table() -> None:
    """Published: 2.080 for 21 degrees of freedom, 2.042 for 30, 1.984 for 100."""
    known = {21: 2.0796, 30: 2.0423, 100: 1.9840}
    assert {n: student_quantile(n) for n in known} == pytest.approx(known, abs=5e-4)


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        sizes = random.integers(50, 150, 12)
        values = sizes * 2.0 + random.normal(0, 10, 12)
        interval = estimate_ratio(values.tolist(), sizes.tolist()).interval
        assert interval
        hits += interval[0] <= 2.0 <= interval[1]
    assert 0.93 < hits / 2000 < 0.97


def test_one_window_has_no_error() -> None:
    found = estimate_ratio([4.0], [2.0])
    assert (found.value, found.standard_error, found.interval) == (2.0, None, None)
