"""A tiny model folder and profile that the commands finish with in a second."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import wordfreq
from safetensors.numpy import save_file
from support.command import command_runner
from support.tiny_tokenizers import byte_fallback_tokenizer

Command = Callable[..., tuple[int, str, str]]
HIDDEN = 4


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line; gives exit code, standard output and standard error."""
    return command_runner(capsys)


@pytest.fixture(autouse=True)
def short_word_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frequent words alone, which saves most of the time of counting them."""
    whole = wordfreq.get_frequency_dict

    def frequent(language: str, wordlist: str) -> dict[str, float]:
        return dict(islice(whole(language, wordlist).items(), 3000))

    monkeypatch.setattr(wordfreq, "get_frequency_dict", frequent)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Korean without code: only a short word list is counted."""
    path = tmp_path / "small.yaml"
    path.write_text("languages: [ko]\ngenres: []\nmin_count: 0.1\n")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with a real byte-fallback tokenizer and an embedding of random rows."""
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = byte_fallback_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    rows = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), HIDDEN))
    weights = {"model.embed_tokens.weight": rows.astype(np.float32)}
    weights["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    save_file(weights, folder / "model.safetensors")
    ids = {f"{n}_token_id": tokenizer.token_to_id(f"<{n}>") for n in ("bos", "eos", "pad")}
    config = {"architectures": ["Gemma3ForCausalLM"], "tie_word_embeddings": True, **ids}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(rows)}))
    (folder / "generation_config.json").write_text(json.dumps(ids))
    names = {f"{n}_token": f"<{n}>" for n in ("bos", "eos", "pad", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder
