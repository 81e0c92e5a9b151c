"""`kprune tokenizer`: a tokenizer pruned alone, checked, inspected, and not taken for a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.published import PRUNED
from support.tiny_folders import contents, edit, read, save_model
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.manifest import load_manifest

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=["byte_fallback", "byte_level"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model folder of each kind without its weights."""
    model = save_model(tmp_path / "folder", request.param)
    (model / "model.safetensors").unlink()
    return model


def pruned(run: Command, folder: Path, output: Path, *more: object) -> dict[str, Any]:
    code, out, err = run("tokenizer", folder, "-o", output, "--json", "-", *more)
    assert code == 0, err
    figures: dict[str, Any] = json.loads(out)
    return figures


def laws(run: Command, *arguments: object) -> list[tuple[int, bool]]:
    code, out, err = run("verify", *arguments, "--json", "-")
    assert code in (0, 1), err
    return [(result["law"], result["holds"]) for result in json.loads(out)]


ALL_HOLD = [(law, True) for law in (1, 2, 3, 5, 6)]


def test_a_folder_without_weights_is_pruned_with_every_id_mapped(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    figures = pruned(run, folder, output, "--profile", profile)
    tokenizer = Tokenizer.from_file(str(output / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == figures["tokens"]["kept"] < figures["tokens"]["original"]
    ids = {name: tokenizer.token_to_id(f"<{name}>") for name in ("pad", "eos", "bos", "unk")}
    config = read(output / "config.json")
    assert config["bos_token_id"] == ids["bos"]
    assert config["eos_token_id"] == [ids["eos"], ids["pad"]]
    assert config["vocab_size"] == figures["tokens"]["kept"]
    assert "dtype" not in config
    assert read(output / "generation_config.json")["eos_token_id"] == ids["eos"]
    added = read(output / "tokenizer_config.json")["added_tokens_decoder"]
    assert added == {str(i): {"content": f"<{name}>"} for name, i in ids.items()}
    assert (output / "chat_template.jinja").read_bytes() == (
        folder / "chat_template.jinja"
    ).read_bytes()
    assert laws(run, output) == ALL_HOLD


def test_ids_that_a_known_family_implies_are_written_down(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    """Left out, `eos_token_id` of a Llama is 2: another token after pruning."""
    config = read(folder / "config.json")
    del config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pruned(run, folder, tmp_path / "out", "--profile", profile)
    after = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    eos = read(tmp_path / "out" / "config.json")["eos_token_id"]
    assert after.id_to_token(eos) == original.id_to_token(2)
    assert laws(run, tmp_path / "out") == ALL_HOLD


def test_tokenizer_json_alone_is_enough(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "tokenizer.json", alone)
    pruned(run, alone, tmp_path / "out", "--profile", profile)
    assert set(contents(tmp_path / "out")) == {"tokenizer.json", "kprune.json"}
    assert laws(run, tmp_path / "out") == ALL_HOLD


def test_weights_beside_a_tokenizer_are_not_looked_at(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    pruned(run, folder, tmp_path / "a", "--profile", profile)
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    pruned(run, folder, tmp_path / "b", "--profile", profile)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_its_manifest_keeps_the_same_ids_as_an_overlay_of_the_model(
    run: Command, profile: Path, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model")
    pruned(run, model, tmp_path / "a", "--profile", profile)
    code, _, err = run("build", model, "--profile", profile, "-o", tmp_path / "b")
    assert code == 0, err
    alone, overlay = load_manifest(tmp_path / "a"), load_manifest(tmp_path / "b")
    assert (alone.tokenizer_only, overlay.tokenizer_only) == (True, False)
    assert (alone.kept_ids, alone.reasons) == (overlay.kept_ids, overlay.reasons)
    assert (alone.vocabulary_tensors, alone.original_rows, alone.kept_rows) == ((), 0, ())
    tokenizers = [contents(tmp_path / name)["tokenizer.json"] for name in "ab"]
    assert tokenizers[0] == tokenizers[1]


def test_pruning_again_from_the_result_gives_the_same_bytes(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    pruned(run, folder, tmp_path / "a", "--profile", profile)
    pruned(run, tmp_path / "a", tmp_path / "b", "--profile", profile)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second


def test_inspect_shows_the_result_and_a_folder_without_sizes(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    kept = pruned(run, folder, tmp_path / "out", "--profile", profile)["tokens"]["kept"]
    for arguments in ([tmp_path / "out"], [folder, "--profile", profile]):
        code, out, err = run("inspect", *arguments, "--json", "-")
        assert code == 0, err
        result = json.loads(out)
        assert result["tokens"]["pruned"] == kept
        assert result["bytes"] is result["parameters"] is result["vocabulary_bytes"] is None
    code, out, _ = run("inspect", folder)
    assert code == 0
    assert "Hangul tokens" in out and "MB" not in out


def test_verify_checks_what_a_profile_would_make_of_a_folder(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    before = contents(folder)
    text = tmp_path / "text.txt"
    text.write_text("오늘 날씨가 좋다\n中国 Привет\n", encoding="utf-8")
    assert laws(run, folder, "--profile", profile, "--text", text) == ALL_HOLD
    assert contents(folder) == before


def test_verify_finds_a_configuration_id_that_was_not_mapped(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    from test_commands import reseal

    output = tmp_path / "out"
    pruned(run, folder, output, "--profile", profile)
    edit(output / "config.json", bos_token_id=300)
    reseal(output)
    assert (6, False) in laws(run, output)


def test_serving_a_pruned_tokenizer_is_refused_with_the_way_to_a_model(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    from vllm_kprune.errors import KPruneError
    from vllm_kprune.serving.activation import activate

    pruned(run, folder, tmp_path / "out", "--profile", profile)
    arguments = SimpleNamespace(
        model=str(tmp_path / "out"),
        model_weights="",
        additional_config={},
        load_format="auto",
        tokenizer=None,
        hf_config_path=None,
        tokenizer_revision=None,
        revision=None,
    )
    with pytest.raises(KPruneError, match=r"pruned tokenizer without a model.*kprune build MODEL"):
        activate(arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tokenizer", "EMPTY", "-o", "OUT"], "no tokenizer.json"),
        (["tokenizer", "MISSING", "-o", "OUT"], "does not exist"),
        (["tokenizer", "FOLDER", "-o", "OUT", "--profile", "enkoo"], "did you mean 'enko'"),
        (
            ["tokenizer", "FOLDER", "-o", "OUT", "--max-extra-tokens", "-1"],
            "--max-extra-tokens: got -1.0, expected a share from 0 to 1",
        ),
        (
            ["tokenizer", "FOLDER", "-o", "OUT", "--max-extra-tokens", "0.1", "--coverage", "0.9"],
            "give one of coverage and max_extra_tokens, not both",
        ),
        (["build", "FOLDER", "-o", "OUT"], "no *.safetensors weights"),
        (["verify", "FOLDER"], "has no kprune.json"),
        (["verify", "EMPTY", "--profile", "enko"], "no tokenizer.json"),
        (["verify", "FOLDER", "--profile", "enko", "--base", "FOLDER"], "not pruned yet"),
        (["inspect", "FOLDER", "--max-extra-tokens", "0.1"], "need --profile"),
        (["inspect", "FOLDER", "--curve"], "need --profile"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Command, folder: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": folder, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    places["MISSING"] = tmp_path / "missing"
    code, out, err = run(*[places.get(argument, argument) for argument in arguments])
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_id_that_the_tokenizer_lacks_stops_it(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    edit(folder / "generation_config.json", eos_token_id=10**6)
    code, _, err = run("tokenizer", folder, "-o", tmp_path / "out", "--profile", profile)
    assert code == 2 and "eos_token_id names token id 1000000" in err
    assert not (tmp_path / "out").exists()


def test_the_tightest_bound_of_the_command_line_is_met(
    run: Command, folder: Path, profile: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the weather in Seoul is fine\n" * 3, encoding="utf-8")
    options = ("--profile", profile, "--corpus", corpus)
    loose = pruned(run, folder, tmp_path / "a", *options, "--max-extra-tokens", 0.5)
    tight = pruned(run, folder, tmp_path / "b", *options, "--max-extra-tokens", 0.4)
    assert loose["tokens"]["kept"] <= tight["tokens"]["kept"]
    assert load_manifest(tmp_path / "b").profile.max_extra_tokens == 0.4
    assert load_manifest(tmp_path / "b").profile.min_count is None


@pytest.fixture(scope="module")
def real(pruned_tokenizers: dict[str, Path], overlay: Path) -> dict[str, Path]:
    """Real tokenizers, pruned with shipped profiles: published ones, and the reference model's."""
    return {**pruned_tokenizers, "reference model": overlay}


@pytest.fixture(scope="module")
def verified(
    real: dict[str, Path],
    kprune_at_once: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[dict[str, Any]]]:
    """What `kprune verify` says of each."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("오늘 날씨가 좋다.\nThe weather is fine. 😀\n中国 Привет\n", encoding="utf-8")
    # Law 5 selects the tokens again, which takes as long as pruning did.
    more = ("--text", text, "--json", "-")
    said = kprune_at_once([("verify", folder, *more) for folder in real.values()])
    return dict(zip(real, map(json.loads, said), strict=True))


@pytest.mark.parametrize("name", [*PRUNED, "reference model"])
def test_real_tokenizers_are_pruned_and_keep_every_law(
    name: str, verified: dict[str, list[dict[str, Any]]], real: dict[str, Path]
) -> None:
    manifest = load_manifest(real[name])
    assert 0.3 < len(manifest.kept_ids) / manifest.original_tokens < 0.75
    assert [(result["law"], result["holds"]) for result in verified[name]] == ALL_HOLD
    assert [result["checked"] > 0 for result in verified[name]][:4] == [True] * 4
    assert verified[name][3]["note"] == "selection repeated"
