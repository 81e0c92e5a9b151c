"""Time and peak memory of `kprune export`, against the size of the model.

.venv/bin/python benchmarks/export_large.py [--gigabytes 3 20] [--shards 1 4] [--folder DIR]

Writes sparse dummy models (holes instead of data) with the reference model's tokenizer, and exports
each in a process of its own, as a user does. A single shard is the worst case: the whole file is
written again. Exports take real room: as much as the largest model, in DIR or the current folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

KPRUNE = ("-c", "from vllm_kprune.cli import main; main()")
HIDDEN = 4096


def save_dummy(folder: Path, tokenizer: Path, gigabytes: float, shards: int) -> None:
    """A Llama in bfloat16 with a tied head; the embedding (2 GB) is in the first shard."""
    folder.mkdir()
    shutil.copy(tokenizer / "tokenizer.json", folder)
    rows = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    vocabulary = rows * HIDDEN * 2
    columns = max(int(gigabytes * 1e9) - vocabulary, 0) // shards // (HIDDEN * 2)
    places = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        tensors = {f"model.layers.{number}.weight": (columns, HIDDEN)}
        if number == 0:
            tensors["model.embed_tokens.weight"] = (rows, HIDDEN)
        save_holes(folder / name, tensors)
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_holes(path: Path, shapes: Mapping[str, tuple[int, int]]) -> None:
    """A safetensors file of bfloat16 tensors that takes no room on disk."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + shape[0] * shape[1] * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def run(*words: object) -> tuple[float, float]:
    """Seconds and peak memory in MB of one command."""
    command = [sys.executable, *KPRUNE, *map(str, words)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1e3


def main() -> None:
    """Run each size with each number of shards, and print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[3.0, 20.0])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    made = subprocess.check_output([sys.executable, *KPRUNE, "demo-model"], text=True)
    for size in options.gigabytes:
        for shards in options.shards:
            with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
                measure(Path(scratch), Path(made.strip()), size, shards)


def measure(folder: Path, tokenizer: Path, size: float, shards: int) -> None:
    """Build an overlay of one dummy and export it, copied and linked."""
    model, overlay, export = (folder / name for name in ("model", "overlay", "export"))
    save_dummy(model, tokenizer, size, shards)
    steps: dict[str, tuple[object, ...]] = {
        "build": ("build", model, "--profile", "enko", "-o", overlay),
        "export": ("export", overlay, "-o", export),
        "export --link": ("export", overlay, "-o", export, "--force", "--link"),
    }
    for name, words in steps.items():
        if name == "export --link" and shards == 1:
            continue
        seconds, peak = run(*words)
        line = f"{size:g} GB, {shards} shards: {name}: {seconds:.1f} s, peak {peak:.0f} MB"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
