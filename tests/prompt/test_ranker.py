"""The ranker's numbers are those of the whole model, in blocks of any size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.child import in_child
from support.tiny_rankers import RANKERS, WholeModel

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.layer_config import PRECISIONS, parse_layer_config
from vllm_kprune.prompt.ranker import Cancelled, FirstLayer

Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def ranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A function that returns the folder of a name in `RANKERS`, made once."""
    root = tmp_path_factory.mktemp("rankers")

    def folder(name: str) -> Path:
        target = root / name
        return target if target.is_dir() else RANKERS[name].save(target)

    return folder


@pytest.fixture(scope="session")
def llama(ranker_folder: Folder) -> FirstLayer:
    return FirstLayer.from_pretrained(ranker_folder("llama"))


@pytest.fixture(scope="session")
def whole_llama(ranker_folder: Folder) -> WholeModel:
    return WholeModel(ranker_folder("llama"))


def some_ids(ranker: FirstLayer, length: int, seed: int = 0) -> list[int]:
    random = np.random.default_rng(seed)
    return [int(i) for i in random.integers(0, ranker.rows, length)]


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-5, and within 1e-4 of each score: scores of long prompts are all small."""
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True], ids=["no mask", "causal"])
@pytest.mark.parametrize("name", RANKERS)
def test_scores_are_those_of_the_whole_model(
    ranker_folder: Folder, name: str, causal: bool
) -> None:
    ranker = FirstLayer.from_pretrained(ranker_folder(name))
    ids = some_ids(ranker, 50)
    sliding = {"gemma2", "gemma3-text", "gemma3-multimodal", "aya-expanse"}
    window = 8 if causal and name in sliding else None  # as the model's own causal mask
    (got,) = ranker.received_attention([ids], causal=causal, window=window, block=16)
    whole = WholeModel(ranker_folder(name))
    assert_same(got, whole.received(ids, causal=causal))
    (deaf,) = ranker.received_attention([ids[::-1]], causal=causal, window=window)
    assert not np.allclose(got, deaf[::-1], rtol=0.01), "positions make no difference"


@pytest.mark.parametrize("name", ["qwen3-tied", "gemma3-text", "aya-expanse"])
@pytest.mark.parametrize("causal", [False, True], ids=["no mask", "causal"])
def test_a_deeper_layer_is_that_of_the_whole_model(
    ranker_folder: Folder, name: str, causal: bool
) -> None:
    ranker = FirstLayer.from_pretrained(ranker_folder(name), layer=1)
    ids = some_ids(ranker, 30)
    (got,) = ranker.received_attention([ids], causal=causal)
    assert_same(got, WholeModel(ranker_folder(name)).received(ids, causal=causal, layer=1))


@settings(max_examples=60)
@given(
    length=st.integers(1, 70),
    block=st.integers(1, 80),
    heads=st.sets(st.integers(0, 3), min_size=1),
    causal=st.booleans(),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 5),
)
def test_blocks_heads_and_queries_are_parts_of_the_whole_matrix(
    llama: FirstLayer,
    whole_llama: WholeModel,
    length: int,
    block: int,
    heads: set[int],
    causal: bool,
    cut: tuple[float, float],
    seed: int,
) -> None:
    ids = some_ids(llama, length, seed)
    start, stop = sorted(int(share * (length - 1)) for share in cut)
    asks = range(start, stop + 1)
    (got,) = llama.received_attention(
        [ids], causal=causal, heads=sorted(heads), queries=[asks], block=block
    )
    assert_same(got, whole_llama.received(ids, causal=causal, heads=sorted(heads), queries=asks))
    assert got.sum() == pytest.approx(1, abs=1e-5)


@settings(max_examples=15)
@given(
    length=st.integers(1, 60),
    window=st.integers(1, 70),
    block=st.integers(1, 70),
    causal=st.booleans(),
)
def test_a_window_hides_what_is_further_away_and_nothing_else(
    llama: FirstLayer, length: int, window: int, block: int, causal: bool
) -> None:
    ids = some_ids(llama, length)
    (got,) = llama.received_attention([ids], causal=causal, window=window, block=block)
    if window >= length:
        (exact,) = llama.received_attention([ids], causal=causal)
        assert_same(got, exact)
    rows = [
        llama.received_attention(  # one query at a time, on the part that it sees
            [ids], causal=causal, window=window, queries=[range(i, i + 1)], block=1
        )[0]
        for i in range(length)
    ]
    assert_same(got, np.mean(rows, axis=0, dtype=np.float32))
    for i, row in enumerate(rows):
        distance = i - np.arange(length)
        seen = (np.abs(distance) < window) & (distance >= 0 if causal else True)
        assert np.array_equal(row > 0, seen)


def test_a_window_of_one_block_is_the_softmax_of_that_part(
    ranker_folder: Folder, whole_llama: WholeModel
) -> None:
    """With every query of a causal window at the end, the part alone gives the same numbers."""
    ranker = FirstLayer.from_pretrained(ranker_folder("aya-23"))
    whole = WholeModel(ranker_folder("aya-23"))
    ids = some_ids(ranker, 40)
    last = range(39, 40)
    (got,) = ranker.received_attention([ids], window=10, causal=True, queries=[last])
    part = whole.received(ids[30:], causal=True, queries=range(9, 10))  # rotary: only distances
    np.testing.assert_allclose(got[30:], part, rtol=1e-3, atol=1e-6)
    assert not got[:30].any()


def test_several_prompts_at_once_score_as_each_alone(llama: FirstLayer) -> None:
    prompts = [some_ids(llama, length, length) for length in (3, 0, 41, 1, 17)]
    together = llama.received_attention(prompts, block=8)
    assert [len(scores) for scores in together] == [3, 0, 41, 1, 17]
    for prompt, scores in zip(prompts, together, strict=True):
        (alone,) = llama.received_attention([prompt], block=8)
        assert_same(scores, alone)
    assert llama.received_attention([]) == []


def test_each_prompt_may_have_queries_of_its_own(llama: FirstLayer) -> None:
    first, second = some_ids(llama, 9, 1), some_ids(llama, 9, 2)
    got = llama.received_attention([first, second], queries=[None, range(7, 9)])
    assert_same(got[0], llama.received_attention([first])[0])
    assert_same(got[1], llama.received_attention([second], queries=[range(7, 9)])[0])


@pytest.mark.parametrize("name", ["llama", "gemma3-text"])
def test_huge_logits_neither_overflow_nor_vanish(
    ranker_folder: Folder, tmp_path: Path, name: str
) -> None:
    """Logits far above 88, where exp overflows in float32 unless maxima are subtracted."""
    from transformers import AutoModel

    whole = AutoModel.from_pretrained(ranker_folder(name), dtype=torch.float32)
    with torch.no_grad():
        layer = whole.layers[0].self_attn
        scaled = layer.q_norm if name == "gemma3-text" else layer.q_proj
        scaled.weight.mul_(80).add_(80 if name == "gemma3-text" else 0)
    whole.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((ranker_folder(name) / "tokenizer.json").read_bytes())
    ranker = FirstLayer.from_pretrained(tmp_path)
    ids = some_ids(ranker, 40)
    (got,) = ranker.received_attention([ids])
    np.testing.assert_allclose(got, WholeModel(tmp_path).received(ids), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "aya-expanse"])
@pytest.mark.parametrize("causal", [False, True], ids=["no mask", "causal"])
def test_products_in_int8_are_close(ranker_folder: Folder, name: str, causal: bool) -> None:
    exact, rounded = (
        FirstLayer.from_pretrained(ranker_folder(name), precision=precision)
        for precision in PRECISIONS
    )
    ids = some_ids(exact, 700)
    for window in (None, 300):
        (expected,), (got,) = (
            ranker.received_attention([ids], causal=causal, window=window, block=128)
            for ranker in (exact, rounded)
        )
        assert got.dtype == np.float32
        assert got.sum() == pytest.approx(1, abs=1e-4)
        assert not np.array_equal(got, expected)
        np.testing.assert_allclose(got, expected, rtol=0.1, atol=1e-5)
        assert np.abs(got - expected).mean() < 0.01 * expected.mean()
    short = ids[:100]  # costs little: not rounded
    assert_same(rounded.received_attention([short])[0], exact.received_attention([short])[0])


def test_bfloat16_weights_in_the_file_are_read_as_they_are(tmp_path: Path) -> None:
    folder = RANKERS["gemma3-multimodal"].save(tmp_path / "bf16", dtype="bfloat16")
    ranker = FirstLayer.from_pretrained(folder)
    ids = some_ids(ranker, 40)
    assert_same(ranker.received_attention([ids])[0], WholeModel(folder).received(ids))


def test_an_overlay_ranks_as_its_base_does(tmp_path: Path, ranker_folder: Folder) -> None:
    from vllm_kprune.checkpoint.overlay import write_overlay
    from vllm_kprune.checkpoint.plan import make_plan
    from vllm_kprune.profile import Profile

    base, folder = ranker_folder("qwen3-tied"), tmp_path / "overlay"
    profile = Profile(name="tiny", languages=("ko",), code=False, coverage=0.9)
    folder.mkdir()
    kept = write_overlay(make_plan(str(base), profile), folder).kept_ids
    for layer in (0, 1):
        pruned, whole = (FirstLayer.from_pretrained(f, layer=layer) for f in (folder, base))
        assert pruned.rows < whole.rows
        ids = some_ids(pruned, 30)
        assert_same(
            pruned.received_attention([ids])[0],
            whole.received_attention([[kept[i] for i in ids]])[0],
        )
    text = "나는 오늘 학교에 갔다."
    assert pruned.tokenizer.decode(pruned.tokenizer.encode(text).ids) == text


def test_asking_to_stop_stops_between_blocks(llama: FirstLayer) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        llama.received_attention([some_ids(llama, 64)], block=8, cancelled=stop)
    assert len(asked) == 3
    llama.received_attention([some_ids(llama, 64)], block=8, cancelled=lambda: False)


@pytest.mark.slow
def test_the_embedding_stays_in_its_file(reference_model: Path) -> None:
    """Loading Gemma-3 and ranking a little costs a tenth of its 335 MB embedding.

    Pages of the file are not counted: the system may map them by the megabyte, and drop them.
    """
    code = (
        "import os, sys, torch\n"
        "from vllm_kprune.prompt.ranker import FirstLayer\n"
        "from vllm_kprune.checkpoint.shards import read_shard\n"
        "def own():\n"
        "    lines = open('/proc/self/smaps_rollup').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('Anonymous:'))\n"
        "torch.zeros(8, 8) @ torch.zeros(8, 8)\n"
        "before = own()\n"
        "layer = FirstLayer.from_pretrained(sys.argv[1])\n"
        "layer.received_attention([list(range(0, 200_000, 2_000))])\n"
        "print((own() - before) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(reference_model)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert float(done.stdout) < 35


@pytest.mark.slow
@pytest.mark.slow
def test_the_reference_models_scores_are_those_of_the_whole_model(reference_model: Path) -> None:
    in_child(check_scores, reference_model)


def check_scores(folder: Path) -> None:
    """Compare both on a prompt of several blocks; the whole model takes a gigabyte."""
    ranker = FirstLayer.from_pretrained(folder)
    whole = WholeModel(folder, layers=1)
    text = (
        "The quick brown fox jumps over the lazy dog. 나는 오늘 학교에 갔다. 42 % of 1,024! " * 12
    )
    ids = ranker.tokenizer.encode(text).ids
    assert len(ids) > 256  # several blocks
    for causal in (False, True):
        (got,) = ranker.received_attention([ids], causal=causal, window=512)
        assert_same(got, whole.received(ids, causal=causal))


CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "LlamaConfig": ("llama", {"hidden_size": 64, "num_attention_heads": 4}),
    "Qwen2Config": ("qwen2", {"hidden_size": 64}),
    "Qwen3Config": ("qwen3", {"hidden_size": 64}),
    "Gemma2Config": ("gemma2", {}),
    "Gemma3TextConfig": ("gemma3_text", {"hidden_size": 2560}),
    "CohereConfig": ("cohere", {}),
    "Cohere2Config": ("cohere2", {}),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layer", [0, 5])
def test_what_config_json_leaves_out_is_what_transformers_assumes(name: str, layer: int) -> None:
    import transformers

    model_type, said = CONFIGS[name]
    full = getattr(transformers, name)(**said).to_dict()
    short = {"model_type": model_type, **said}
    source = Path("config.json")
    assert parse_layer_config(short, layer, source) == parse_layer_config(full, layer, source)


OLD_STYLES = [
    ("LlamaConfig", {"rope_theta": 500_000.0}),
    (
        "LlamaConfig",
        {
            "rope_theta": 500_000.0,
            "max_position_embeddings": 131_072,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    ("Qwen2Config", {"rope_theta": 1_000_000.0}),
    ("LlamaConfig", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    (
        "Gemma3TextConfig",
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 5e5},
    ),
    ("Gemma3TextConfig", {"rope_local_base_freq": 20_000.0, "sliding_window_pattern": 3}),
    ("Cohere2Config", {"rope_theta": 50_000.0, "sliding_window_pattern": 3}),
    ("CohereConfig", {"rope_theta": 8_000_000.0}),
]


@pytest.mark.parametrize(("name", "said"), OLD_STYLES)
@pytest.mark.parametrize("layer", [0, 2, 5])
def test_older_spellings_of_the_rotary_embedding_mean_the_same(
    name: str, said: dict[str, object], layer: int
) -> None:
    import transformers

    model_type = CONFIGS[name][0]
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    old = {"model_type": model_type, "hidden_size": 64, **heads, **said}
    new = getattr(transformers, name)(**json.loads(json.dumps(old))).to_dict()
    source = Path("config.json")
    assert "rope_theta" not in new
    got, expected = (parse_layer_config(config, layer, source) for config in (old, new))
    assert got.rope == expected.rope


def edit_config(folder: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "'lama' cannot rank tokens; did you mean 'llama'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": "64"}, "hidden_size is '64'; expected a number"),
        ({"hidden_size": 64.5}, "hidden_size is 64.5; expected a whole number"),
        ({"hidden_size": 32, "head_dim": 16}, r"embed_tokens.weight is F32\[\d+, 64\]; expected"),
        ({"num_key_value_heads": 3}, "4 heads, 3 key-value heads"),
        ({"attention_bias": True}, "q_proj.bias is missing"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2}}, "of type 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' has no 'factor'"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(
    ranker_folder: Folder, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = edit_config(ranker_folder("llama"), tmp_path / "edited", **changes)
    with pytest.raises(KPruneError, match=message):
        FirstLayer.from_pretrained(folder)


def test_a_missing_layer_head_or_token_is_refused(ranker_folder: Folder, llama: FirstLayer) -> None:
    with pytest.raises(KPruneError, match="no layer 2; it has 2, counted from 0"):
        FirstLayer.from_pretrained(ranker_folder("llama"), layer=2)
    with pytest.raises(KPruneError, match="this ranker has 0 to 3"):
        llama.received_attention([[1]], heads=[4])
    for ids in ([1, llama.rows], [-1, 2]):
        with pytest.raises(KPruneError, match="has no embedding in the ranker"):
            llama.received_attention([ids])
    with pytest.raises(KPruneError, match="expected a range within 3 tokens"):
        llama.received_attention([[1, 2, 3]], queries=[range(2, 4)])
    with pytest.raises(KPruneError, match="window is 0"):
        llama.received_attention([[1, 2, 3]], window=0)
    with pytest.raises(KPruneError, match="float32 or int8, not in"):
        FirstLayer.from_pretrained(ranker_folder("llama"), precision="int4")  # type: ignore[arg-type]


def rewrite(folder: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(folder, target)
    tensors = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


QUANTISED: list[tuple[str, Callable[[dict[str, torch.Tensor]], object], str]] = [
    (
        "packed projection",
        lambda t: t.update(
            {"model.layers.0.self_attn.q_proj.weight_packed": t.pop(
                "model.layers.0.self_attn.q_proj.weight"
            )}
        ),
        "q_proj is quantised",
    ),
    (
        "scaled projection",
        lambda t: t.update({"model.layers.0.self_attn.k_proj.weight_scale": torch.ones(1)}),
        "k_proj is quantised",
    ),
    (
        "8-bit embedding",
        lambda t: t.update(
            {"model.embed_tokens.weight": t["model.embed_tokens.weight"].to(torch.float8_e4m3fn)}
        ),
        "F8_E4M3.*expected plain floating-point",
    ),
    (
        "packed embedding",
        lambda t: t.update({"model.embed_tokens.qweight": t.pop("model.embed_tokens.weight")}),
        "no plain embedding, it is quantised",
    ),
    (
        "no norm",
        lambda t: t.pop("model.layers.0.input_layernorm.weight"),
        "input_layernorm.weight is missing",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "edit", "message"), QUANTISED)
def test_weights_that_are_quantised_or_missing_are_refused(
    ranker_folder: Folder, tmp_path: Path, what: str, edit: Callable, message: str
) -> None:
    folder = rewrite(ranker_folder("llama"), tmp_path / "edited", edit)
    with pytest.raises(KPruneError, match=message):
        FirstLayer.from_pretrained(folder)


def test_a_folder_that_is_no_model_is_refused(ranker_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(KPruneError, match=r"has no config\.json"):
        FirstLayer.from_pretrained(tmp_path)
    folder = tmp_path / "no-tokenizer"
    shutil.copytree(ranker_folder("llama"), folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(KPruneError, match="is not a tokenizer"):
        _ = FirstLayer.from_pretrained(folder).tokenizer
    (folder / "tokenizer.json").unlink()
    with pytest.raises(KPruneError, match=r"has no tokenizer\.json"):
        _ = FirstLayer.from_pretrained(folder).tokenizer
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(KPruneError, match="only pickled weights"):
        FirstLayer.from_pretrained(folder)


@pytest.mark.slow
def test_ranking_does_not_import_transformers(ranker_folder: Folder) -> None:
    code = (
        "import sys; from vllm_kprune.prompt.ranker import FirstLayer\n"
        f"layer = FirstLayer.from_pretrained({str(ranker_folder('llama'))!r})\n"
        "layer.received_attention([[1, 2]])\n"
        "print([m for m in ('transformers', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
