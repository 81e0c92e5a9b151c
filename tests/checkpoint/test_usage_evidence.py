"""A vocabulary from traffic: tokens that a server counted are kept, and the manifest says so."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_folders import save_model
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.curve import measure_curve
from vllm_kprune.checkpoint.manifest import Manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.verify import verify_overlay
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile, as_corpora
from vllm_kprune.storage.digest import sha256_file
from vllm_kprune.vocabulary.usage import make_usage

pytestmark = pytest.mark.slow

# Evidence of Thai words alone: no token of the English sentences has any.
THAI = Profile(name="thai", languages=("th", "en"), code=False)
TEXT = " the weather in Seoul"


@pytest.fixture
def thai_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """English may be kept, and nothing speaks for it: its words and text are left out."""
    from vllm_kprune.checkpoint import plan
    from vllm_kprune.vocabulary.evidence import profile_sources

    monkeypatch.setattr(
        plan, "profile_sources", lambda _, corpora: profile_sources(_alone, corpora)
    )


_alone = Profile(name="x", languages=("th",), code=False)


def counted_ids(model: Path) -> list[int]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return list(tokenizer.encode(TEXT, add_special_tokens=False).ids)


def usage_of(model: Path, ids: list[int], requests: int = 40) -> Path:
    """A file in which each of these ids occurs in so many requests."""
    size = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab_size()
    counts = np.bincount(ids, minlength=size + 3).astype(np.uint64) * np.uint64(requests)
    usage = make_usage(
        counts,
        np.minimum(counts, np.uint64(requests)),
        requests=requests,
        floor=20,
        tokenizer_sha256=sha256_file(model / "tokenizer.json"),
    )
    path = model.parent / "usage.json"
    path.write_text(usage.model_dump_json())
    return path


def build(model: Path, profile: Profile, usage: list[Path], name: str) -> Manifest:
    return build_overlay(model, profile, model.parent / name, usage=usage)


@pytest.mark.usefixtures("thai_alone")
def test_a_token_that_only_usage_speaks_for_is_kept(tiny_model: Path) -> None:
    counted = set(counted_ids(tiny_model))
    without = build(tiny_model, THAI, [], "without")
    dropped = counted - set(without.kept_ids)
    assert len(dropped) >= 3
    usage = usage_of(tiny_model, counted_ids(tiny_model))
    manifest = build(tiny_model, THAI, [usage], "with")
    assert counted <= set(manifest.kept_ids)
    evidence = manifest.evidence[-1]
    assert (evidence.source, evidence.digest) == ("usage usage.json", sha256_file(usage))
    assert evidence.tokens == 40 * len(counted_ids(tiny_model))


@pytest.mark.usefixtures("thai_alone")
def test_the_laws_hold_and_the_selection_is_repeated(tiny_model: Path) -> None:
    usage = usage_of(tiny_model, counted_ids(tiny_model))
    build(tiny_model, THAI, [usage], "with")
    folder = tiny_model.parent / "with"
    laws = verify_overlay(folder, [TEXT], usage=[usage])
    assert all(law.holds for law in laws)
    (law5,) = (law for law in laws if law.law == 5)
    assert law5.note == "selection repeated"
    (law5,) = (law for law in verify_overlay(folder, [TEXT]) if law.law == 5)
    assert "--usage" in law5.note


@pytest.mark.usefixtures("thai_alone")
def test_sizes_that_are_measured_on_text_leave_usage_to_the_ranking(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    usage = usage_of(model, counted_ids(model))
    sized = Profile(name="thai", languages=("th", "en"), code=False, max_extra_tokens=0.01)
    assert build(model, sized, [usage], "sized").kept_ids
    curve = measure_curve(str(model), THAI, corpora=as_corpora([], [usage]))
    assert [name for name in curve.points[0].extra_tokens if "usage" in name] == []


def test_counts_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    model, other = save_model(tmp_path / "a"), save_model(tmp_path / "b", "byte_level")
    usage = usage_of(other, counted_ids(other))
    with pytest.raises(KPruneError, match=r"usage usage\.json: counted with another tokenizer"):
        build(model, THAI, [usage], "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_names_no_token_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    usage = usage_of(model, counted_ids(model), requests=19)
    with pytest.raises(KPruneError, match=r"names no token: none occurs in 20 of the 19 requests"):
        build(model, THAI, [usage], "out")


def test_usage_is_in_vain_where_every_token_is_kept(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    usage = usage_of(model, counted_ids(model))
    with pytest.raises(KPruneError, match="neither a corpus nor a usage file changes anything"):
        build(model, Profile(name="original"), [usage], "out")
