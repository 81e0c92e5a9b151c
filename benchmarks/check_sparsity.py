"""Hold `kprune sparsify` against llm-compressor: the same ids, masks compared matrix by matrix.

.venv/bin/python benchmarks/check_sparsity.py --calibration ko=FILE [--model MODEL] [--samples N]
    [--length N] [--layers N] [--sparsity S] [--methods wanda sparsegpt] [-o build/check-sparsity]

`make check-sparsity` installs llm-compressor in `.venv-llmcompressor` and runs this: its releases
pin versions that vLLM's do not allow. Both sides calculate in float32 on the CPU, so kprune gets a
float32 copy of the model: in bfloat16, zeros would be the same, but not what SparseGPT makes of the
other weights.

Prints intersection over union (IoU) of the zeros, and perplexity on text that was not drawn. Two
weights may be equally good but for rounding. Where the two sides choose differently, all later
layers get other inputs, and the difference grows from layer to layer. So there are two figures: of
the whole runs (`iou`, and by layer), and of each layer after the same earlier ones, those of
llm-compressor (`same_inputs`). Exit code 1 if the second is below `LEAST_IOU`. Perplexity is of the
whole runs and only shown, for the same reason; with `--layers` it says nothing.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.sparsify.activations import Activations
from vllm_kprune.sparsify.body import open_body
from vllm_kprune.sparsify.calibration import draw_calibration, parse_calibration
from vllm_kprune.sparsify.layer import LayerPruner
from vllm_kprune.sparsify.network import build_network
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
    original = Path(options.model or demo_model("gemma-3-270m"))
    model = float32_copy(original, output / "model", options.layers)
    ids = draw(model, options, seed=0)
    np.save(output / "ids.npy", ids)
    seen = {row.tobytes() for row in ids}
    held_out = np.stack([row for row in draw(model, options, seed=1) if row.tobytes() not in seen])
    report: dict[str, dict[str, Any]] = {
        "original": {"perplexity": perplexity(model, {}, held_out)}
    }
    for method in options.methods:
        report[method] = compare(model, output, method, options, (ids, held_out))
        print(json.dumps({method: report[method]}), flush=True)
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["original"]))
    sys.exit(any(report[m]["same_inputs"]["iou"] < LEAST_IOU[m] for m in options.methods))


def float32_copy(model: Path, folder: Path, layers: int | None = None) -> Path:
    """The model in float32, with its tokenizer; with `layers`, only so many of its layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    network = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=torch.float32)
    network.save_pretrained(folder)
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
    model: Path, output: Path, method: str, options: argparse.Namespace, texts: tuple[Any, Any]
) -> dict[str, Any]:
    """Sparsify with both, and compare zeros, and perplexity on the second of the texts."""
    ids, held_out = texts
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
    zeros = {name: (tensor == 0, found[name] == 0) for name, tensor in mine.items()}
    return {
        **overlap(zeros),
        "same_inputs": overlap(after_theirs(model, found, wanted, ids)),
        "perplexity": {
            "kprune": perplexity(model, mine, held_out),
            "llm-compressor": perplexity(model, found, held_out),
        },
        "seconds": {"kprune": middle - began, "llm-compressor": ended - middle},
    }


def overlap(zeros: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """IoU of the zeros of two sides: of all matrices, of the worst one, and by layer."""
    counts = {name: _iou(*pair) for name, pair in zeros.items()}
    worst = min(counts, key=lambda name: counts[name][0] / counts[name][1])
    layers: dict[int, list[int]] = {}
    for name, (both, either) in counts.items():
        layer = layers.setdefault(int(name.split("layers.")[1].split(".")[0]), [0, 0])
        layer[0], layer[1] = layer[0] + both, layer[1] + either
    both, either = (sum(values) for values in zip(*counts.values(), strict=True))
    return {
        "iou": both / either,
        "worst": {"matrix": worst, "iou": counts[worst][0] / counts[worst][1]},
        "by_layer": [round(layers[n][0] / layers[n][1], 5) for n in sorted(layers)],
    }


def after_theirs(
    model: Path, theirs: dict[str, torch.Tensor], options: SparsifyOptions, ids: Any
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Zeros of each matrix, ours where all earlier layers are theirs, and theirs."""
    body = open_body(model)
    network = build_network(body, torch.device("cpu"))
    pruner = LayerPruner(network, options.method, options.checked_pattern())
    network.prepare(ids.shape[1])
    activations = Activations(*ids.shape, network.hidden_size, None)
    for sample, row in enumerate(torch.from_numpy(ids)):
        activations[sample] = network.embed(row)
    zeros = {}
    for layer in range(body.num_layers):
        network.load(layer, body.base.folder)
        for name, values, _ in pruner.prune(layer, activations, lambda: None):
            full = f"{body.layer_prefix(layer)}{name}.weight"
            zeros[full] = (values == 0, theirs[full] == 0)
            values.copy_(theirs[full])
        pruner.forward(layer, activations, lambda: None)
        network.unload(layer)
    return zeros


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
    parser.add_argument("--layers", type=int, help="only the first layers, which is quicker")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--methods", nargs="+", default=list(LEAST_IOU), choices=list(LEAST_IOU))
    parser.add_argument("-o", "--output", default="build/check-sparsity")
    return parser.parse_args()


if __name__ == "__main__":
    main()
