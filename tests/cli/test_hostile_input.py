"""Hostile and careless input: one line, exit code 2, nothing written, in little time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.command import Run
from support.tiny_folders import edit, read, write_json

from vllm_kprune.cli import main

Damage = Callable[[Path], object]


def refused(run: Run, *arguments: object, within: float = 10.0) -> str:
    """The one line with which a command was refused."""
    began = time.process_time()
    code, out, err = run(*arguments)
    assert time.process_time() - began < within
    assert code == 2, (out, err)
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err[:3000]
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 4_100
    return lines[0]


def tokenizer(**changes: Any) -> Damage:
    return lambda folder: edit(folder / "tokenizer.json", **changes)


def bpe(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        edit(path, model={**read(path)["model"], **changes})

    return damage


def vocabulary(**changes: int) -> Damage:
    return lambda folder: bpe(vocab={**read(folder / "tokenizer.json")["model"]["vocab"],
                                     **changes})(folder)  # fmt: skip


def added(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        tokens = read(path)["added_tokens"]
        edit(path, added_tokens=[*tokens, {**tokens[-1], "content": "<new>", **changes}])

    return damage


def config(name: str = "config.json", **changes: Any) -> Damage:
    return lambda folder: edit(folder / name, **changes)


def raw(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def sparse(name: str, size: int = 3 << 30) -> Damage:
    def damage(folder: Path) -> None:
        with (folder / name).open("wb") as stream:
            stream.truncate(size)

    return damage


def rows(count: int) -> Damage:
    def damage(folder: Path) -> None:
        weights = {"model.embed_tokens.weight": np.ones((count, 4), np.float32)}
        save_file(weights, folder / "model.safetensors")

    return damage


def header(**tensors: Any) -> Damage:
    def damage(folder: Path) -> None:
        text = json.dumps(tensors).encode()
        data = len(text).to_bytes(8, "little") + text
        (folder / "model.safetensors").write_bytes(data)

    return damage


def many_tensors(folder: Path) -> None:
    entry = '"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    text = f"{{{','.join(entry % n for n in range(250_000))}}}".encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def special(token_id: int) -> dict[str, Any]:
    """A post-processor that puts a token before every text."""
    parts = [
        {"SpecialToken": {"id": "<bos>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    token = {"id": "<bos>", "ids": [token_id], "tokens": ["<bos>"]}
    return {"type": "TemplateProcessing", "single": parts, "pair": [*parts, *parts],
            "special_tokens": {"<bos>": token}}  # fmt: skip


PADDING = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None,
           "pad_id": 5_000, "pad_type_id": 0, "pad_token": "<pad>"}  # fmt: skip


def split(pattern: str) -> Damage:
    return tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern},
                                    "behavior": "Isolated", "invert": False})  # fmt: skip


CASES: dict[str, tuple[Damage, str]] = {
    "post-processor": (tokenizer(post_processor=special(5_000)), "names token id 5000"),
    "post-processor 2^31": (tokenizer(post_processor=special(1 << 31)), "token id 2147483648"),
    "padding": (tokenizer(padding=PADDING), "names token id 5000"),
    "id 2^24": (vocabulary(zzz=1 << 24), "the id of 'zzz' is 16777216"),
    "id 2^31": (vocabulary(zzz=1 << 31), "the id of 'zzz' is 2147483648"),
    "id -1": (vocabulary(zzz=-1), "the id of 'zzz' is -1"),
    "id twice": (vocabulary(zzz=7), "two tokens of the vocabulary have the same id"),
    "added id 2^31": (added(id=1 << 31), "the id of '<new>' is 2147483648"),
    "added id true": (added(id=True), "the id of '<new>' is True"),
    "added with a gap": (added(id=700), "has id 700, but is read as id"),
    "added id of another": (added(id=7), "(id 7) occurs twice"),
    "prefix": (bpe(continuing_subword_prefix="##"), "continuing_subword_prefix is '##'"),
    "suffix": (bpe(end_of_word_suffix="</w>"), "end_of_word_suffix is '</w>'"),
    "dropout": (bpe(dropout=0.1), "dropout is 0.1"),
    "long token": (vocabulary(**{"x" * 50_000: 5_000}), "too long to follow"),
    "merges": (bpe(merges=[["a", "b", "c"]]), "does not have two parts"),
    "merge of numbers": (bpe(merges=[[1, 2]]), "does not have two parts"),
    "vocabulary": (bpe(vocab=[]), "expected a vocabulary"),
    "invalid pattern": (split("("), "is not a tokenizer"),
    "unknown decoder": (tokenizer(decoder={"type": ["x"]}), "the decoder is"),
    "tokenizer of 3 GB": (sparse("tokenizer.json"), "is larger than 128 MiB"),
    "added_tokens_decoder list": (config("tokenizer_config.json", added_tokens_decoder=[1]),
                                  "added_tokens_decoder is [1]"),
    "added_tokens_decoder name": (config("tokenizer_config.json",
                                         added_tokens_decoder={"abc": {}}), "holds 'abc'"),
    "nested": (raw("config.json", b'{"a":' * 450 + b"1" + b"}" * 450), "nested more than 64"),
    "nested generation": (raw("generation_config.json", b"[" * 450 + b"]" * 450), "nested"),
    "half a character": (config(label="\ud800"), "half a character (\\ud800)"),
    "half a key": (config("generation_config.json", **{"\udfff": 1}), "half a character"),
    "long number": (raw("config.json", b'{"a": ' + b"7" * 5000 + b"}"), "5,000 digits"),
    "unknown family": (config(architectures=["x" * 9_000]), "does not know the family"),
    "architectures": (config(architectures=[{"a": ["b"] * 999}]), "does not know the family"),
    "no rows": (rows(0), "expected a plain [rows, hidden] tensor"),
    "too few rows": (rows(100), "has 100 rows, too few for 549 tokens"),
    "shape": (header(x={"dtype": "F32", "shape": [10**30, 2], "data_offsets": [0, 8]}),
              "x has the shape"),
    "offsets": (header(x={"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}),
                "x has the shape"),
    "no dtype": (header(x={"shape": [1], "data_offsets": [0, 4]}), "has no 'dtype'"),
    "tensor": (header(x=[]), "the tensor 'x' is []"),
    "long name": (header(**{"x" * 5_000: 1}), "the tensor 'xxx"),
    "metadata": (header(__metadata__={"a": 1}), "its metadata is"),
    "250,000 tensors": (many_tensors, "more than 1,600,000 values"),
    "notice of 3 GB": (sparse("NOTICE"), "NOTICE is larger than 4 MiB"),
    "template of 3 GB": (sparse("chat_template.jinja"), "chat_template.jinja is larger than 1 MiB"),
    "60 MB of quantisation": (raw("hf_quant_config.json", b'{"a":[' + b"[]," * 20_000_000 + b"1]}"),
                              "hf_quant_config.json is larger than 16 MiB"),
    "15 MB of lists": (raw("hf_quant_config.json", b'{"a":[' + b"[]," * 5_000_000 + b"1]}"),
                       "more than 400,000 values"),
    "index": (raw("model.safetensors.index.json", b'{"weight_map": {"a": "' + b"x" * 9000 + b'"}}'),
              "names the file 'xxx"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_a_hostile_model_is_refused(run: Run, model: Path, profile: Path, case: str) -> None:
    damage, message = CASES[case]
    damage(model)
    output = model.parent / "out"
    line = refused(run, "build", model, "--profile", profile, "-o", output)
    assert message in line
    assert not output.exists()
    assert not [path for path in model.parent.glob(".out.*") if path.suffix != ".lock"]


def test_a_pattern_that_backtracks_for_ever_is_refused(
    run: Run, model: Path, profile: Path, tmp_path: Path
) -> None:
    split(r"(x+x+)+y")(model)
    code, _, err = run("build", model, "--profile", profile, "-o", tmp_path / "out")
    assert code == 2
    # The library says something of its own before.
    assert err.splitlines()[-1].endswith(
        "tokenizer.json is not a tokenizer: Onig: Regex search error: retry-limit-in-match over"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_null_list_of_added_tokens_is_an_empty_one(
    run: Run, model: Path, profile: Path, tmp_path: Path
) -> None:
    edit(model / "tokenizer_config.json", added_tokens_decoder=None)
    assert run("build", model, "--profile", profile, "-o", tmp_path / "out")[0] == 0
    assert read(tmp_path / "out" / "tokenizer_config.json")["added_tokens_decoder"] == {}
    assert run("verify", tmp_path / "out")[0] == 0


def manifest(**changes: Any) -> Damage:
    return lambda folder: edit(folder / "kprune.json", **changes)


MANIFESTS: dict[str, tuple[Damage, str]] = {
    "wrong ids": (manifest(kept_ids=[-1] * 1_000_000), "kept_ids.0: got -1"),
    "lists for ids": (manifest(kept_ids=[[]] * 300_000), "kept_ids.0: got []"),
    "many ids": (manifest(kept_ids=list(range(2_200_000))), "2,200,000 entries"),
    "many values": (manifest(kept_ids=[0] * 5_000_000), "more than 4,000,000 values"),
    "many sources": (manifest(evidence=[0] * 1_000_000), "evidence: got 1,000,000 entries"),
    "wrong source": (manifest(evidence=[0]), "evidence.0: got 0"),
    "many files": (manifest(files={f"f{n}": "x" for n in range(20_000)}), "files: got 20,000"),
    "unknown keys": (lambda folder: write_json(
        folder / "kprune.json", {f"k{n}": n for n in range(50_000)}), "unknown field 'k0'"),
    "reasons": (manifest(reasons="zzz"), "reasons: got 'zzz'"),
    "long text": (manifest(kprune_version="x" * 100_000), "100,000 characters"),
    "twice": (raw("kprune.json", b'{"format": 1, "format": 1}'), "'format' occurs twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", MANIFESTS)
@pytest.mark.slow
def test_a_hostile_manifest_is_refused_at_its_first_mistake(
    run: Run, model: Path, tmp_path: Path, case: str
) -> None:
    overlay = tmp_path / "overlay"
    (tmp_path / "all.yaml").write_text("description: everything\n")
    assert run("build", model, "--profile", tmp_path / "all.yaml", "-o", overlay)[0] == 0
    damage, message = MANIFESTS[case]
    damage(overlay)
    line = refused(run, "inspect", overlay)
    assert message in line
    assert "build the overlay again" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("languages: [" + "en, " * 16_000 + "]", "got 16000 values, expected at most 64"),
        ("target_size: 1" + ":59" * 20_000, "target_size: got '1:59:59"),
        ("target_size: 0x" + "f" * 5_000, "target_size: got '0xfff"),
        ("target_size: " + "9" * 60_000, "a number of 60,000 digits"),
        ("languages: &a [en]\nhanja: *a", "anchors and aliases"),
        ("languages: !!set {en, ko}", "tags such as 'tag:yaml.org,2002:set'"),
        ("languages: [en]\nlanguages: [ko]", "'languages' occurs twice"),
        ("languages: {en: [ko]}", "languages: got {'en': ['ko']}"),
        ("{<<: {languages: [en]}}", "unknown option '<<'"),
        ("description: " + "x" * (64 << 10), "larger than 64 KiB"),
    ],
)
@pytest.mark.slow
def test_a_hostile_profile_is_refused(
    run: Run, model: Path, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert message in refused(run, "build", model, "--profile", path, "-o", tmp_path / "out")


LONG = "x" * 200_000


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", LONG, "-o", "{out}"),
        ("build", "{model}", "--profile", f"{LONG}.yaml", "-o", "{out}"),
        ("build", "{model}", "--profile", LONG, "-o", "{out}"),
        ("build", "{model}", "-o", f"{{out}}/{LONG}"),
        ("build", "{model}", "--corpus", LONG, "-o", "{out}"),
        ("inspect", LONG),
        ("verify", LONG),
        ("export", LONG, "-o", "{out}"),
        ("prompt", LONG),
        ("tokenizer", LONG, "-o", "{out}"),
        ("demo-model", LONG),
    ],
    ids=lambda words: " ".join(word[:9] for word in words),
)
def test_a_path_of_200_kb_is_refused(
    run: Run, model: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    code, out, err = run(*(word.format(model=model, out=tmp_path / "out") for word in arguments))
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["o[/bold]x", "[red]", "o]["])
@pytest.mark.slow
def test_markup_in_names_is_text(run: Run, model: Path, profile: Path, name: str) -> None:
    plain = name.replace("/", "")
    model = model.rename(model.with_name(f"m{plain}"))
    corpus = model.with_name(f"c{plain}.txt")
    corpus.write_text("오늘\n")
    output = model.parent / name
    code, _, err = run("build", model, "--profile", profile, "--corpus", corpus, "-o", output)
    assert code == 0, err
    assert f"vllm serve {output}" in err.replace("\n", "")
    code, out, err = run("inspect", model, "--profile", profile, "--corpus", corpus)
    assert code == 0, err
    assert f"m{plain},profilesmall" in "".join(out.split())
    assert run("verify", output, "--corpus", corpus)[0] == 0


def test_a_record_of_60_mb_is_refused(run: Run, model: Path, profile: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "big.jsonl"
    with corpus.open("wb") as stream:
        stream.write(b'{"text": "')
        for _ in range(60):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n')
    line = refused(run, "build", model, "--profile", profile, "-o", tmp_path / "out", "--corpus",
                   corpus)  # fmt: skip
    assert "big.jsonl, line 1: not JSON" in line


def test_a_text_of_19_mb_is_refused_by_prompt(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"word " * 3_800_000)
    assert "has more than 2 MB of text" in refused(run, "prompt", path)


@pytest.mark.parametrize("kind", ["a file", "below a file", "nowhere"])
def test_a_cache_that_cannot_be_written_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / "cache"
    file.write_text("")
    places = {"a file": file, "below a file": file / "kprune", "nowhere": Path("/proc/kprune")}
    monkeypatch.setenv("KPRUNE_CACHE", str(places[kind]))
    line = refused(run, "demo-model")
    assert f"kprune's cache {places[kind]}" in line
    assert "set KPRUNE_CACHE" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.slow
def test_a_full_output_is_told() -> None:
    command = [sys.executable, "-c", "from vllm_kprune.cli import main; main()", "--version"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_ctrl_c_while_starting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupt(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "vllm_kprune.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "vllm_kprune.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "error: stopped\n"


def test_a_name_that_is_not_utf_8_is_shown_escaped(run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    assert "\\udcff" in refused(run, "inspect", tmp_path / name)
