"""The page of a report, and how a browser shows it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.browser import Browser
from support.synthetic_measurements import SHARE, measured
from support.synthetic_report import ENDPOINTS, synthetic_report, synthetic_results

from vllm_kprune.compare.measurements import Example, Span, SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import EndpointReport, Report
from vllm_kprune.compare.report.page import page, write_page
from vllm_kprune.errors import KPruneError

HOSTILE = (
    "</script><script>alert(1)</script><!-- <img src=x onerror='alert(2)'> \u2028\u2029"
    ' {{style}} & "'
)


def hostile_report(text: str = HOSTILE) -> Report:
    example = Example(text, text, (text, "no"), {text: text, "b": "c"}, ((Span(0, 5, text),), ()))
    other = Example("other", "p", ("a", "a"), {text: "d"}, reference=text)
    metric = type(SHARE)("m", text[:150], "share", "higher", 0.01)
    rows = [1.0, 0.0] * 20
    result = SuiteResult(
        text[:50], (measured(metric, rows, rows),), (example, other), {text: text}, (text,)
    )
    endpoint = EndpointReport(
        name="pruned", url="http://h/v1", model=text[:150], description={"a": text}
    )
    return build_report(
        [result],
        endpoints=[endpoint],
        settings={"a": text},
        versions={"b": text},
        seed=1,
        resamples=50,
    )


def embedded(html: str) -> str:
    found = re.findall(r'<script type="application/json" id="report">(.*?)</script>', html, re.S)
    assert len(found) == 1
    return str(found[0])


@given(st.text(max_size=60))
@pytest.mark.slow
def test_whatever_is_in_a_report_stays_data(text: str) -> None:
    report = hostile_report(HOSTILE + text)
    html = page(report)
    assert html.count("<script") == html.count("</script>") == 2
    data = embedded(html)
    assert not re.search("[<>&\u2028\u2029]", data)
    assert json.loads(data) == report.model_dump(mode="json")


def test_the_page_names_nothing_outside_itself() -> None:
    html = page(synthetic_report(resamples=50)).replace(SVG_NAMESPACE, "")
    without_report = html.replace(embedded(html), "")
    assert not re.search(r"https?://|//[a-z]|\bsrc=|@import|url\(", without_report)
    assert "default-src 'none'" in html
    assert "unsafe" not in html


SVG_NAMESPACE = "http://www.w3.org/2000/svg"


def test_the_page_is_small() -> None:
    empty = build_report([], endpoints=(), settings={}, versions={}, seed=1)
    assert len(page(empty)) < 50_000


def test_a_page_that_cannot_be_written_is_a_plain_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    empty = build_report([], endpoints=(), settings={}, versions={}, seed=1)
    with pytest.raises(KPruneError, match="cannot be written"):
        write_page(empty, tmp_path / "file" / "report.html")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(synthetic_report(resamples=500), path)
    return path.as_uri()


def shown(browser: Browser) -> list[str]:
    items = browser.value("[...document.querySelectorAll('.example')].map((e) => e.dataset.item)")
    return list(items)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 800, 1280])
@pytest.mark.slow
def test_nothing_is_loaded_nothing_complains_and_nothing_sticks_out(
    browser: Browser, address: str, width: int, dark: bool
) -> None:
    browser.open(address, width=width, dark=dark)
    assert browser.requests == [address]
    assert browser.complaints == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    sticking_out = browser.value(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('svg') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.className)"
    )
    assert sticking_out == []


@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.slow
def test_several_pruned_sides_stand_beside_each_other(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "report.html"
    write_page(three_sides(), path)
    browser.open(path.as_uri(), width=width)
    assert browser.complaints == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    heads = "[...document.querySelectorAll('.sides-table thead th')].map((e) => e.textContent)"
    assert browser.value(heads) == ["Main metric", "original", "plain", "guarded"]
    assert browser.value("document.querySelectorAll('.sides-table tbody tr').length") == 7
    links = "[...document.querySelectorAll('.sides-table a')].map((e) => e.hash.slice(1))"
    assert browser.value(f"{links}.every((id) => document.getElementById(id))")
    titles = "[...document.querySelectorAll('h2')].map((e) => e.textContent)"
    assert {"Stability: plain", "Stability: guarded"} <= {*browser.value(titles)}


def three_sides() -> Report:
    """An original and two pruned sides, one of them better by chance."""
    pairs = zip(synthetic_results(1), synthetic_results(2), strict=True)
    results = [
        replace(result, side=side)
        for pair in pairs
        for side, result in zip(("plain", "guarded"), pair, strict=True)
    ]
    named = [ENDPOINTS[1].model_copy(update={"name": name}) for name in ("plain", "guarded")]
    endpoints = (ENDPOINTS[0], *named)
    return build_report(
        results, endpoints=endpoints, settings={}, versions={}, seed=1, resamples=200
    )


def test_dark_and_light_have_their_own_colours_and_enough_contrast(
    browser: Browser, address: str
) -> None:
    papers = []
    for dark in (False, True):
        browser.open(address, dark=dark)
        papers.append(browser.value("getComputedStyle(document.body).backgroundColor"))
        for kind in ("soft", "better", "equal", "worse", "unsure", "informational", "why"):
            assert contrast(colour(browser, kind), papers[-1]) >= 4.5, (dark, kind)
    assert papers[0] != papers[1]


def colour(browser: Browser, kind: str) -> str:
    made = f"const e = document.createElement('b'); e.className = '{kind}'"
    shown = "document.body.append(e); return getComputedStyle(e).color"
    return str(browser.value(f"(() => {{ {made}; {shown}; }})()"))


def contrast(first: str, second: str) -> float:
    """WCAG 2.1's contrast ratio of two colours."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_summary_first_then_a_row_for_each_metric_with_its_interval(
    browser: Browser, address: str
) -> None:
    report = synthetic_report(resamples=500)
    browser.open(address)
    cards = browser.value("[...document.querySelectorAll('.card')].map((e) => e.textContent)")
    assert len(cards) == len(report.suites)
    for card, suite in zip(cards, report.suites, strict=True):
        assert suite.words in card
    rows = browser.value("document.querySelectorAll('.row').length")
    assert rows == sum(len(suite.metrics) for suite in report.suites)
    whiskers = browser.value("document.querySelectorAll('.whisker').length")
    metrics = [metric for suite in report.suites for metric in suite.metrics]
    assert whiskers == sum(metric.effect.low is not None for metric in metrics)
    text = browser.value("document.body.textContent")
    for suite in report.suites:
        for why in suite.unavailable.values():
            assert why in text
    # Two latency distributions, one curve of input pruning, three of size against quality.
    assert browser.value("document.querySelectorAll('.chart').length") == 6


@pytest.mark.parametrize(
    "view, expected",
    [
        ("suite=translation", 5),
        ("language=en", 12),
        ("different=1", 35),
        ("spans=1", 30),
        ("language=ko&temperature=1", 15),
        ("verdict=identical", 12),
        ("verdict=identical&different=1", 0),
        ("search=COMMITTEE", 12),
        ("search=%E7%85%AE", 10),
        ("language=none-such", 47),
        ("search=[<b>", 0),
    ],
)
def test_filters_show_what_they_say(
    browser: Browser, address: str, view: str, expected: int
) -> None:
    browser.open(f"{address}#{view}")
    assert browser.value("document.getElementById('count').textContent") == (
        f"{expected} of 47 examples"
    )
    assert len(shown(browser)) == min(expected, 20)


def test_filters_answer_to_the_reader_and_are_kept_in_the_address(
    browser: Browser, address: str
) -> None:
    browser.open(address)
    assert len(shown(browser)) == 20
    browser.value("document.querySelector('.more').click()")
    assert len(shown(browser)) == 40
    browser.value("document.querySelector('.filters input[type=checkbox]').click()")
    assert browser.value("location.hash") == "#different=1"
    browser.value(
        "(() => { const box = document.querySelector('input[type=search]');"
        " box.value = 'museum'; box.dispatchEvent(new Event('input')); })()"
    )
    assert len(shown(browser)) == 5
    browser.value("document.querySelector('.filters button').click()")
    assert browser.value("document.getElementById('count').textContent") == "47 of 47 examples"


def test_spans_are_highlighted_where_they_are_also_after_an_emoji(
    browser: Browser, tmp_path: Path
) -> None:
    answer = "🍲🍲 먹고 煮 끝"
    spans = ((Span(6, 7, "Han character"),), ())
    example = Example("one", "찌개?", (answer, "🍲🍲 먹고 끓 끝"), {}, spans)
    result = SuiteResult("stability", (), (example,))
    report = build_report([result], endpoints=(), settings={}, versions={}, seed=1)
    write_page(report, tmp_path / "report.html")
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.value("document.querySelector('mark').textContent") == "煮"
    assert browser.value("document.querySelector('.answer .text').textContent") == answer
    assert "Han character" in browser.value("document.querySelector('.why').textContent")


def test_text_of_answers_is_text_in_the_browser_too(browser: Browser, tmp_path: Path) -> None:
    write_page(hostile_report(), tmp_path / "report.html")
    address = (tmp_path / "report.html").as_uri()
    browser.open(address, width=375)
    assert browser.complaints == []
    assert browser.requests == [address]
    assert browser.value("document.querySelectorAll('img, main script').length") == 0
    assert browser.value("document.querySelector('.answer .text').textContent") == HOSTILE
    assert browser.value("document.documentElement.scrollWidth") <= 375


def test_names_of_suites_stay_whole(browser: Browser, address: str) -> None:
    for width in (1280, 320):
        browser.open(address, width=width)
        heights = browser.value(
            "[...document.querySelectorAll('.card .name')].map((e) => e.getClientRects().length +"
            " Math.round(e.getBoundingClientRect().height /"
            " parseFloat(getComputedStyle(e).lineHeight)))"
        )
        assert heights == [2] * 7, width


def test_what_cannot_be_seen_is_shown_by_its_number(browser: Browser, tmp_path: Path) -> None:
    answer = "a\u202eb\u2066c\u200bd\x07e\n가"
    example = Example("one", "p\u202e", (answer, "a"), {}, reference="\u2067")
    result = SuiteResult("stability", (), (example,))
    report = build_report([result], endpoints=(), settings={}, versions={}, seed=1)
    write_page(report, tmp_path / "report.html")
    browser.open((tmp_path / "report.html").as_uri())
    texts = browser.value(
        "[...document.querySelectorAll('.example .text')].map((e) => e.textContent)"
    )
    assert texts[0] == "pU+202E"
    assert texts[1] == "aU+202EbU+2066cU+200BdU+0007e\n가"
    assert texts[3] == "Reference: U+2067"


def test_figures_of_one_language_are_folded_and_can_be_opened(
    browser: Browser, address: str
) -> None:
    browser.open(address)
    inside = "[...document.querySelectorAll('details .row')].map((e) => e.dataset.metric)"
    assert browser.value(inside) == ["lpr_en_t0", "lpr_en_t1", "lpr_ko_t0", "lpr_ko_t1"]
    tall = "document.querySelector('details .row').checkVisibility()"
    assert browser.value(tall) is False
    browser.value("document.querySelector('details summary').click()")
    assert browser.value(tall) is True


def missing_main(main: str, **unavailable: str) -> Report:
    """Translation that stands for a metric, with sizes."""
    size = type(SHARE)("weights", "Weights", "bytes", "lower", 0.01, "exact")
    results = [
        SuiteResult("translation", (measured(SHARE, [1.0] * 9, [1.0] * 9),), (), unavailable,
                    main=main),
        SuiteResult("memory", (measured(size, [2e9], [1e9]),)),
    ]  # fmt: skip
    return build_report(results, endpoints=(), settings={}, versions={}, seed=1, resamples=50)


def test_no_other_metric_stands_for_a_main_one_that_is_missing(
    browser: Browser, tmp_path: Path
) -> None:
    charts = []
    for report in (missing_main("share"), missing_main("chrf", chrf="no sentence")):
        write_page(report, tmp_path / "report.html")
        browser.open((tmp_path / "report.html").as_uri())
        charts.append(browser.value("document.querySelectorAll('.chart').length"))
    assert charts == [1, 0]
    card = browser.value("document.querySelector('.card').textContent")
    assert "chrf not measured: no sentence" in card
    assert "Correct answers" not in card


def test_the_keyboard_reaches_cards_and_filters(browser: Browser, address: str) -> None:
    browser.open(address)
    reached = []
    for _ in range(18):
        browser.press("Tab")
        reached.append(browser.value("document.activeElement.tagName"))
    assert reached[0] == "A"
    assert reached[1:8] == ["A"] * 7
    assert {"SELECT", "INPUT", "BUTTON"} <= set(reached)


def test_the_page_can_be_printed(browser: Browser, address: str) -> None:
    browser.open(address)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


def test_a_report_of_nothing_is_still_a_page(browser: Browser, tmp_path: Path) -> None:
    empty = build_report([], endpoints=(), settings={}, versions={}, seed=1)
    write_page(empty, tmp_path / "report.html")
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.complaints == []
    assert "Nothing was judged" in browser.value("document.body.textContent")
