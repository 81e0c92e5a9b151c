"""What a user adds to every request: it is sent, it is no secret's leak, and it cannot mislead."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint

from vllm_kprune.cli import main
from vllm_kprune.compare.endpoint.extras import Extras, extra_body, extra_headers, extra_query
from vllm_kprune.compare.endpoint.messages import Endpoint, same_endpoint
from vllm_kprune.errors import KPruneError

KEY = "a-key-that-nobody-may-see"
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture
def mocks() -> Iterator[tuple[MockEndpoint, MockEndpoint]]:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        yield original, pruned


def compare(mocks: tuple[MockEndpoint, MockEndpoint], *options: object) -> int:
    sides = "--original", mocks[0].url, "--pruned", mocks[1].url
    try:
        main(["compare", *sides, "--suite", "stability", "--limit", "2", *map(str, options)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_extras_reach_their_side_and_stay_out_of_what_is_written(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    pytest.importorskip("py3langid", reason="pip install 'vllm-kprune[compare]'")
    options = (
        "--header",
        f"api-key: {KEY}",
        "--query",
        "api-version=1",
        "--extra-body",
        '{"a": 1}',
    )
    own = ("--pruned-extra-body", json.dumps(OFF), "--pruned-header", "X-Side: pruned")
    assert compare(mocks, *options, *own, "-o", tmp_path) == 0
    for mock in mocks:
        assert all(body["a"] == 1 for body in mock.asked)
        assert all(headers["api-key"] == KEY for headers in mock.headers)
        assert all(path.endswith("?api-version=1") for path in mock.visited)
    assert all(body.items() >= OFF.items() for body in mocks[1].asked)
    assert not any("chat_template_kwargs" in body for body in mocks[0].asked)
    assert [("x-side" in mock.headers[0]) for mock in mocks] == [False, True]
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in written)
    settings = json.loads((tmp_path / "report.json").read_text())["settings"]
    assert settings["pruned_extra_body"] == {"a": 1, **OFF}
    assert settings["pruned_headers"] == ["api-key", "x-side"]


def test_other_extras_are_other_settings(
    mocks: tuple[MockEndpoint, MockEndpoint],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("py3langid", reason="pip install 'vllm-kprune[compare]'")
    assert compare(mocks, "-o", tmp_path) == 0
    assert compare(mocks, "-o", tmp_path, "--extra-body", json.dumps(OFF)) == 2
    assert "original_extra_body was None, now" in capsys.readouterr().err


def test_a_server_that_quotes_a_header_does_not_show_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MockEndpoint(Habits(key="right")) as original, MockEndpoint() as pruned:
        header = "--header", f"Authorization: Bearer {KEY}"
        assert compare((original, pruned), *header, "-o", tmp_path) == 2
    err = capsys.readouterr().err
    assert "wrong key ***" in err and KEY not in err


def test_one_server_with_and_without_thinking_is_no_comparison_with_itself() -> None:
    sides = [Endpoint(name, "http://a:1/v1", "m") for name in ("original", "pruned")]
    assert same_endpoint(*sides)
    other = Endpoint("pruned", "http://a:1/v1", "m", extras=Extras(OFF))
    assert not same_endpoint(sides[0], other)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"a": NaN}', "expected a JSON object"),
        ('{"temperature": 1}', "the suites set it"),
        ('{"max_tokens": 9}', "use --max-tokens"),
    ],
)
def test_a_body_that_cannot_be_added_is_refused(text: str, told: str) -> None:
    with pytest.raises(KPruneError, match="--extra-body") as raised:
        extra_body("--extra-body", text)
    assert told in str(raised.value)


@pytest.mark.parametrize("line", ["api-key", ": x", "a b: c", "a: \x00", "a: ü"])
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(line: str) -> None:
    with pytest.raises(KPruneError, match="--header"):
        extra_headers("--header", [line])


def test_headers_and_queries_are_read() -> None:
    assert extra_headers("--header", ["A: b: c "]) == {"A": "b: c"}
    assert extra_query("--query", ["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    with pytest.raises(KPruneError, match="NAME=VALUE"):
        extra_query("--query", ["a"])
