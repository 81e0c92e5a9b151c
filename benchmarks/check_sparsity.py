"""Hold `kprune sparsify` against llm-compressor: the same ids, masks compared matrix by matrix.

.venv/bin/python benchmarks/check_sparsity.py --calibration ko=FILE [--model MODEL] [--samples N]
    [--length N] [--sparsity S] [--methods wanda sparsegpt] [-o build/check-sparsity]

`make check-sparsity` installs llm-compressor in `.venv-llmcompressor` and runs this: its releases
pin versions that vLLM's do not allow. Both sides calculate in float32 on the CPU, so kprune gets a
float32 copy of the model: in bfloat16, zeros would be the same, but not what SparseGPT makes of the
other weights. Prints intersection over union (IoU) of the zeros of all matrices together and of the
worst one, and perplexity on text that was not drawn; exit code 1 if an IoU is below `LEAST_IOU`.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.sparsify.calibration import draw_calibration, parse_calibration
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.run import sparsify_model
from vllm_kprune.tokenizer.encoder import load_encoder

LEAST_IOU = {"wanda": 0.999, "sparsegpt": 0.97}
OTHER_PYTHON = Path(".venv-llmcompressor/bin/python")
OTHER_SCRIPT = Path(__file__).with_name("check_sparsity_other.py")


def main() -> None:
    """Run both sides for every method, and compare."""
    options = _arguments()
    output = Path(options.output)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    model = float32_copy(Path(options.model or demo_model("gemma-3-270m")), output / "model")
    ids = draw(model, options, seed=0)
    np.save(output / "ids.npy", ids)
    seen = {row.tobytes() for row in ids}
    held_out = np.stack([row for row in draw(model, options, seed=1) if row.tobytes() not in seen])
    report: dict[str, dict[str, Any]] = {
        "original": {"perplexity": perplexity(model, {}, held_out)}
    }
    for method in options.methods:
        report[method] = compare(model, output, method, options, held_out)
        print(json.dumps({method: report[method]}), flush=True)
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["original"]))
    sys.exit(any(report[m]["iou"] < LEAST_IOU[m] for m in options.methods))


def float32_copy(model: Path, folder: Path) -> Path:
    """The model in float32, with its tokenizer."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder / name)
    return folder


def draw(model: Path, options: argparse.Namespace, seed: int) -> Any:
    """The ids that `sparsify_model` draws, [samples, length]."""
    return draw_calibration(
        parse_calibration([options.calibration]),
        load_encoder(model),
        samples=options.samples,
        length=options.length,
        seed=seed,
        tell=print,
    ).ids


def compare(
    model: Path, output: Path, method: str, options: argparse.Namespace, held_out: Any
) -> dict[str, Any]:
    """Sparsify with both, and compare zeros and perplexity."""
    ours, theirs = output / method, output / f"{method}-other.safetensors"
    wanted = SparsifyOptions(
        method=method,
        sparsity=options.sparsity,
        calibration=(options.calibration,),
        samples=options.samples,
        length=options.length,
        device="cpu",
    )
    began = time.monotonic()
    record = sparsify_model(model, ours, wanted)
    middle = time.monotonic()
    other = [OTHER_PYTHON, OTHER_SCRIPT, model, output / "ids.npy", method, options.sparsity]
    subprocess.run([*map(str, other), str(theirs)], check=True, stdout=sys.stderr)
    ended = time.monotonic()
    mine = {n: t for f in ours.glob("*.safetensors") for n, t in load_file(f).items()}
    mine = {name: mine[name] for name in record["matrices"]}
    found = load_file(theirs)
    ious = {name: _iou(tensor == 0, found[name] == 0) for name, tensor in mine.items()}
    worst = min(ious, key=lambda name: ious[name][0] / ious[name][1])
    both, either = (sum(counts) for counts in zip(*ious.values(), strict=True))
    return {
        "iou": both / either,
        "worst": {"matrix": worst, "iou": ious[worst][0] / ious[worst][1]},
        "perplexity": {
            "kprune": perplexity(model, mine, held_out),
            "llm-compressor": perplexity(model, found, held_out),
        },
        "seconds": {"kprune": middle - began, "llm-compressor": ended - middle},
    }


def _iou(one: torch.Tensor, other: torch.Tensor) -> tuple[int, int]:
    """Zeros of both, and zeros of either."""
    return int((one & other).sum()), int((one | other).sum())


def perplexity(model: Path, matrices: dict[str, torch.Tensor], ids: Any) -> float:
    """Perplexity of the model with some matrices replaced, on samples of ids."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    network.load_state_dict(matrices, strict=False)
    with torch.no_grad():
        losses = [network(row[None], labels=row[None]).loss.item() for row in torch.from_numpy(ids)]
    return math.exp(sum(losses) / len(losses))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", required=True, help="FILE or LANGUAGE=FILE")
    parser.add_argument("--model")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--methods", nargs="+", default=list(LEAST_IOU), choices=list(LEAST_IOU))
    parser.add_argument("-o", "--output", default="build/check-sparsity")
    return parser.parse_args()


if __name__ == "__main__":
    main()
