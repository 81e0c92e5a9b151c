"""Files and JSON are read within limits of bytes, values and depth; YAML says what people see."""

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.bounded import (
    Limits,
    Unfit,
    parse_json,
    read_bytes,
    read_object,
    read_text,
)
from vllm_kprune.storage.json_shape import JsonShape, measure
from vllm_kprune.storage.strict_yaml import read_yaml

LIMITS = Limits(bytes=1 << 20, values=1000, depth=20)
LENIENT = Limits(bytes=1 << 20, values=1000, depth=20, lenient=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(value=JSON, ascii=st.booleans())
@settings(max_examples=100)
def test_any_json_within_the_limits_is_read_as_python_reads_it(value: Any, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii)
    assert parse_json(text.encode(), LIMITS) == value
    assert parse_json(text, LENIENT) == value


@given(value=JSON)
@settings(max_examples=100)
def test_the_limits_are_those_of_the_values_and_the_depth(value: Any) -> None:
    """Commas and brackets in strings are not counted; what is counted is exact."""
    data = json.dumps(value).encode()
    depth, values = _depth(value), _separators(value)
    exact = Limits(bytes=len(data), values=values, depth=depth)
    assert parse_json(data, exact) == value
    if values:
        with pytest.raises(Unfit, match="more than"):
            parse_json(data, Limits(bytes=len(data), values=values - 1, depth=depth))
    if depth:
        with pytest.raises(Unfit, match="nested more than"):
            parse_json(data, Limits(bytes=len(data), values=values, depth=depth - 1))
    with pytest.raises(Unfit, match="larger than"):
        parse_json(data, Limits(bytes=len(data) - 1, values=values, depth=depth))


@given(value=JSON, ascii=st.booleans())
@settings(max_examples=100)
def test_a_text_is_measured_before_it_is_parsed(value: Any, ascii: bool) -> None:
    found = measure(json.dumps(value, ensure_ascii=ascii).encode())
    assert found == JsonShape(_separators(value), _depth(value), _keys(value))


def test_a_text_of_several_blocks_is_measured_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps([{"a": ['"', "\\", '\\"', "[", "},:"], "b": {"c": [[1], {}]}}] * 3).encode()
    whole = measure(text)
    for size in range(1, 40):
        monkeypatch.setattr("vllm_kprune.storage.json_shape._BLOCK", size)
        assert measure(text) == whole


@pytest.mark.parametrize("before", [b"", b'"x",' * 30_000], ids=["small", "large"])
def test_equal_keys_are_refused_in_small_and_in_large_texts(before: bytes) -> None:
    limits = Limits(bytes=1 << 20, values=100_000)
    inner = b'{"b": {"a": 1, "c": 2, "a": 1}}'
    for data in (inner, inner.replace(b'"a": 1}', b'"a": {}}')):
        with pytest.raises(Unfit, match="the key 'a' occurs twice"):
            parse_json(b"[" + before + data + b"]", limits)
    good = b'{"a": 1, "b": {"a": 1}}'
    assert parse_json(b"[" + before + good + b"]", limits)[-1] == {"a": 1, "b": {"a": 1}}


def _keys(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    parts = value.values() if isinstance(value, dict) else value
    return (len(value) if isinstance(value, dict) else 0) + sum(map(_keys, parts))


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    parts = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, parts), default=0)


def _separators(value: Any) -> int:
    """Commas and opening brackets."""
    if not isinstance(value, dict | list):
        return 0
    parts = value.values() if isinstance(value, dict) else value
    return 1 + max(len(value) - 1, 0) + sum(map(_separators, parts))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'"\xff"', "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),  # half a character, which Python's json.loads accepts
        ('"a"'.encode("utf-16"), "utf-8"),
        (b'"\\ud800"', r"half a character \(\\ud800\)"),
        (b'{"\\udfff": 1}', r"half a character \(\\udfff\)"),
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' occurs twice"),
        (b"NaN", "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"1e999", "'1e999' is too large"),
        (b"[" + b"1" * 41 + b"]", "a number of 41 digits"),
        (b"[" + b"1" * 5000 + b"]", "a number of 5,000 digits"),
        (b"[" * 100_000, "more than 1,000 values"),
        (b"[" * 450 + b"]" * 450, "nested more than 20 levels"),
        (b"{" + b'"a":{' * 21 + b"}" * 22, "nested more than 20 levels"),
    ],
)
def test_what_is_not_read_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unfit, match=reason) as caught:
        parse_json(data, LIMITS)
    assert "\n" not in str(caught.value)


def test_a_model_file_may_have_what_transformers_reads() -> None:
    assert parse_json(b'{"a": 1, "a": [Infinity]}', LENIENT) == {"a": [float("inf")]}
    assert parse_json(b'{"model_max_length": 1' + b"0" * 30 + b"}", LIMITS)
    assert parse_json('"😀\\ud83d\\ude00"', LIMITS) == "😀😀"
    halves = Limits(bytes=100, values=10, halves=True)
    assert parse_json(b'"\\ud83d"', halves) == "\ud83d"


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b"[]," * 7_000_000 + b"[]]",
        b"[" + b"-1," * 7_000_000 + b"1]",
        b"[" + b'{"a":0},' * 2_600_000 + b"0]",
        b'["' + b'\\"' * 10_000_000,  # a string without an end, full of quotes
        b'["' + b"," * 20_000_000,
        b"[" * 20_000_000,
    ],
    ids=["lists", "numbers", "objects", "open string", "commas", "brackets"],
)
def test_20_mb_of_anything_take_seconds_and_no_memory(data: bytes) -> None:
    limits = Limits(bytes=64 << 20, values=400_000)
    began = time.monotonic()
    tracemalloc.start()
    with pytest.raises(Unfit):
        parse_json(data, limits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 5
    assert peak < 100 << 20  # a copy without its strings, or as text


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.truncate(3 << 30)  # sparse: it takes no room
    tracemalloc.start()
    for read in (lambda: read_object(path, LIMITS), lambda: read_text(path, 1 << 20)):
        with pytest.raises(KPruneError, match=r"a\.json is larger than 1 MiB"):
            read()
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.timeout(20)
def test_what_is_not_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "pipe": "is not a file",
        "device": "is not a file",
        "folder": "is not a file",
        "none": "cannot be read: No such file",
        "x" * 300: "cannot be read: File name too long",
        "x" * 200_000: "cannot be read: File name too long",
    }.items():
        with pytest.raises(KPruneError, match=reason) as caught:
            read_bytes(tmp_path / name, 10)
        assert len(str(caught.value)) < 600


def test_a_file_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xec\x95\x88\r\n")
    assert read_text(tmp_path / "a", 5) == "안\r\n"
    with pytest.raises(KPruneError, match="larger"):
        read_text(tmp_path / "a", 4)
    (tmp_path / "b").write_bytes(b"a\xff")
    with pytest.raises(KPruneError, match=r"not UTF-8 text .* at byte 1"):
        read_text(tmp_path / "b", 4)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "anchors and aliases"),
        ("a: &x 1", "anchors and aliases"),
        ("a: 1\nb: *a", "anchors and aliases"),
        ("a: !!set {x, y}", "tags such as"),
        ("a: !!python/name:os", "tags such as"),
        ("a: !x 1", "tags such as"),
        ("a: 1\nb: 2\na: 3", "the key 'a' occurs twice"),
        ("a: {b: 1, b: 2}", "the key 'b' occurs twice"),
        ("a: " + "[" * 17 + "]" * 17, "nested more than 16 levels"),
        ("a: " + "[" * 400, "nested more than 16 levels"),
        ("a: " + "[" * 60_000, "more than 500 opening brackets"),
        ("? " * 5_000, "nested more than 16 levels"),
        ("a: " + "9" * 5000, "a number of 5,000 digits"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: \x01", "special characters"),
        ("? [a, b]\n: 1", "unhashable"),
        ("a: [1", "expected"),
    ],
)
def test_yaml_that_surprises_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(Unfit, match=reason) as caught:
        read_yaml(path)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-3", -3), ("32_000", 32_000), ("0", 0), ("0.999", 0.999), ("1e-3", 1e-3),
        (".5", 0.5), ("true", True), ("No", False), ("off", False), ("null", None), ("~", None),
        ("", None), ("text", "text"), ("'12'", "12"), ("[en, ko]", ["en", "ko"]),
        # Not numbers, dates or merges here, whatever YAML 1.1 says.
        ("1:59:59", "1:59:59"), ("0x1F", "0x1F"), ("0x" + "f" * 5000, "0x" + "f" * 5000),
        ("010", "010"), ("0b1", "0b1"), ("2024-99-99", "2024-99-99"), ("{<<: 1}", {"<<": 1}),
        ("=", "="),
    ],
)  # fmt: skip
def test_yaml_means_what_people_see(tmp_path: Path, text: str, value: Any) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {text}\n")
    found = read_yaml(path)["a"]
    assert found == value
    assert type(found) is type(value)


def test_a_value_in_a_message_is_short_and_on_one_line_whatever_it_is() -> None:
    values = [10**5000, -(10**5000), [10**5000], ["x\n" * 99] * 999, {"a": {"b": {"c": {"d": 1}}}},
              "\ud800", b"\xff" * 999, 1e300, None, True, {"x" * 999: 1}]  # fmt: skip
    for value in values:
        text = shown(value)
        assert len(text) <= 80
        assert len(text.splitlines()) == 1
