"""200 malformations of every file that kprune reads: refused in one line, or accepted lawfully.

A reader gets damaged bytes. It raises `KPruneError`, or checks what must hold of what it accepts;
anything else that is raised fails the test.
"""

import json
import math
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save
from support.malformed import malformed_bytes, malformed_json, outcome
from support.synthetic_report import synthetic_report
from support.tiny_folders import contents, read, save_model, write_json
from support.tiny_tokenizers import SENTENCES

from vllm_kprune.analyze.masks import MatrixName, PackedMasks
from vllm_kprune.checkpoint.adapters import check_adapter
from vllm_kprune.checkpoint.base import open_base, open_original_tokenizer
from vllm_kprune.checkpoint.head import _remembered
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, Manifest, load_manifest
from vllm_kprune.checkpoint.model_folder import INDEX_NAME, weight_files
from vllm_kprune.checkpoint.overlay import build_overlay, write_overlay
from vllm_kprune.checkpoint.plan import Plan, count_evidence
from vllm_kprune.checkpoint.shards import read_shard
from vllm_kprune.checkpoint.token_ids import map_ids
from vllm_kprune.compare.journal import Journal, kept_settings
from vllm_kprune.compare.report.report_file import read_report, write_report
from vllm_kprune.compare.suites.accuracy_tasks import check_files
from vllm_kprune.compare.suites.parallel_text import read_sentences
from vllm_kprune.demo.reference.gguf_file import read_gguf
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import LANGUAGES, Profile, load_profile
from vllm_kprune.progress import silent
from vllm_kprune.prompt.layer_config import parse_layer_config
from vllm_kprune.storage.bounded import MODEL_FILE, read_object
from vllm_kprune.storage.folders import new_folder
from vllm_kprune.tokenizer.prune import pruned_tokenizer, referenced_ids
from vllm_kprune.vocabulary.corpus import read_corpus
from vllm_kprune.vocabulary.selection import select_everything

pytestmark = pytest.mark.slow

COUNT = 200
Read = Callable[[bytes], object]


def refusals(variants: Iterator[bytes], read: Read) -> list[str]:
    """What was refused. Each variant takes little time, whatever becomes of it."""
    found = []
    for data in variants:
        began = time.process_time()
        try:
            read(data)
        except KPruneError as error:
            found.append(outcome(error))
        assert time.process_time() - began < 5, data[:2000]
    return found


def both(value: Any, count: int = COUNT) -> Iterator[bytes]:
    """Damaged values, and a quarter as many damaged files."""
    yield from malformed_json(value, count - count // 4)
    yield from malformed_bytes(json.dumps(value).encode(), count // 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


@pytest.mark.parametrize("kind", ["byte_fallback", "byte_level"])
def test_tokenizers(tmp_path: Path, kind: str) -> None:
    """What is accepted can be pruned, and laws 1 and 2 hold."""
    folder = save_model(tmp_path / "model", kind)
    path = folder / "tokenizer.json"
    texts = [*SENTENCES, " ".join(SENTENCES)]
    accepted = 0

    def read_damaged(data: bytes) -> None:
        nonlocal accepted
        path.write_bytes(data)
        base = open_original_tokenizer(folder)
        encoder, _, _ = count_evidence(base, [], silent)
        parsed = base.tokenizer
        used = {i for text in texts[3:5] for i in encoder.encode(text).ids}
        kept = {*parsed.added_ids, *parsed.byte_ids, *referenced_ids(parsed)}
        kept |= {part for i in used for part in (i, *parsed.derivation_ids(i))}
        order = sorted(kept)
        pruned = pruned_tokenizer(parsed, order)
        for text in texts:
            before, after = encoder.encode(text).ids, pruned.encode(text).ids
            if set(before) <= kept:
                assert [order[i] for i in after] == before
            decoded = encoder.decode(before, skip_special_tokens=False)
            assert pruned.decode(after, skip_special_tokens=False) == decoded
        accepted += 1

    refused = refusals(both(read(path)), read_damaged)
    assert len(refused) + accepted == COUNT
    assert accepted >= 5
    assert len(refused) >= 100


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_configurations_of_a_model(model: Path, tmp_path: Path, name: str) -> None:
    """What is accepted is written with every id mapped, and nothing is written otherwise."""
    path, original = model / name, read(model / name)
    written = tmp_path / "written"
    number = 0

    def read_damaged(data: bytes) -> None:
        nonlocal number
        path.write_bytes(data)
        base = open_base(model)
        count_evidence(base, [], silent)
        every = select_everything(base.tokenizer)
        with new_folder(written / str(number)) as folder:
            write_overlay(Plan(base, Profile(name="original"), every, ()), folder)
        before, after = base.read_config(name), read(written / str(number) / name)
        number += 1
        ids: list[list[int]] = [[], []]
        for found, value in zip(ids, (before, after), strict=True):
            value.pop("added_tokens_decoder", None)
            map_ids(value, lambda i, where, found=found: found.append(i) or i, name)
        # Every token is kept, and ids have no gaps: they stay as they are.
        assert ids[0] == ids[1]

    refused = refusals(both(original), read_damaged)
    assert len(refused) + number == COUNT
    assert number >= 10
    assert len(refused) >= 20
    assert len(list(written.glob("[!.]*"))) == number


def test_manifests(model: Path, tmp_path: Path) -> None:
    """Only the same content is accepted, wherever the base lies and whenever it was written; with a
    fingerprint of its own, only a sound manifest."""
    overlay = tmp_path / "overlay"
    build_overlay(str(model), Profile(name="original"), overlay)
    path, original = overlay / MANIFEST_NAME, load_manifest(overlay)

    def content(manifest: Manifest) -> Any:
        files = {name: (one.size, one.sha256) for name, one in manifest.base.files.items()}
        return {**manifest.model_dump(exclude={"base"}), "files of the base": files}

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        assert content(load_manifest(overlay)) == content(original)

    def read_resealed(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(ValueError):  # which is refused again below
            Manifest.model_validate(read_object(path, MODEL_FILE)).write(overlay)
        manifest = load_manifest(overlay)
        ids = manifest.kept_ids
        assert list(ids) == sorted(set(ids))
        assert len(manifest.reasons) == len(ids) > 0
        assert all("/" not in name and name not in (".", "..") for name in manifest.files)
        manifest.check_files(overlay)
        manifest.check_base()

    value = read(path)
    assert len(refusals(both(value), read_damaged)) >= COUNT - 40
    assert len(refusals(malformed_json(value, COUNT, seed=1), read_resealed)) >= COUNT // 2


def test_headers_of_weights(model: Path) -> None:
    """What is accepted covers the file exactly, and the library reads the same tensors."""
    path = model / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]

    def with_header(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + body

    def read_damaged(changed: bytes) -> None:
        path.write_bytes(changed)
        shard = read_shard(path)
        begin = 8 + int.from_bytes(changed[:8], "little")
        assert sum(tensor.bytes for tensor in shard.tensors) == len(changed) - begin
        with safe_open(path, "np") as stored:
            assert set(stored.keys()) == {tensor.name for tensor in shard.tensors}

    variants = [with_header(text) for text in malformed_json(header, COUNT * 3 // 4)]
    variants += malformed_bytes(data[: 8 + length] + body, COUNT // 4)
    assert len(refusals(iter(variants), read_damaged)) >= COUNT // 2


def test_indexes_of_weights(model: Path) -> None:
    """Whatever an index names is a file of the folder."""
    path = model / INDEX_NAME
    names = ("lm_head.weight", "model.embed_tokens.weight")
    value = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors")}

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        assert set(weight_files(model)) <= {"model.safetensors"}
        open_base(model)

    assert len(refusals(both(value), read_damaged)) >= 50


def test_configurations_of_rankers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    value = {
        "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
        "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        "layer_types": ["full_attention", "full_attention"],
    }  # fmt: skip

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        config = parse_layer_config(read_object(path, MODEL_FILE), 0, path)
        assert config.num_heads % config.num_kv_heads == 0 < config.head_dim

    assert len(refusals(both(value), read_damaged)) >= 50


def test_adapters(model: Path) -> None:
    path = model / "adapter_config.json"
    (model / "adapter_model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    value = {"target_modules": ["q_proj"], "modules_to_save": None, "r": 8}

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        check_adapter(model)

    # Its weights are those of a vocabulary, whatever the configuration says.
    assert len(refusals(both(value), read_damaged)) == COUNT


def test_profiles(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (
        "name: mine\ndescription: one line\nlanguages: [en, ko]  # two\ncode: yes\n"
        "hanja: ksx1001\ndrop_unused: true\ncoverage: 0.999\n"
    )
    value = {"languages": ["en", "ko"], "genres": ["code"], "hanja": "none", "coverage": 0.9}

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        profile = load_profile(path)
        assert set(profile.languages) <= LANGUAGES.keys()
        assert len(profile.sizing) <= 1
        assert len(profile.name) <= 64

    refused = refusals(malformed_bytes(text.encode(), COUNT // 2), read_damaged)
    # JSON is YAML.
    refused += refusals(malformed_json(value, COUNT // 2), read_damaged)
    assert len(refused) >= 100


def test_reports(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(synthetic_report(resamples=50), path)

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        report = read_report(path)
        write_report(report, tmp_path / "again.json")
        assert read_report(tmp_path / "again.json") == report

    assert len(refusals(both(read(path)), read_damaged)) >= 100


def test_journals(tmp_path: Path) -> None:
    """A damaged journal is refused, or gives the answers that it has; a header stays whole."""
    settings = {"seed": 0, "suites": ["stability"], "url": "http://127.0.0.1:1/v1"}
    with Journal(tmp_path, settings) as journal:
        journal.put("endpoints", "a", {"text": "안녕", "ids": [1, 2]})
    path = tmp_path / "answers" / "endpoints.jsonl"
    header, line = path.read_bytes().splitlines()

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        kept_settings(tmp_path)
        with Journal(tmp_path, settings) as journal:
            json.dumps(journal.get("endpoints", "a"))

    variants = [
        one + b"\n" + line + b"\n" for one in malformed_json(json.loads(header), COUNT // 2)
    ]
    variants += [
        header + b"\n" + one + b"\n" for one in malformed_json(json.loads(line), COUNT // 4)
    ]
    variants += malformed_bytes(header + b"\n" + line + b"\n", COUNT // 4)
    assert len(refusals(iter(variants), read_damaged)) >= 50


def test_rows_of_tasks_and_sentences(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "안녕?", "choices": ["a", "b"], "answer": 1, "en": "x", "ko": "y"}
    path = tmp_path / "rows.jsonl"

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        check_files(tmp_path, ["rows"])
        for sentence in read_sentences(path, ["en", "ko"]):
            sentence.id.encode()
            assert all(text.strip() for text in sentence.texts.values())

    good = json.dumps(row).encode() + b"\n"
    assert len(refusals((good + one + b"\n" for one in both(row)), read_damaged)) >= 50
    table = tmp_path / "rows.tsv"

    def read_table(data: bytes) -> None:
        table.write_bytes(data)
        read_sentences(table, ["en", "ko"])

    text = "id\ten\tko\textra\na\tone\t하나\tz\nb\ttwo\t둘\n".encode()
    assert len(refusals(malformed_bytes(text, COUNT), read_table)) >= 20


def test_corpora(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"

    def read_damaged(data: bytes) -> None:
        path.write_bytes(data)
        for text in read_corpus(path):
            text.encode()

    value = {"text": ["안녕", "x"], "meta": {"url": "y", "n": [1, 2.5, None, True]}}
    assert len(refusals(both(value), read_damaged)) >= 10


def test_gguf_headers(tmp_path: Path) -> None:
    """The shape of what is accepted is that of the library's file, and offsets come after it."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    data = b"GGUF" + struct.pack("<IQQ", 3, 1, 3)
    data += text("general.alignment") + struct.pack("<II", 4, 32)
    data += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    data += text("scores") + struct.pack("<IIQff", 9, 6, 2, 0.5, 1.5)
    data += text("w") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    assert read_gguf(path).tensors[0].shape == (2, 4)

    def read_damaged(changed: bytes) -> None:
        path.write_bytes(changed)
        for tensor in read_gguf(path).tensors:
            assert all(type(size) is int for size in tensor.shape)

    assert len(refusals(malformed_bytes(data, COUNT), read_damaged)) >= 50


def test_masks(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    matrix = MatrixName(0, "mlp.up_proj")
    PackedMasks("a", ("ko",), {matrix: (3, 5)}, {matrix: np.array([1, 2], np.uint8)}).save(path)
    data = path.read_bytes()
    with safe_open(path, "np") as stored:
        header = json.loads(stored.metadata()["kprune-masks"])

    def read_damaged(changed: bytes) -> None:
        path.write_bytes(changed)
        masks = PackedMasks.load(path)
        assert all(len(masks.zeros(one)) * 8 >= math.prod(s) for one, s in masks.shapes.items())

    def with_header(value: bytes) -> bytes:
        arrays = {"0.mlp.up_proj": np.array([1, 2], np.uint8)}
        return save(arrays, {"kprune-masks": value.decode(errors="replace")})

    variants = [with_header(one) for one in malformed_json(header, COUNT * 3 // 4)]
    variants += malformed_bytes(data, COUNT // 4)
    assert len(refusals(iter(variants), read_damaged)) >= 50


def test_remembered_rows_of_a_head(tmp_path: Path) -> None:
    """A damaged entry of the cache is made again: it is no mistake of the user's."""
    path = tmp_path / "head.json"
    for data in both([1, 2, 3, 9]):
        path.write_bytes(data)
        found = _remembered(path)
        assert found is None or found == sorted(set(found))
        assert all(type(token_id) is int for token_id in found or ())


def test_the_files_of_a_model_that_was_refused_are_left_as_they_were(
    model: Path, tmp_path: Path
) -> None:
    write_json(model / "tokenizer_config.json", {"added_tokens_decoder": {"abc": {}}})
    before = contents(model)
    with pytest.raises(KPruneError):
        build_overlay(str(model), Profile(name="original"), tmp_path / "out")
    assert contents(model) == before
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["model"]
