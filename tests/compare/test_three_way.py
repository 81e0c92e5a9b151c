"""Several pruned sides against one original, which is asked once."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.command import Run, command_runner
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint
from support.synthetic_measurements import SPEED, measured

from vllm_kprune.cli.compare_extras import ExtraOptions
from vllm_kprune.cli.compare_sides import EndpointOptions, sides_of
from vllm_kprune.compare.conditions import check_gates, parse_gates
from vllm_kprune.compare.gate import gate_results
from vllm_kprune.compare.measurements import Metric, SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.report.report_file import read_report
from vllm_kprune.compare.report.sides import side_by_side
from vllm_kprune.compare.suites.stability_prompts import STABILITY_TOKENS
from vllm_kprune.errors import KPruneError

pytest.importorskip("py3langid", reason="names languages; pip install 'vllm-kprune[compare]'")
SMALL = ("--suite", "stability", "--limit", "20")
HANJA = Habits(hanja=0.7)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return command_runner(capsys, "compare")


def report_in(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_two_sides_are_judged_together_and_the_original_is_asked_once(
    run: Run, tmp_path: Path
) -> None:
    with MockEndpoint() as original, MockEndpoint(HANJA) as bad, MockEndpoint() as good:
        sides = ("--original", original.url, "--pruned", f"bad@{bad.url}")
        more = ("--pruned", f"good@{good.url}")
        files = ("--junit", tmp_path / "j.xml", "--summary-md", tmp_path / "s.md")
        code, out, err = run(*sides, *more, *SMALL, "-o", tmp_path, "--fail-on", "worse", *files)
        # What an answer was asked for: chats at T=0 and 1 without the probing.
        asked = [
            Counter(json.dumps(body, sort_keys=True) for body in mock.asked)
            for mock in (original, bad, good)
        ]
        alone = run(*sides, *SMALL, "-o", tmp_path / "two")
    assert code == 1, err
    assert sum(asked[0].values()) == sum(asked[1].values()) == sum(asked[2].values())
    assert "failed: worse: bad: " in err and "; good: none of " in err
    report = report_in(tmp_path)
    assert [one["name"] for one in report["endpoints"]] == ["original", "bad", "good"]
    assert report["settings"]["sides"] == ["original", "bad", "good"]
    names = [(one["name"], one["verdict"]) for one in report["suites"]]
    assert names[0] == ("stability@bad", "worse")
    assert names[1][0] == "stability@good" and names[1][1] != "worse"
    # Holm over all: the same p-value weighs more than in a report about one side.
    assert alone[0] == 0
    two, three = (
        {metric["name"]: metric for metric in one["suites"][0]["metrics"]}
        for one in (report_in(tmp_path / "two"), report)
    )
    tested = [name for name, one in two.items() if one["p"] is not None]
    assert all(two[name]["p"] == three[name]["p"] for name in tested)
    assert all(two[name]["effect"] == three[name]["effect"] for name in two)
    least = min(tested, key=lambda name: two[name]["p"])
    assert three[least]["p_adjusted"] > two[least]["p_adjusted"] > two[least]["p"]
    # Side by side on the screen and in the files.
    assert ["original", "bad", "good"] in [line.split() for line in out.splitlines()]
    assert "worse" in out
    assert "| suite | main metric | original | bad | good |" in (tmp_path / "s.md").read_text()
    suites = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert [one.get("name") for one in suites][:2] == ["stability@bad", "stability@good"]


@pytest.fixture(scope="module")
def judged() -> Report:
    """`bad` leaks in a third of 60 answers, `good` in none."""
    leaks = Metric("foreign_t0", "foreign", "share", "lower", 0.02)
    none, some = [0.0] * 60, [1.0, 0.0, 0.0] * 20
    decode = replace(SPEED, name="decode_ratio@8")
    results = [
        SuiteResult("stability", (measured(leaks, none, some),), side="bad"),
        SuiteResult("stability", (measured(leaks, none, none),), side="good"),
        SuiteResult("latency", (measured(decode, [1.0, 1.1] * 30, [2.0, 2.3] * 30),), side="bad"),
        SuiteResult("latency", (), unavailable={"*": "no stream"}, side="good"),
    ]
    return build_report(results, endpoints=(), settings={}, versions={}, seed=1, resamples=500)


@pytest.mark.parametrize(
    ("condition", "failed"),
    [
        ("worse", True),
        ("stability.worse", True),
        ("stability@bad.worse", True),
        ("stability@good.worse", False),
        ("stability>0", True),
        ("stability@bad>0", True),
        ("stability@good>0", False),
        ("stability@bad.foreign_t0>0", True),
        ("foreign_t0@good>0", False),
        ("decode_ratio@8@bad<1.5", False),
        ("decode_ratio@8<1.5", True),  # not measured for `good`
    ],
)
def test_conditions_are_about_every_side_or_the_one_they_name(
    judged: Report, condition: str, failed: bool
) -> None:
    gates = parse_gates([condition])
    known = {"stability": ("foreign_t0",), "latency": ("decode_ratio*",)}
    check_gates(gates, known, ("bad", "good"))
    (result,) = gate_results(gates, judged)
    assert result.failed is failed, result.why


def test_a_side_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KPruneError, match="no such suite or metric"):
        check_gates(parse_gates(["stability@god<0"]), {"stability": ("a",)}, ("bad", "good"))


@pytest.mark.slow
def test_a_report_of_three_sides_is_judged_again_to_the_same_bytes(
    run: Run, tmp_path: Path
) -> None:
    with MockEndpoint() as original, MockEndpoint(HANJA) as bad, MockEndpoint() as good:
        sides = ("--original", original.url, "--pruned", f"bad@{bad.url}", "--pruned", good.url)
        suites = ("--suite", "stability,latency,memory", "--rounds", "1", "--batch", "1")
        assert run(*sides, *suites, "--limit", "6", "-o", tmp_path)[0] == 0
    before = (tmp_path / "report.json").read_bytes(), (tmp_path / "report.html").read_bytes()
    assert run("--rejudge", tmp_path)[0] == 0
    assert ((tmp_path / "report.json").read_bytes(), (tmp_path / "report.html").read_bytes()) == (
        before
    )
    rows = side_by_side(read_report(tmp_path / "report.json"))
    assert [row.suite for row in rows] == ["stability", "latency", "memory"]
    assert all(len(row.sides) == 2 for row in rows)
    rounds = [line for line in (tmp_path / "answers" / "latency.jsonl").read_text().splitlines()]
    keys = {json.loads(line).get("key") for line in rounds[1:]}
    assert keys == {"bad/1/0", "pruned2/1/0"}


def test_values_of_options_hold_for_all_pruned_sides_or_for_one() -> None:
    endpoints = EndpointOptions(
        original="http://a",
        pruned=("http://b", "guarded@http://c:1"),
        pruned_model=("guarded@big", "small"),
    )
    extras = ExtraOptions(
        header=("x: 1",),
        pruned_header=("y: 2", "guarded@y: 3"),
        pruned_extra_body=('guarded@{"a": 1}',),
        pruned_query=("pruned@v=1", "mail=me@home"),
    )
    sides = sides_of(endpoints, extras)
    (more,) = sides.more
    assert sides.names == ("pruned", "guarded")
    assert (sides.pruned.model, more.model) == ("small", "big")
    assert more.url == "http://c:1"
    assert sides.original.extras.headers == {"x": "1"}
    assert sides.pruned.extras.headers == {"x": "1", "y": "2"}
    assert more.extras.headers == {"x": "1", "y": "3"}
    assert (sides.pruned.extras.body, more.extras.body) == ({}, {"a": 1})
    assert sides.pruned.extras.query == {"v": "1", "mail": "me@home"}
    assert more.extras.query == {"mail": "me@home"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruned": ("x@http://b", "x@http://c")}, "names of the sides must differ"),
        ({"pruned": ("original@http://b",)}, "names of the sides must differ"),
        ({"pruned": ("http://b", "http://c"), "pruned_model": ("m", "n")}, "name the side of each"),
        ({"pruned": ("http://b",) * 9}, "got 9 sides, expected at most 8"),
    ],
)
def test_sides_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    from vllm_kprune.compare.comparing import compare_endpoints

    with pytest.raises(KPruneError, match=message):
        sides = sides_of(EndpointOptions(original="http://127.0.0.1:9", **options), ExtraOptions())
        compare_endpoints(
            sides.original, sides.pruned, more=sides.more, output=tmp_path, suites=["memory"]
        )
    assert not list(tmp_path.iterdir())


def test_one_side_alone_may_have_a_name(run: Run, tmp_path: Path) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        sides = ("--original", original.url, "--pruned", f"guarded@{pruned.url}")
        code, _, err = run(*sides, "-s", "stability", "--limit", "6", "-o", tmp_path)
    assert code == 0, err
    report = report_in(tmp_path)
    assert [one["name"] for one in report["endpoints"]] == ["original", "guarded"]
    assert [one["name"] for one in report["suites"]] == ["stability"]


def test_if_one_side_has_no_chats_all_are_asked_for_completions(run: Run, tmp_path: Path) -> None:
    """The original's answers can be asked for once only if the questions are the same."""
    with (
        MockEndpoint() as original,
        MockEndpoint() as one,
        MockEndpoint(Habits(chats=False)) as two,
    ):
        sides = ("--original", original.url, "--pruned", one.url, "--pruned", two.url)
        code, _, err = run(*sides, "-s", "stability", "--limit", "6", "-o", tmp_path)
        bodies = [body for body in original.asked if body.get("max_tokens") == STABILITY_TOKENS]
    assert code == 0, err
    assert len(bodies) == 12
    assert all("prompt" in body for body in bodies)
    assert "pruned2 has none" in str(report_in(tmp_path)["suites"][0]["notes"])
