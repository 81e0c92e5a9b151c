"""What is fuzzed: any bytes go to a reader of kprune's, and laws hold of what it accepts.

A refusal is a `KPruneError` of one short line. Anything else that is raised, and any law that does
not hold, is a defect. `tests/test_fuzz.py` tries each target for a moment, with bytes near sound
ones; `make fuzz` for hours, led by coverage.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from support.guard_oracle import BruteForce
from support.malformed import outcome
from support.prune_cases import LengthScores, pruning_of
from support.tiny_folders import save_model
from support.tiny_tokenizers import SENTENCES, byte_level_tokenizer, data_of
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, Manifest, load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.shards import read_shard
from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.automaton import build_automaton
from vllm_kprune.guard.policy import GuardPolicy, parse_policy
from vllm_kprune.guard.spelling import load_spellings
from vllm_kprune.profile import LANGUAGES, Profile, load_profile
from vllm_kprune.prompt.marks import split_marks
from vllm_kprune.prompt.options import parse_prune_request
from vllm_kprune.serving.guard.settings import GuardSettings, request_policies
from vllm_kprune.serving.pruning.endpoint import _BODY, Preview, read_body
from vllm_kprune.serving.pruning.settings import request_options
from vllm_kprune.storage.bounded import Limits, parse_json
from vllm_kprune.tokenizer.bpe import TOKENIZER_FILE, parse_tokenizer
from vllm_kprune.tokenizer.prune import prune_tokenizer, pruned_tokenizer, referenced_ids

__all__ = ["TARGETS", "attempt", "seeds"]

_SMALL = Limits(bytes=1 << 16, values=10_000, depth=32)


def attempt(target: str, data: bytes) -> str | None:
    """Try some bytes; returns the message of a refusal, None if they were accepted."""
    try:
        TARGETS[target](data)
    except KPruneError as error:
        return outcome(error)
    return None


@cache
def _folder() -> Path:
    """A small model and its overlay, for as long as the process lives."""
    folder = Path(tempfile.mkdtemp(prefix="kprune-fuzz-"))
    model = save_model(folder / "model", "byte_level")
    build_overlay(str(model), Profile(name="original"), folder / "overlay")
    return folder


def _written(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


def fuzz_profile(data: bytes) -> None:
    profile = load_profile(_written("mine.yaml", data))
    assert set(profile.languages) <= LANGUAGES.keys()
    assert len(profile.sizing) <= 1
    assert len(profile.name) <= 64


def fuzz_manifest(data: bytes) -> None:
    """With a fingerprint that fits whatever is in it, as an attacker would make it."""
    path = _folder() / "overlay" / MANIFEST_NAME
    before = path.read_bytes()
    try:
        try:
            value = parse_json(data, _SMALL)
            sealed = Manifest.model_validate(value).sealed().model_dump(mode="json")
            data = json.dumps(sealed).encode()
        except ValueError:
            pass
        path.write_bytes(data)
        manifest = load_manifest(path.parent)
    finally:
        path.write_bytes(before)
    ids = manifest.kept_ids
    assert list(ids) == sorted(set(ids))
    assert len(manifest.reasons) == len(ids) > 0
    for name in (*manifest.files, *manifest.base.files):
        assert Path(name).name == name not in ("", ".", "..")


def fuzz_tokenizer(data: bytes) -> None:
    parsed = parse_tokenizer(parse_json(data, TOKENIZER_FILE))
    kept = sorted({*parsed.added_ids, *parsed.byte_ids, *referenced_ids(parsed)})
    pruned = prune_tokenizer(parsed, kept)
    again = parse_tokenizer(pruned)
    assert set(again.tokens) == set(range(len(kept)))
    for token in list(parsed.vocab)[:50]:
        assert "".join(token) == token
        assert all(part in token for part in parsed.derivation(token))


def fuzz_header(data: bytes) -> None:
    path = _written("fuzzed.safetensors", data)
    shard = read_shard(path)
    assert sum(tensor.bytes for tensor in shard.tensors) <= len(data)
    assert all(tensor.offset + tensor.bytes <= len(data) for tensor in shard.tensors)


def fuzz_marks(data: bytes) -> None:
    """Nothing but marks and the backslashes that escape them is lost."""
    text = data.decode(errors="replace")
    segments = split_marks(text)
    joined = "".join(segment.text for segment in segments)
    rest = iter(text)
    assert all(character in rest for character in joined), "not a subsequence"
    assert all(segment.keep is None or 0 < segment.keep <= 1 for segment in segments)
    if "<kprune" not in text and "</kprune" not in text:
        assert joined == text


def fuzz_xargs(data: bytes) -> None:
    """Whatever comes in `vllm_xargs`, for the guard and for the pruner, alone and together."""
    value = parse_json(data, _SMALL)
    if not isinstance(value, dict):
        raise KPruneError("vLLM takes only objects")
    policies = request_policies(GuardSettings(default=GuardPolicy(languages=("en",))), value)
    for policy in (policies.answer, policies.reasoning):
        assert policy is None or policy.languages or policy.scripts
    asked = request_options(_pruning().settings, value)
    assert 0 < asked.request.options.keep <= 1
    hash((asked, policies))


@cache
def _pruning() -> Any:
    return pruning_of(LengthScores(), keep=0.5)


def fuzz_body(data: bytes) -> None:
    """`POST /kprune/prune`: the answer is UTF-8, and what is kept is part of what was sent."""
    split, asked = read_body(_pruning(), parse_json(data, _BODY))
    answer = json.loads(Preview(_pruning(), asked)(split, lambda: False).decode())
    for segment in answer["segments"]:
        assert _is_part(segment["kept"], segment["text"])
        assert 0 <= segment["tokens"]["kept"] <= segment["tokens"]["original"]


def _is_part(part: str, whole: str) -> bool:
    """A blank may be put between what did not touch in the text."""
    rest = iter(whole)
    return all(character in rest for character in part.replace(" ", ""))


def fuzz_pruner(data: bytes) -> None:
    """First byte: how much to keep. The rest is a text."""
    text = data[1:2_000].decode(errors="replace")
    options = parse_prune_request({"keep": (data[:1] or b"\x80")[0] / 256 or 1.0}).options
    pruner = _pruning().ranker.pruner
    pruned = pruner.prune(text, options, cancelled=lambda: False)
    assert _is_part(pruned.text, text)
    assert pruned.tokens_after <= pruned.tokens_before
    again = pruner.prune(text, options, cancelled=lambda: False)
    assert again.text == pruned.text


@cache
def _spellings() -> Any:
    return load_spellings(_folder() / "model", None)


_POLICIES: tuple[Mapping[str, Any], ...] = (
    {"languages": "ko"},
    {"languages": "en,th", "digits": False},
    {"scripts": ["Cyrillic"], "allow": "é한"},
    {"languages": "ja", "hanja": "all"},
)


@cache
def _guard(number: int) -> tuple[Any, BruteForce]:
    policy = parse_policy(_POLICIES[number])
    assert policy
    return build_automaton(_spellings(), policy, _spellings().num_tokens), BruteForce(policy)


def fuzz_guard(data: bytes) -> None:
    """First byte: the policy. Each further one chooses among the allowed tokens: the automaton
    allows exactly those after which the bytes still begin an allowed text."""
    automaton, force = _guard((data[:1] or b"\0")[0] % len(_POLICIES))
    spellings, classes = _spellings(), automaton.token_class
    state, pending = 0, b""
    for byte in data[1:16]:
        following = automaton.class_next[state][classes.long()].tolist()
        allowed = [i for i, state in enumerate(following) if state >= 0]
        plain = [i for i in allowed if spellings.flags_of(i) == 1 and spellings.bytes_of(i)]
        for token_id in plain[byte % 53 :: 53]:
            assert force.allows(pending, spellings.bytes_of(token_id)), (pending, token_id)
        refused = set(range(spellings.num_tokens)) - set(allowed)
        for token_id in sorted(refused)[byte % 53 :: 53]:
            if spellings.flags_of(token_id) == 1 and spellings.bytes_of(token_id):
                assert not force.allows(pending, spellings.bytes_of(token_id))
        if not plain:
            return
        chosen = plain[byte * len(plain) // 256]
        state = following[chosen]
        text = pending + spellings.bytes_of(chosen)
        pending = next(text[-n:] if n else b"" for n in (3, 2, 1, 0)
                       if text[len(text) - n :] in force.beginnings and n <= len(text))  # fmt: skip


@cache
def _pair() -> tuple[Any, Any, Any, tuple[int, ...]]:
    parsed = parse_tokenizer(data_of(byte_level_tokenizer()))
    encoder = byte_level_tokenizer()
    kept = {*parsed.added_ids, *parsed.byte_ids}
    for text in SENTENCES[3:6]:
        for token_id in encoder.encode(text).ids:
            kept |= {token_id, *parsed.derivation_ids(token_id)}
    order = tuple(sorted(kept))
    return parsed, encoder, pruned_tokenizer(parsed, order), order


def fuzz_laws(data: bytes) -> None:
    """Laws 1 and 2: covered text is encoded as before, and nothing is lost."""
    text = data.decode(errors="replace")
    _, encoder, pruned, order = _pair()
    before, after = encoder.encode(text).ids, pruned.encode(text).ids
    if set(before) <= set(order):
        assert [order[i] for i in after] == before
    lost = encoder.decode(before, skip_special_tokens=False)
    assert pruned.decode(after, skip_special_tokens=False) == lost


def fuzz_http(data: bytes) -> None:
    """The answer to any body over HTTP is 200 or 400, and UTF-8."""
    from fastapi import FastAPI
    from httpx import ASGITransport, AsyncClient

    from vllm_kprune.serving.endpoint import register

    async def ask() -> Any:
        app = FastAPI()
        register().attach_router(app)
        app.state.args, app.state.kprune_pruning = type("Args", (), {"api_key": None}), _pruning()
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            return await client.post("/kprune/prune", content=data)

    response = asyncio.run(ask())
    assert response.status_code in (200, 400)
    json.loads(response.content.decode())


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "body": fuzz_body,
    "guard": fuzz_guard,
    "header": fuzz_header,
    "http": fuzz_http,
    "laws": fuzz_laws,
    "manifest": fuzz_manifest,
    "marks": fuzz_marks,
    "profile": fuzz_profile,
    "pruner": fuzz_pruner,
    "tokenizer": fuzz_tokenizer,
    "xargs": fuzz_xargs,
}


def _xargs(**options: Any) -> bytes:
    return json.dumps({f"kprune_{name}": value for name, value in options.items()}).encode()


@cache
def seeds() -> Mapping[str, list[bytes]]:
    """For each target, sound bytes to begin with."""
    texts = [text.encode() for text in SENTENCES]
    body = {"messages": [{"role": "user", "content": "one two three"},
                         {"role": "user", "content": "and?"}], "keep": 0.5}  # fmt: skip
    prompt = {"prompt": 'a <kprune keep="0.5">b c</kprune> d', "kprune_keep": "0.5"}
    header = (_folder() / "model" / "model.safetensors").read_bytes()
    return {
        "body": [json.dumps(body).encode(), json.dumps(prompt).encode()],
        "guard": [bytes([number, *range(0, 250, 12)]) for number in range(len(_POLICIES))],
        "header": [header[:400], header],
        "http": [json.dumps(prompt).encode(), b'{"messages": [{"role": "\\ud800"}], "keep": 0.5}'],
        "laws": texts,
        "manifest": [(_folder() / "overlay" / MANIFEST_NAME).read_bytes()],
        "marks": [b'a <kprune keep="0.5">b</kprune> c', rb"\<kprune> \\<kprune>x</kprune>"],
        "profile": [b"name: mine\nlanguages: [en, ko]\ncoverage: 0.99\nhanja: ksx1001\n"],
        "pruner": [b"\x80" + text for text in texts],
        "tokenizer": [json.dumps(data_of(byte_level_tokenizer())).encode()],
        "xargs": [
            _xargs(languages="ko,en", hanja="all", allow="αβ", digits=0, keep=0.5, scorer="rarity"),
            _xargs(keep="0.5" + "0" * 40 + "junk", target_tokens=1e400, force_tokens=["a", "b"]),
            b'{"kprune_languages": "\\ud800", "kprune_prune_roles": "user,tool"}',
        ],
    }
