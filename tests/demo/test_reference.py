"""`demo_model` makes a complete folder or none, and the tokenizer in it is the makers' own."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pickle
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from support.child import in_child
from support.tiny_reference import make_reference, write_gguf, write_llama_gguf, write_qwen2_gguf
from tokenizers import Tokenizer

from vllm_kprune.demo.reference import build as reference
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.reference.gguf_file import read_gguf
from vllm_kprune.demo.reference.gguf_tokenizer import SentencePieces, merges_of, tokenizer_json
from vllm_kprune.demo.reference.models import REFERENCE_MODELS, ReferenceModel
from vllm_kprune.demo.reference.wheels import DownloadError
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.cache import cache_dir

LANGUAGES = ("de", "en", "es", "fr", "hi", "ja", "ko", "ru", "vi", "zh")
FILES = {
    "config.json",
    "generation_config.json",
    "kprune-reference.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReferenceModel:
    """A tiny entry for the table; pip finds its wheels in a folder, and only there."""
    index, model = make_reference(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return model


@pytest.fixture
def tiny_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReferenceModel:
    """The same for Llama."""
    index, model = make_reference(tmp_path, write_llama_gguf)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return model


@pytest.fixture
def tiny_qwen2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReferenceModel:
    """The same for Qwen2."""
    index, model = make_reference(tmp_path, write_qwen2_gguf)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return model


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def stock(cache: Path, *names: str) -> None:
    """Put the wheels where an earlier run would have left them: `pip` takes seconds to do that."""
    for name in names or ("tiny",):
        for wheel in (cache.parent / "index").glob("*.whl"):
            distribution = wheel.name.partition("-")[0].replace("_", "-")
            place = cache / "reference" / f".{name}.downloads" / distribution / "wheel"
            place.mkdir(parents=True)
            shutil.copy(wheel, place)


def leftovers(cache: Path) -> list[str]:
    """What lies in the cache besides the lock."""
    return sorted(p.name for p in (cache / "reference").iterdir() if p.suffix != ".lock")


def downloaded(cache: Path) -> list[str]:
    """The packages of an unfinished run that the next one will not download again."""
    downloads = cache / "reference" / ".tiny.downloads"
    return sorted(path.name.partition("-")[0] for path in downloads.glob("*/wheel/*.whl"))


PARTS = ["kprune_test_tiny_part1", "kprune_test_tiny_part2"]


@pytest.mark.slow
def test_a_missing_model_is_made_and_its_terms_are_shown(tiny: ReferenceModel, cache: Path) -> None:
    lines: list[str] = []
    steps: list[tuple[str, float]] = []
    folder = demo_model(
        "tiny",
        cache,
        log=lines.append,
        progress=lambda step, done: steps.append((step, done)),
        models={"tiny": tiny},
    )
    assert {path.name for path in folder.iterdir()} == FILES | {"NOTICE1.md", "NOTICE2.md"}
    assert lines == ["Terms of the tiny model."]
    titles = list(dict.fromkeys(step for step, _ in steps))
    assert titles == ["download", "convert weights", "convert tokenizer"]
    for title in titles:
        shares = [done for step, done in steps if step == title]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    assert leftovers(cache) == ["tiny"]


def test_later_calls_are_offline_and_silent(
    tiny: ReferenceModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(cache)
    folder = demo_model("tiny", cache, models={"tiny": tiny})
    monkeypatch.setattr(subprocess, "Popen", None)
    lines: list[str] = []
    assert demo_model("tiny", cache, log=lines.append, models={"tiny": tiny}) == folder
    assert lines == []


@pytest.mark.parametrize("which", ["tiny", "tiny_llama", "tiny_qwen2"])
def test_the_weights_are_those_that_transformers_converts(
    request: pytest.FixtureRequest, cache: Path, tmp_path: Path, which: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = request.getfixturevalue(which)
    stock(cache)
    ours = AutoModelForCausalLM.from_pretrained(
        demo_model("tiny", cache, models={"tiny": model}),
        dtype=torch.bfloat16,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="tiny.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    same = ("layer_types", "rope_parameters", "head_dim", "vocab_size")
    for key in (*same, "tie_word_embeddings"):
        assert getattr(ours.config, key, None) == getattr(theirs.config, key, None), key


def test_a_head_that_is_tied_is_stored_once_as_the_finer_of_its_two_forms(
    tiny_qwen2: ReferenceModel, cache: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoConfig

    stock(cache, "apart", "once")
    apart = demo_model("apart", cache, models={"apart": tiny_qwen2})
    once = demo_model("once", cache, models={"once": dataclasses.replace(tiny_qwen2, tied=True)})
    assert not AutoConfig.from_pretrained(apart).tie_word_embeddings
    assert AutoConfig.from_pretrained(once).tie_word_embeddings
    before, after = (load_file(folder / "model.safetensors") for folder in (apart, once))
    assert before.keys() - after.keys() == {"lm_head.weight"}
    for name, tensor in after.items():
        expected = "lm_head.weight" if "embed_tokens" in name else name
        assert (tensor == before[expected]).all(), name


def test_tokens_that_end_an_answer_besides_are_listed_and_unused_rows_are_no_tokens(
    tiny_qwen2: ReferenceModel, cache: Path
) -> None:
    stock(cache)
    model = dataclasses.replace(tiny_qwen2, end_tokens=("<|endoftext|>",))
    folder = demo_model("tiny", cache, models={"tiny": model})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert [tokenizer.id_to_token(i) for i in ends] == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.get_vocab_size() == 263
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 265
    encoded = tokenizer.encode("abab a 12\u1100\u1161<|im_end|>")
    assert encoded.tokens == ["abab", "Ġa", "Ġ", "1", "2", "ê", "°", "Ģ", "<|im_end|>"]


def test_a_byte_level_tokenizer_splits_numbers_into_digits(
    tiny_llama: ReferenceModel, cache: Path
) -> None:
    stock(cache)
    folder = demo_model("tiny", cache, models={"tiny": tiny_llama})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode("abab a 12é<|im_end|>")
    assert encoded.tokens == ["abab", "Ġa", "Ġ", "1", "2", "Ã", "©", "<|im_end|>"]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == "abab a 12é<|im_end|>"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|im_end|>"
    assert settings["chat_template"].startswith("{% for m in messages %}")


def test_the_tokenizer_begins_with_bos_and_falls_back_to_bytes(
    tiny: ReferenceModel, cache: Path
) -> None:
    stock(cache)
    folder = demo_model("tiny", cache, models={"tiny": tiny})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode("abab a é  ")
    assert encoded.tokens == ["<bos>", "abab", "▁a", "▁", "<0xC3>", "<0xA9>", "▁▁"]
    assert tokenizer.decode(encoded.ids) == "abab a é  "
    assert tokenizer.token_to_id("<image>") == tokenizer.get_vocab_size() - 1


@pytest.mark.parametrize("damage", ["missing", "cut off", "no marker", "other download"])
def test_a_damaged_folder_is_made_again(tiny: ReferenceModel, cache: Path, damage: str) -> None:
    stock(cache)
    folder = demo_model("tiny", cache, models={"tiny": tiny})
    weights, marker = folder / "model.safetensors", folder / "kprune-reference.json"
    whole = weights.read_bytes()
    if damage == "missing":
        weights.unlink()
    elif damage == "cut off":
        weights.write_bytes(whole[:-1])
    elif damage == "no marker":
        marker.unlink()
    else:
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "gguf_sha256": "0"}))
    lines: list[str] = []
    stock(cache)
    demo_model("tiny", cache, log=lines.append, models={"tiny": tiny})
    assert weights.read_bytes() == whole
    assert "replaced" in lines[-1]
    assert leftovers(cache) == ["tiny"]


@pytest.mark.slow
def test_a_wheel_with_another_checksum_is_refused(tiny: ReferenceModel, cache: Path) -> None:
    bad = dataclasses.replace(tiny.wheels[1], sha256="0" * 64)
    model = dataclasses.replace(tiny, wheels=(tiny.wheels[0], bad))
    with pytest.raises(KPruneError, match=r"part2 1\.0 has SHA-256 [0-9a-f]{64}, expected 0{64}"):
        demo_model("tiny", cache, models={"tiny": model})
    assert leftovers(cache) == [".tiny.downloads"]
    assert downloaded(cache) == PARTS[:1]


def test_an_assembled_file_with_another_checksum_is_refused(
    tiny: ReferenceModel, cache: Path
) -> None:
    stock(cache)
    model = dataclasses.replace(tiny, gguf_sha256="0" * 64)
    with pytest.raises(KPruneError, match="assembled model file has SHA-256"):
        demo_model("tiny", cache, models={"tiny": model})
    assert leftovers(cache) == [".tiny.downloads"]


def test_a_rebuilt_tokenizer_with_another_checksum_is_refused(
    tiny: ReferenceModel, cache: Path
) -> None:
    stock(cache)
    model = dataclasses.replace(tiny, tokenizer_sha256="0" * 64)
    with pytest.raises(KPruneError, match=r"rebuilt tokenizer\.json has SHA-256"):
        demo_model("tiny", cache, models={"tiny": model})
    assert leftovers(cache) == [".tiny.downloads"]


def test_a_wheel_without_its_chunk_is_refused(tiny: ReferenceModel, cache: Path) -> None:
    stock(cache)
    bad = dataclasses.replace(tiny.wheels[0], chunk="elsewhere")
    model = dataclasses.replace(tiny, wheels=(bad, tiny.wheels[1]))
    with pytest.raises(KPruneError, match="has no file elsewhere"):
        demo_model("tiny", cache, models={"tiny": model})


def test_a_package_that_pip_cannot_find_is_named(
    tiny: ReferenceModel, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadError, match="could not download kprune-test-tiny-part1"):
        demo_model("tiny", cache, models={"tiny": tiny})
    assert downloaded(cache) == []


def test_an_unknown_name_names_the_nearest(cache: Path) -> None:
    with pytest.raises(KPruneError, match="did you mean 'gemma-3-270m'"):
        demo_model("gemma3-270m", cache)
    assert not cache.exists()


def test_too_little_space_is_said_before_anything_is_fetched(
    tiny: ReferenceModel, cache: Path
) -> None:
    model = dataclasses.replace(tiny, disk_bytes=10**18)
    with pytest.raises(KPruneError, match="GB are needed; make room, or set KPRUNE_CACHE"):
        demo_model("tiny", cache, models={"tiny": model})


def test_a_full_disk_leaves_only_the_download(
    tiny: ReferenceModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(cache)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference, "write_safetensors", full)
    with pytest.raises(KPruneError, match="is full"):
        demo_model("tiny", cache, models={"tiny": tiny})
    assert leftovers(cache) == [".tiny.downloads"]


@pytest.mark.slow
def test_an_interrupted_conversion_leaves_the_download_and_the_next_call_is_offline(
    tiny: ReferenceModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reference, "write_safetensors", interrupt)
        with pytest.raises(KeyboardInterrupt):
            demo_model("tiny", cache, models={"tiny": tiny})
    assert leftovers(cache) == [".tiny.downloads"]
    assert downloaded(cache) == PARTS
    monkeypatch.setattr(subprocess, "Popen", None)
    assert (demo_model("tiny", cache, models={"tiny": tiny}) / "model.safetensors").exists()
    assert leftovers(cache) == ["tiny"]


@pytest.mark.slow
def test_a_damaged_download_of_an_earlier_run_is_fetched_again(
    tiny: ReferenceModel, cache: Path
) -> None:
    bad = dataclasses.replace(tiny, gguf_sha256="0" * 64)
    with pytest.raises(KPruneError, match="assembled"):
        demo_model("tiny", cache, models={"tiny": bad})
    (wheel,) = (cache / "reference" / ".tiny.downloads" / tiny.wheels[0].distribution).glob(
        "*/*.whl"
    )
    wheel.write_bytes(wheel.read_bytes()[:-1])
    assert demo_model("tiny", cache, models={"tiny": tiny}).is_dir()


KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from vllm_kprune.demo.reference.build import demo_model

def progress(step, done):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

model = pickle.loads(Path(sys.argv[1]).read_bytes())
lines = []
demo_model("tiny", Path(sys.argv[2]), models={"tiny": model}, log=lines.append, progress=progress)
print(sum("Terms" in line for line in lines))
"""


def run_elsewhere(tiny: ReferenceModel, cache: Path, kill_at: str = "") -> subprocess.Popen[str]:
    """Start `demo_model` in another process, which kills itself at a step."""
    cache.mkdir(exist_ok=True)
    stored = cache / "model.pickle"
    stored.write_bytes(pickle.dumps(tiny))
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(stored), str(cache), kill_at],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("step", ["download", "convert weights", "convert tokenizer"])
@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_complete(
    tiny: ReferenceModel, cache: Path, step: str
) -> None:
    with run_elsewhere(tiny, cache, kill_at=step) as process:
        assert process.wait() == -9
    assert "tiny" not in leftovers(cache)
    demo_model("tiny", cache, models={"tiny": tiny})
    assert leftovers(cache) == ["tiny"]


@pytest.mark.slow
def test_two_processes_make_the_model_once(tiny: ReferenceModel, cache: Path) -> None:
    processes = [run_elsewhere(tiny, cache) for _ in range(2)]
    made = sorted(process.communicate()[0].strip() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert made == ["0", "1"]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" + b"\0" * 60])
def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    with pytest.raises(KPruneError, match=r"odd\.gguf is not a"):
        read_gguf(path)


def test_a_gguf_cut_off_in_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(KPruneError, match=r"cut\.gguf is not a readable GGUF file"):
        read_gguf(path)


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(KPruneError, match="'bert'; only SentencePiece"):
        tokenizer_json({"tokenizer.ggml.model": "bert"})
    with pytest.raises(KPruneError, match=r"splits text as 'qwen9' \(known: qwen2, smollm\)"):
        tokenizer_json({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen9"})


def test_merges_go_by_score_then_by_the_lengths_of_their_parts() -> None:
    pieces = SentencePieces(("a", "aa", "aaa", "aaaa"), (-9.0, 0.0, 0.0, 0.0), (1, 4, 4, 4))
    assert merges_of(pieces) == [
        ("aaa", "a"),
        ("aa", "aa"),
        ("aa", "a"),
        ("a", "aaa"),
        ("a", "aa"),
        ("a", "a"),
    ]


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "named"))
    assert cache_dir() == tmp_path / "named"
    monkeypatch.delenv("KPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "kprune"


def test_every_entry_of_the_table_is_whole() -> None:
    for name, model in REFERENCE_MODELS.items():
        assert sum(wheel.chunk is not None for wheel in model.wheels) > 0, name
        copied = any(wheel.documents for wheel in model.wheels)
        assert copied is ("no copy of the licence" not in model.terms), name
        assert all(len(wheel.sha256) == 64 for wheel in model.wheels), name
        assert len(model.terms) > 50, name


@pytest.mark.slow
def test_gemma_has_its_published_shape_and_terms(reference_model: Path) -> None:
    from safetensors import safe_open

    config = json.loads((reference_model / "config.json").read_text())
    with safe_open(reference_model / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    count = sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes)
    assert count == 268_098_176
    assert config["max_position_embeddings"] == 32_768
    assert not any(key.startswith("_") for key in config)
    assert "Gemma Terms of Use" in (reference_model / "GEMMA_TERMS.html").read_text()
    assert (reference_model / "NOTICE.md").exists()


@pytest.mark.slow
@pytest.mark.slow
def test_gemmas_tokenizer_json_is_googles(reference_model: Path, published_tokenizer) -> None:
    ours = json.loads((reference_model / "tokenizer.json").read_text())
    googles = json.loads(published_tokenizer("gemma3").read_text())
    assert ours["model"]["merges"] == googles["model"]["merges"]
    assert ours["added_tokens"] == googles["added_tokens"]
    assert ours == googles


@pytest.mark.slow
@pytest.mark.slow
def test_gemmas_tokenizer_is_googles_id_for_id(
    reference_model: Path, published_tokenizer, kprune_data: Path
) -> None:
    from transformers import AutoTokenizer

    googles = Tokenizer.from_file(str(published_tokenizer("gemma3")))
    ours = AutoTokenizer.from_pretrained(reference_model)
    num_lines = 0
    for language in LANGUAGES:
        with gzip.open(
            kprune_data / "calib-libreoffice-help" / f"{language}.txt.gz", "rt", encoding="utf-8"
        ) as file:
            lines = list(islice((line.rstrip("\n") for line in file), 1_200))
        expected = [encoding.ids for encoding in googles.encode_batch(lines)]
        assert all(ids[0] == 2 for ids in expected)
        for line, got, want in zip(lines, ours(lines)["input_ids"], expected, strict=True):
            assert got == want, f"{language}: {line!r}"
        num_lines += len(lines)
    assert num_lines >= 10_000


def smollms_answer(folder: Path) -> str:
    """What the model says; its weights take half a gigabyte."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    written = answer[inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True))


@pytest.mark.exhaustive  # half a minute; its tokenizer and the conversion have tests of their own
@pytest.mark.slow
def test_smollm_answers_in_english(smollm2: Path) -> None:
    """Its tokenizer.json is pinned to Hugging Face's own; its rows of queries and keys are right
    or it would babble."""
    assert in_child(smollms_answer, smollm2) == "The capital of France is Paris."
    assert "Apache License" in (smollm2 / "LICENSE").read_text()
