"""Profiles are read strictly: what is not known is refused, with the nearest known name."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import wordfreq

from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import (
    LANGUAGES,
    Profile,
    load_profile,
    nearest_language,
    parse_profile,
    shipped_profiles,
)


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["enko", "original"])
def test_profiles_that_ship_with_kprune_are_read_by_name(name: str) -> None:
    assert name in shipped_profiles()
    assert load_profile(name).name == name


def test_enko_is_english_and_korean_and_original_keeps_everything() -> None:
    enko = load_profile("enko")
    assert enko.languages == ("en", "ko")
    assert enko.scripts() == {"Latin", "Hangul"}
    assert not enko.keeps_everything
    assert load_profile("original").keeps_everything


def test_a_file_of_the_users_own_is_named_after_itself(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, "languages: [ko, ja]\nhanja: ksx1001\n"))
    assert profile == Profile(name="mine", languages=("ko", "ja"), hanja="ksx1001")


def test_overrides_replace_values_and_a_size_replaces_the_profiles_own(tmp_path: Path) -> None:
    path = write(tmp_path, "languages: [ko]\nmin_count: 3\ncode: true\n")
    profile = load_profile(path, target_size=1000, code=False, hanja=None)
    assert (profile.target_size, profile.min_count, profile.code) == (1000, None, False)
    assert profile.hanja == "none"
    assert load_profile(path, code=False).min_count == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("langauges: [ko]", r"unknown option 'langauges'; did you mean 'languages'\?"),
        ("languages: [kr]", r"languages: unknown 'kr'; did you mean 'ko'\?"),
        ("languages: [KO]", "languages: unknown 'KO'; "),
        ("languages: ko", "languages: .*got 'ko'"),
        ("languages: [no]", "languages: got False, expected a list of language codes"),
        ("languages: [[ko]]", r"languages: got \['ko'\], expected a list of language codes"),
        ("hanja: some", "hanja: got 'some', expected none, ksx1001 or all"),
        ("code: 'yes'", "code: .*got 'yes'"),
        ("coverage: 0", "coverage: got 0, expected a share, above 0 and at most 1"),
        ("coverage: 1.1", "coverage: got 1.1, expected a share, above 0 and at most 1"),
        ("coverage: '0.9'", "coverage: got '0.9', expected a share"),
        ("coverage: .nan", "coverage"),
        ("min_count: -1", "min_count"),
        ("min_count: .inf", "min_count: .*finite"),
        ("target_size: 0", "target_size"),
        ("target_size: 10.5", "target_size"),
        ("target_size: true", "target_size: .*got True"),
        ("target_size: 9\ncoverage: 0.9", "one of coverage and target_size, not both"),
        ("min_count: 9\ncoverage: 0.9", "one of coverage and min_count, not both"),
        ("name: ../evil", "name: .*got '../evil'"),
        ("name: ''", "name"),
        ("description: [x]", "description"),
        ("", "expected a mapping"),
        ("- ko", "expected a mapping"),
        ("1: ko", "expected a mapping"),
        ("languages: [ko", "not a readable YAML profile"),
        ("a: " + "[" * 3000, "not a readable YAML profile"),
        ("a: " + "1" * 5000, "not a readable YAML profile"),
        ("a: \x01", "not a readable YAML profile"),
    ],
)
def test_a_bad_profile_is_refused_by_file_key_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(KPruneError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"coverage": 2}, "coverage: got 2, expected a share, above 0 and at most 1"),
        ({"coverage": 0.9, "target_size": 5000}, "give one of coverage and target_size, not both"),
        ({"languages": ["kr"]}, "languages: unknown 'kr'; did you mean 'ko'"),
    ],
)
def test_a_mistake_of_the_caller_is_not_blamed_on_the_shipped_file(
    overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(KPruneError) as caught:
        load_profile("enko", **overrides)
    assert str(caught.value).startswith(message)
    assert ".yaml" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("enk", r"unknown profile 'enk'; did you mean 'enko'\? .*\.yaml"),
        ("..", r"unknown profile '\.\.'"),
        ("", "unknown profile ''"),
        ("missing.yaml", "missing.yaml does not exist"),
        ("configs/missing", "missing does not exist"),
        ("a" * 300 + ".yml", "File name too long"),
    ],
)
def test_a_profile_that_is_not_there_is_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(KPruneError, match=message):
        load_profile(name)


def test_a_folder_is_not_a_profile(tmp_path: Path) -> None:
    with pytest.raises(KPruneError, match="does not exist"):
        load_profile(tmp_path)


def test_a_file_of_other_bytes_is_not_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(KPruneError, match="not a readable YAML profile"):
        load_profile(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, "# " + "x" * (1 << 20))
    with pytest.raises(KPruneError, match="larger than 64 KiB"):
        load_profile(path)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os"]
)
def test_yaml_that_asks_for_python_is_refused_and_not_run(tmp_path: Path, tag: str) -> None:
    trace = tmp_path / "ran"
    with pytest.raises(KPruneError, match="not a readable YAML profile"):
        load_profile(write(tmp_path, f"description: {tag} ['{trace}']"))
    assert not trace.exists()


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(KPruneError, match=r"'targetsize'; did you mean 'target_size'\?"):
        load_profile("enko", targetsize=10)


def test_a_profile_survives_its_own_json() -> None:
    values: dict[str, Any] = {"name": "x", "languages": ["ko"], "coverage": 0.5}
    profile = parse_profile(values)
    assert parse_profile(json.loads(json.dumps(asdict(profile)))) == profile


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_each_language_has_scripts_and_a_word_list_that_exists(code: str) -> None:
    language = LANGUAGES[code]
    assert language.scripts
    assert not language.wordlist or language.wordlist in wordfreq.available_languages("best")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[("kr", "ko"), ("jp", "ja"), ("cn", "zh"), ("us", "en"), ("GB", "en"), ("ua", "uk")],
        *[("korean", "ko"), ("English", "en"), ("ko-KR", "ko"), ("zh_Hant", "zh"), ("kor", "ko")],
        *[("Koren", "ko"), ("portugese", "pt")],
    ],
)
def test_a_country_or_a_name_is_answered_with_its_code(written: str, meant: str) -> None:
    assert nearest_language(written).startswith(f"did you mean '{meant}'?")


def test_a_language_that_is_not_known_is_not_taken_for_another() -> None:
    assert nearest_language("xx").startswith("known: ar, cs, ")
