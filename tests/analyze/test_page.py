"""The page: hostile names stay text, nothing is loaded, and a browser shows it at any width."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.browser import Browser

from vllm_kprune.analyze.charts import Series, heatmap, interval_chart, line_chart, table
from vllm_kprune.analyze.features import Embeddings, compare_features
from vllm_kprune.analyze.lape import compare_neurons
from vllm_kprune.analyze.mask_similarity import compare_masks
from vllm_kprune.analyze.masks import MatrixName, PackedMasks, pack_zeros
from vllm_kprune.analyze.neurons import NeuronActivity, NeuronSite
from vllm_kprune.analyze.page import Section, page, write_page
from vllm_kprune.analyze.perplexity import Perplexity
from vllm_kprune.analyze.ratio import Ratio
from vllm_kprune.analyze.run import (
    FeatureResults,
    MeasuredModel,
    NeuronResults,
    PerplexityResults,
)
from vllm_kprune.analyze.sections import (
    feature_sections,
    mask_sections,
    neuron_sections,
    perplexity_sections,
)
from vllm_kprune.errors import KPruneError

HOSTILE = "</style><script>alert(1)</script> \"'&<img src=x>"
LANGUAGES = ("ar", "de", "en", "es", "ko", "ru", "zh")
LONG = "a-very-long-name-of-a-folder-" * 4


def all_sections(name: str = LONG) -> list[Section]:
    """The sections of all four analyses, of made-up results with 7 languages and 28 layers."""
    import torch

    random = np.random.default_rng(0)
    measured = []
    for number in range(3):
        bits = {one: Ratio(v := 1 + random.random(), 0.1, (v - 0.2, v + 0.2)) for one in LANGUAGES}
        rows = {one: Perplexity(9.0, 9, 9, 3, b, b) for one, b in bits.items()}
        measured.append(MeasuredModel(f"{name}{number}", "ko" if number else "", rows))
    masks = []
    for language in ("ko", "ko", "en"):
        weights = {
            MatrixName(layer, kind): torch.from_numpy(random.integers(0, 2, (4, 4)))
            for layer in range(28)
            for kind in ("mlp.up_proj", "self_attn.q_proj")
        }
        shapes = {matrix: (4, 4) for matrix in weights}
        packed = {matrix: pack_zeros(values) for matrix, values in weights.items()}
        masks.append(PackedMasks(name + language, (language,), shapes, packed))
    prompts = tuple(one for one in LANGUAGES for _ in range(3))
    values = random.normal(size=(28, len(prompts), 16)).astype(np.float32)
    change = compare_features(Embeddings(prompts, values), Embeddings(prompts, values * 1.1))
    sites = tuple(NeuronSite(layer, "mlp", 50) for layer in range(28))
    before, after = (
        NeuronActivity(LANGUAGES, (100,) * 7, sites, random.integers(0, 100, (7, 1400)))
        for _ in range(2)
    )
    neurons = compare_neurons(before, after)
    return [
        *perplexity_sections(PerplexityResults(tuple(measured))),
        *mask_sections(compare_masks(masks)),
        *feature_sections(FeatureResults(name, {name: change, "other": change})),
        *neuron_sections(NeuronResults(name, {name: neurons})),
    ]


@given(st.text(max_size=40))
def test_names_stay_text(name: str) -> None:
    name = HOSTILE + name
    series = [Series(name, [(0, 0), (1, 1)], [0.1, 0.2]), Series(name, [(0, 1), (1, 0)])]
    charts = [
        table([name], [[name, name]]),
        heatmap(name, [name], [name], [[0.5]], corner=name),
        line_chart(name, series, x_title=name, y_title=name),
        interval_chart(name, [name, name], series, name),
    ]
    html = page(name, name, [Section(name, name, charts)])
    assert "<script" not in html and "<img" not in html
    assert html.count("<style>") == html.count("</style>") == 1


def test_nothing_outside_the_page_is_named() -> None:
    html = page("t", "l", all_sections())
    assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|url\(|style=", html)
    assert "default-src 'none'" in html and "unsafe" not in html
    # Page and charts are small enough to mail.
    assert len(html) < 2_000_000


def test_lines_are_where_their_values_are() -> None:
    """From 0 to 4 across and from 10 to 20 upwards: (1, 15) is at 25 % and half the height."""
    series = Series("s", [(0, 10), (1, 15), (4, 20)])
    html = line_chart("c", [series], x_title="x", y_title="y")
    assert 'points="0.00,100.00 25.00,50.00 100.00,0.00"' in html
    assert ">14<" in html  # a tick
    flat = line_chart("c", [Series("s", [(0, 1), (1, 1)])], x_title="x", y_title="y")
    assert "nan" not in flat and "inf" not in flat


def test_shades_follow_the_values() -> None:
    html = heatmap("c", ["a", "b"], ["x", "y"], [[0.0, 0.5], [1.0, None]])
    assert re.findall(r'class="s(\d+)"', html) == ["0", "5", "10"]
    assert "<td></td>" in html


def test_a_page_that_cannot_be_written_is_a_plain_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(KPruneError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", "t", "l", [])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, LONG, f"Text: {LONG}", all_sections())
    return path.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 375, 1280])
@pytest.mark.slow
def test_nothing_is_loaded_nothing_complains_and_nothing_sticks_out(
    browser: Browser, address: str, width: int, dark: bool
) -> None:
    browser.open(address, width=width, dark=dark)
    assert browser.requests == [address]
    assert browser.complaints == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    shown = browser.value("getComputedStyle(document.body).backgroundColor")
    assert shown == ("rgb(20, 23, 26)" if dark else "rgb(252, 252, 250)")
