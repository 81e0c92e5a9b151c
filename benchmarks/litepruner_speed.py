"""How long ranking a prompt takes, and how much memory, against the paper's algorithm 1.

.venv/bin/python benchmarks/litepruner_speed.py [MODEL_FOLDER] [--tokens 4096] [--rounds 7]
    [--threads N] [--scaling] [--json FILE]

"Naive" is algorithm 1 of LitePruner on the same model: embedding, norm and the whole first
attention layer in transformers with `output_attentions`, without a mask, and the mean of the
float32 matrix [heads, n, n]. Ours and naive take turns in one process, and a ratio is that of one
round. CPU seconds are printed beside wall time, because they vary less when other programs run.
Peak memory is measured in a process of its own: the highest resident size while ranking minus the
size before, when the pages of the mapped embedding, which belong to the file, are already loaded.
`--scaling` also ranks 1k to 32k tokens, exactly and with a window of 2,048. The text is XQuAD from
$KPRUNE_DATA, or made-up ids. The default model is Gemma-3 270M (`kprune demo-model`). Run it on an
idle machine.
"""

import argparse
import ctypes
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.prompt.layer_config import PRECISIONS
from vllm_kprune.prompt.ranker import FirstLayer

LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
Rank = Callable[[], Any]


def token_ids(ranker: FirstLayer, count: int) -> list[int]:
    """Ids of real text if there is any, otherwise ids that repeat as words do (Zipf)."""
    data = os.environ.get("KPRUNE_DATA")
    if not data:
        return (np.random.default_rng(0).zipf(1.3, count) % ranker.rows).tolist()
    with gzip.open(Path(data) / "xquad" / "xquad.en.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    contexts = [p["context"] for article in articles for p in article["paragraphs"]]
    return ranker.tokenizer.encode("\n\n".join(contexts)).ids[:count]


def naive_layer(folder: Path) -> Callable[[Sequence[int]], torch.Tensor]:
    """Algorithm 1 with transformers: load, keep the embedding and the first layer, rank."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    embed, layer, rotary = model.embed_tokens, model.layers[0], model.rotary_emb
    kinds = getattr(model.config, "layer_types", None)
    kind = (kinds[0],) if model.config.model_type.startswith("gemma3") and kinds else ()

    @torch.inference_mode()
    def rank(ids: Sequence[int]) -> torch.Tensor:
        states = layer.input_layernorm(embed(torch.tensor([list(ids)])))
        angles = rotary(states, torch.arange(len(ids))[None], *kind)
        _, matrix = layer.self_attn(
            states, position_embeddings=angles, attention_mask=None, output_attentions=True
        )
        return matrix[0].mean(dim=1).mean(dim=0)

    return rank


def timed(rank: Rank) -> tuple[float, float]:
    """Wall and CPU milliseconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    rank()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}


def race(folder: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Time naive and ours in turn, round by round."""
    naive = naive_layer(folder)
    rankers = {name: FirstLayer.from_pretrained(folder, precision=name) for name in PRECISIONS}
    ids = token_ids(rankers["float32"], tokens)
    calls: dict[str, Rank] = {"naive": lambda: naive(ids)}
    for name, ranker in rankers.items():
        calls[name] = lambda ranker=ranker: ranker.received_attention([ids])[0]  # type: ignore[misc]
    expected = calls["naive"]().numpy()
    errors = {name: float(np.abs(calls[name]() - expected).max()) for name in rankers}
    dropped = {name: swapped(calls[name](), expected, 0.7) for name in rankers}
    times = [{name: timed(call) for name, call in calls.items()} for _ in range(rounds)]
    result: dict[str, Any] = {"tokens": len(ids), "distinct": len(set(ids)), "rounds": rounds}
    for at, clock in enumerate(("wall", "cpu")):
        result[f"{clock}_ms"] = {n: spread([t[n][at] for t in times]) for n in calls}
        result[f"{clock}_ratio"] = {
            n: spread([t["naive"][at] / t[n][at] for t in times]) for n in rankers
        }
    return {**result, "max_error": errors, "dropped_otherwise": dropped}


def swapped(scores: np.ndarray, expected: np.ndarray, keep: float) -> int:
    """The number of tokens that, at `keep`, one ranking drops and the other keeps."""
    count = len(scores) - round(keep * len(scores))
    ours, theirs = (set(np.argsort(s, kind="stable")[:count].tolist()) for s in (scores, expected))
    return len(ours - theirs)


def peak_memory(folder: Path, which: str, tokens: int) -> float:
    """Peak MiB of ranking, measured in this process, which does nothing else."""
    ranker = FirstLayer.from_pretrained(folder, precision="int8" if which == "int8" else "float32")
    ids = token_ids(ranker, tokens)
    rank = naive_layer(folder) if which == "naive" else lambda ids: ranker.received_attention([ids])
    for start in range(0, len(ids), 128):  # pages of the mapped embedding belong to the file
        rank(ids[start : start + 128])
    ctypes.CDLL(None).malloc_trim(0)  # memory freed after loading would hide what ranking takes
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    rank(ids)
    return (status("VmHWM") - before) / 1024


def status(name: str) -> int:
    """The KiB in a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def peak_elsewhere(folder: Path, which: str, tokens: int) -> float:
    command = [sys.executable, __file__, str(folder), "--peak", which, "--tokens", str(tokens)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def scaling(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Best wall milliseconds by length, exactly and with a window."""
    rankers = {name: FirstLayer.from_pretrained(folder, precision=name) for name in PRECISIONS}
    rows = []
    for length in LENGTHS:
        ids = token_ids(rankers["float32"], length)
        row: dict[str, Any] = {"tokens": len(ids)}
        for name, ranker in rankers.items():
            for window in (None, 2048):
                calls = [
                    timed(lambda r=ranker, w=window: r.received_attention([ids], window=w))  # type: ignore[misc] # noqa: B023
                    for _ in range(rounds if length < 16_000 else 1)
                ]
                row[f"{name}{'' if window is None else ' window'}"] = min(calls)[0]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--peak", choices=["naive", *PRECISIONS], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = options.folder or demo_model("gemma-3-270m")
    if options.peak:
        print(peak_memory(folder, options.peak, options.tokens))
        return
    result = race(folder, options.tokens, options.rounds)
    result["threads"] = torch.get_num_threads()
    result["peak_mib"] = {
        which: peak_elsewhere(folder, which, options.tokens) for which in ("naive", *PRECISIONS)
    }
    print(json.dumps(result, indent=1))
    if options.scaling:
        result["scaling"] = scaling(folder, 3)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
