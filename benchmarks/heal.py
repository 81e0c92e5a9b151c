"""What healing gives back, on a real model: sparsified, and with a vocabulary pruned hard.

KPRUNE_DATA=FOLDER .venv/bin/python benchmarks/heal.py [sparse] [vocabulary] [--model MODEL]
    [--sparse-steps N] [--vocabulary-steps N] [--minutes M] [--size 20000] [-o build/heal]

sparse: the `enko` export, half of whose weights Wanda sets to zero by Korean and English help of
LibreOffice. vocabulary: an export of `--size` tokens. Each is healed, and measured before and after
beside the model that it was made from, in bits per character of text that nothing was trained on or
chosen by: 200 sentences of PUD in each language (news and Wikipedia, another kind of text), and ten
passages from the second half of GNOME's help (another source of the same kind). Trained is on help
of LibreOffice and tldr pages, English also on glosses of WordNet; the first half of GNOME's help
chooses the state.

Every finished folder and measurement is kept, so a stopped run goes on. Intervals are percentiles
of 4,000 draws of whole passages; two models are always drawn the same passages.
"""

import argparse
import gzip
import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_kprune.analyze.perplexity import measure_perplexity
from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.heal.network import load_text_model
from vllm_kprune.heal.options import HealOptions
from vllm_kprune.heal.run import heal_model
from vllm_kprune.profile import load_profile
from vllm_kprune.sparsify.body import open_body
from vllm_kprune.sparsify.device import pick_device
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.run import sparsify_model
from vllm_kprune.tokenizer.encoder import load_encoder

LANGUAGES = ("ko", "en")
SENTENCES, TOGETHER, PASSAGES, PASSAGE = 200, 10, 10, 1000
DRAWS = 4000
# Passage -> nats, tokens, characters.
Measured = Mapping[str, Sequence[float]]


def main() -> None:
    """Run the parts that are named, or both."""
    options = _arguments()
    data, output = Path(os.environ["KPRUNE_DATA"]), Path(options.output)
    texts = write_texts(data, output / "text")
    model = Path(options.model or demo_model("gemma-3-270m"))
    for part in options.parts or ("sparse", "vocabulary"):
        {"sparse": sparse, "vocabulary": vocabulary}[part](model, data, output, texts, options)


def sparse(model: Path, data: Path, output: Path, texts: Path, options: argparse.Namespace) -> None:
    """Half of the weights zero: what comes back of what was lost."""
    dense = _export(model, output / "enko", {})
    calibration = [f"{code}={data}/calib-libreoffice-help/{code}.txt.gz" for code in LANGUAGES]
    how = SparsifyOptions(calibration=tuple(calibration), samples=32, length=256)
    pruned = _once(output / "sparse", lambda to: sparsify_model(dense, to, how, tell=print))
    healed = _healed(pruned, output / "sparse-healed", texts, options.sparse_steps, options)
    models = {"dense": dense, "sparse": pruned, "healed": healed}
    table({name: measure(path, output, texts) for name, path in models.items()}, "dense", "sparse")


def vocabulary(
    model: Path, data: Path, output: Path, texts: Path, options: argparse.Namespace
) -> None:
    """A vocabulary of few tokens: what it costs, with and without healing."""
    pruned = _export(model, output / f"size-{options.size}", {"target_size": options.size})
    to = output / f"size-{options.size}-healed"
    healed = _healed(pruned, to, texts, options.vocabulary_steps, options)
    models = {"original": model, "pruned": pruned, "healed": healed}
    found = {name: measure(path, output, texts) for name, path in models.items()}
    table(found, "original", "pruned")


def _once(folder: Path, make: Callable[[Path], Any]) -> Path:
    if not folder.is_dir():
        began, cpu = time.monotonic(), time.process_time()
        make(folder)
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
        print(f"{folder.name}: {wall / 60:.1f} minutes, {cpu / 60:.1f} of them of one CPU")
    return folder


def _export(model: Path, folder: Path, sizing: dict[str, Any]) -> Path:
    def make(to: Path) -> None:
        overlay = to.with_name(f"{to.name}-overlay")
        profile = load_profile("enko", **sizing)
        _once(overlay, lambda at: build_overlay(model, profile, at))
        export_overlay(overlay, to)

    return _once(folder, make)


def _healed(
    model: Path, folder: Path, texts: Path, steps: int, options: argparse.Namespace
) -> Path:
    how = HealOptions(
        text=tuple(f"{code}={texts}/train-{code}.jsonl" for code in LANGUAGES),
        held_out=tuple(f"{code}={texts}/chosen-by-{code}.txt" for code in LANGUAGES),
        what=options.what,
        length=256,
        steps=None if options.minutes else steps,
        minutes=options.minutes,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    return _once(folder, lambda to: heal_model(model, to, how, tell=print, progress=_progress()))


def _progress() -> Callable[[str, float], None]:
    told = 0.0

    def tell(step: str, share: float) -> None:
        nonlocal told
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{step} {share:.0%}", flush=True)

    return tell


def write_texts(data: Path, folder: Path) -> Path:
    """Text to train on, to choose by, and to measure on, from the folder of real text."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [json.loads(line) for line in (data / "pud-en-ko-zh-dev/pud.en-ko-zh.jsonl").open()]
    for code in LANGUAGES:
        shuffled = random.Random(0)
        documents = _in_twelves(data / f"calib-libreoffice-help/{code}.txt.gz")
        documents = shuffled.sample(documents, min(1500, len(documents)))
        pages = [json.loads(line)["text"] for line in _lines(data / f"calib-tldr/{code}.jsonl.gz")]
        documents += shuffled.sample(pages, 500)
        if code == "en":
            documents += shuffled.sample(_in_twelves(data / "calib-wordnet/en.txt.gz"), 500)
        shuffled.shuffle(documents)
        rows = (json.dumps({"text": text}, ensure_ascii=False) for text in documents)
        (folder / f"train-{code}.jsonl").write_text("\n".join(rows) + "\n")
        help_text = "\n".join(_lines(data / f"calib-gnome-user-docs/{code}.txt.gz"))
        half = len(help_text) // 2
        (folder / f"chosen-by-{code}.txt").write_text(help_text[:half])
        rest = help_text[half:]
        places = range(0, len(rest) - PASSAGE, len(rest) // PASSAGES)
        passages = {f"gnome-{code}-{at}": rest[at : at + PASSAGE] for at in places}
        sentences = [pair[code] for pair in pairs[:SENTENCES]]
        for at in range(0, SENTENCES, TOGETHER):
            passages[f"pud-{code}-{at}"] = "\n".join(sentences[at : at + TOGETHER])
        (folder / f"measured-{code}.json").write_text(json.dumps(passages, ensure_ascii=False))
    return folder


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return stream.read().splitlines()


def _in_twelves(path: Path) -> list[str]:
    lines = _lines(path)
    return ["\n".join(lines[at : at + 12]) for at in range(0, len(lines), 12)]


def measure(model: Path, output: Path, texts: Path) -> Measured:
    """The loss of a model on every passage; it is measured once."""
    path = output / f"measured-{model.name}.json"
    if not path.is_file():
        passages: dict[str, str] = {}
        for code in LANGUAGES:
            passages |= json.loads((texts / f"measured-{code}.json").read_text())
        body = open_body(model)
        causal = load_text_model(body, pick_device("auto")).causal
        found = measure_perplexity(causal, load_encoder(body.base.folder), passages)
        values = {name: (one.nats, one.tokens, one.characters) for name, one in found.items()}
        path.write_text(json.dumps(values))
    result: Measured = json.loads(path.read_text())
    return result


def bits(measured: Measured, names: Sequence[str]) -> float:
    """Bits per character over some passages."""
    nats, characters = (sum(measured[name][i] for name in names) for i in (0, 2))
    return nats / math.log(2) / characters


def table(models: Mapping[str, Measured], reference: str, pruned: str) -> None:
    """Print bits per character, the difference from `reference`, and what came back of the loss."""
    print("| text | model | bits per character | over " + reference + " | of the loss back |")
    print("|---|---|---|---|---|")
    for kind in ("pud", "gnome"):
        for code in LANGUAGES:
            names = [n for n in models[reference] if n.startswith(f"{kind}-{code}-")]
            for model in models:
                cells = _cells(models, model, reference, pruned, names)
                print(f"| {kind} {code} | {model} | {' | '.join(cells)} |")


def _cells(
    models: Mapping[str, Measured], model: str, reference: str, pruned: str, names: Sequence[str]
) -> list[str]:
    def ratio(drawn: Sequence[str]) -> float:
        return bits(models[model], drawn) / bits(models[reference], drawn) - 1

    def back(drawn: Sequence[str]) -> float:
        best, worst = bits(models[reference], drawn), bits(models[pruned], drawn)
        return (worst - bits(models[model], drawn)) / (worst - best)

    return [
        _interval(names, lambda drawn: bits(models[model], drawn), ".3f"),
        "" if model == reference else _interval(names, ratio, "+.1%"),
        "" if model in (reference, pruned) else _interval(names, back, ".0%"),
    ]


def _interval(names: Sequence[str], value: Callable[[Sequence[str]], float], how: str) -> str:
    drawn = random.Random(0)
    values = sorted(value(drawn.choices(names, k=len(names))) for _ in range(DRAWS))
    low, high = values[DRAWS // 40], values[-DRAWS // 40]
    return f"{value(names):{how}} [{low:{how}}, {high:{how}}]"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=("sparse", "vocabulary"))
    parser.add_argument("--model")
    parser.add_argument("--what", default="layers")
    parser.add_argument("--sparse-steps", type=int, default=200)
    parser.add_argument("--vocabulary-steps", type=int, default=200)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", default="build/heal")
    return parser.parse_args()


if __name__ == "__main__":
    main()
