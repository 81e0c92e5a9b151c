"""Engine configurations with small trained tokenizers, and the tokens that a guard must refuse."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer

from support.tiny_tokenizers import TINY
from vllm_kprune.guard.automaton import Automaton, build_automaton
from vllm_kprune.guard.policy import parse_policy
from vllm_kprune.guard.spelling import TokenSpellings, load_spellings
from vllm_kprune.serving.request_options import ADMITTED
from vllm_kprune.serving.settings import GUARD_CLASS_PATH

# Cut so that some end inside a character of two, three or four bytes; no answer may finish "中".
PROMPTS = tuple(
    (text, cut) for text in ("가나다라마바사", "the é", "😀", "中", "ok") for cut in (0, 1, 2)
)
NUM_ROWS = 960  # more than there are tokens, as in Qwen3
# The default of the server, and what requests ask for.
DEFAULT = {"languages": "ko,en"}
REQUEST_OPTIONS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"kprune_languages": "off"},
    {"kprune_languages": "ko", "kprune_hanja": "all"},
    {"kprune_scripts": ["Hiragana", "Han"]},
)


@dataclass(frozen=True)
class Engine:
    """A folder with a tokenizer, served with the guard."""

    folder: Path
    tokenizer: Tokenizer = field(repr=False)
    additional_config: dict[str, Any] = field(default_factory=lambda: {"kprune": DEFAULT})

    @property
    def config(self) -> Any:
        """The part of a `VllmConfig` that the guard reads."""
        model = SimpleNamespace(
            model=str(self.folder),
            tokenizer=str(self.folder),
            tokenizer_revision=None,
            skip_tokenizer_init=False,
            runner_type="generate",
            logprobs_mode="raw_logprobs",
            logits_processors=[GUARD_CLASS_PATH],
            hf_text_config=SimpleNamespace(eos_token_id=self.eos),
            get_vocab_size=lambda: NUM_ROWS,
            try_get_generation_config=lambda: {"eos_token_id": [self.eos]},
        )
        return SimpleNamespace(
            model_config=model,
            parallel_config=SimpleNamespace(enable_batch_sharded_sampling=None),
            speculative_config=None,
            structured_outputs_config=SimpleNamespace(
                reasoning_parser="", reasoning_parser_plugin=""
            ),
            use_v2_model_runner=False,
            additional_config=self.additional_config,
        )

    @property
    def eos(self) -> int:
        """The token that ends an answer."""
        found = self.tokenizer.token_to_id("<eos>")
        assert found is not None
        return found

    def prompt(self, text: str, cut: int) -> list[int]:
        """A prompt whose last `cut` bytes are missing."""
        ids = self.ids(text)
        return [self._id("<bos>"), *ids[: len(ids) - cut]]

    def ids(self, text: str) -> list[int]:
        """One token for each byte of the text, so that it can be cut anywhere."""
        if self.tokenizer.token_to_id("<0x00>") is not None:
            return [self._id(f"<0x{byte:02X}>") for byte in text.encode()]
        return [i for c in text for i in self._letters(c)]

    def _letters(self, character: str) -> list[int]:
        from vllm_kprune.tokenizer.byte_tokens import byte_alphabet

        letters = {value: letter for letter, value in byte_alphabet().items()}
        return [self._id(letters[byte]) for byte in character.encode()]

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        assert found is not None, token
        return found


@cache
def spellings(folder: Path) -> TokenSpellings:
    """The spellings of a folder's tokenizer, read once."""
    return load_spellings(folder, None)


@cache
def _automaton(folder: Path, number: str, eos: int) -> Automaton | None:
    default = parse_policy(DEFAULT)
    given = REQUEST_OPTIONS[int(number)] or {}
    policy = parse_policy({k.removeprefix("kprune_"): v for k, v in given.items()}, default)
    return policy and build_automaton(spellings(folder), policy, NUM_ROWS, (eos,))


def expected_refusals(
    engine: Engine, request_options: dict[str, Any] | None, token_ids: Sequence[int]
) -> torch.Tensor:
    """Tokens that must not follow `token_ids`, bool [NUM_ROWS], computed from the whole text."""
    automaton = _automaton(engine.folder, str(REQUEST_OPTIONS.index(request_options)), engine.eos)
    if automaton is None:
        return torch.zeros(NUM_ROWS, dtype=torch.bool)
    return automaton.refused(automaton.state_after(token_ids))


def make_engine(kind: str, folder: Path) -> Engine:
    """An engine with one of the small tokenizers, written into `folder`."""
    tokenizer = TINY[kind]()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Engine(folder, tokenizer)


def sampling_params(admitted: bool = True, **options: Any) -> Any:
    """vLLM's `SamplingParams`, as a server has `admitted` them; not so, those of vLLM itself."""
    from vllm import SamplingParams

    if admitted:
        options["extra_args"] = {**(options.get("extra_args") or {}), ADMITTED: {}}
    return SamplingParams(**options)
