"""A server whose LM head has three profiles, under mixed load: is every answer of its own profile?

    .venv/bin/python benchmarks/head_load.py [MODEL] [--profiles enko,enkozh,original]
        [--requests 500] [--at-once 32] [--tokens 24] [--dtype float32]

Requests ask for one of the profiles, or for none, in an order drawn from a seed: half of them
greedy, the others at T=1.5, so that unlikely tokens come up. They are checked by token ids:

- every token of an answer is one that the answer's profile keeps;
- a greedy answer is the one that the same request gets alone. Two batches may round differently,
  so a difference counts only if the two best tokens were not about as good as one another.

Prints how many of each were wrong, and what `GET /kprune` and the metrics say.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from vllm_kprune.checkpoint.head import HeadRows, head_rows
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.servers import VllmServer
from vllm_kprune.profile import load_profile

PROMPTS = (
    "대한민국의 수도는 서울이고, 가장 큰 항구 도시는",
    "The quick brown fox jumps over the lazy dog and then",
    "中国的首都是北京，最大的城市是",
    "def fibonacci(n):\n    ",
    "日本の首都は東京で、",
    "Столица России — Москва, а",
)
# Log-probabilities that differ by less may change places between two batches.
TIE = 0.01


@dataclass(frozen=True)
class Asked:
    """A request: its profile by number (None: not named), and whether it is greedy."""

    prompt: str
    profile: int | None
    temperature: float
    seed: int


def main() -> None:
    """Start the server, ask all requests at once, then the greedy ones alone."""
    options = _arguments()
    model = Path(options.model) if Path(options.model).is_dir() else demo_model(options.model)
    names = options.profiles.split(",")
    rows = head_rows(model, [load_profile(name) for name in names])
    chance = random.Random(0)
    asked = [
        Asked(
            chance.choice(PROMPTS),
            chance.choice([None, *range(len(names))]),
            0.0 if n % 2 else 1.5,
            n,
        )
        for n in range(options.requests)
    ]
    arguments = ["--plugin", "kprune", "--kprune-head", options.profiles, "--enforce-eager"]
    arguments += ["--dtype", options.dtype, "--max-model-len", "512"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with VllmServer(model, arguments, environment=environment) as server:
        with ThreadPoolExecutor(options.at_once) as pool:
            answers = list(pool.map(lambda one: _ask(server, one, names, options.tokens), asked))
        greedy = {(a.prompt, a.profile): a for a in asked if not a.temperature}
        alone = {key: _ask(server, one, names, options.tokens) for key, one in greedy.items()}
        status = json.loads(_get(f"{server.url}/kprune"))["head"]
        metrics = _get(f"{server.url}/metrics").splitlines()
    _report(asked, answers, alone, rows)
    sys.stdout.write(json.dumps(status) + "\n")
    sys.stdout.writelines(f"{one}\n" for one in metrics if one.startswith("kprune_head"))


def _report(
    asked: Sequence[Asked],
    answers: Sequence[dict[str, Any]],
    alone: dict[tuple[str, int | None], dict[str, Any]],
    rows: HeadRows,
) -> None:
    kept = [set(rows.kept(profile).tolist()) for profile in range(len(rows.profiles))]
    found: Counter[str] = Counter()
    for one, answer in zip(asked, answers, strict=True):
        name = rows.profiles[one.profile or 0]
        found[f"{name}: answers"] += 1
        found[f"{name}: tokens"] += len(answer["ids"])
        found[f"{name}: tokens that it does not keep"] += sum(
            token not in kept[one.profile or 0] for token in answer["ids"]
        )
        # What would show if all had the smallest profile.
        found[f"{name}: tokens that {rows.profiles[0]} lacks"] += sum(
            token not in kept[0] for token in answer["ids"]
        )
        if not one.temperature:
            found["greedy answers"] += 1
            found[_compared(answer, alone[one.prompt, one.profile])] += 1
    for what, number in sorted(found.items()):
        sys.stdout.write(f"{what}: {number:,}\n")


def _compared(answer: dict[str, Any], alone: dict[str, Any]) -> str:
    pairs = enumerate(zip(answer["ids"], alone["ids"], strict=True))
    first = next((n for n, (a, b) in pairs if a != b), None)
    if first is None:
        return "greedy answers as alone"
    return "greedy answers tied" if alone["gaps"][first] < TIE else "greedy answers that differ"


def _ask(server: VllmServer, one: Asked, names: Sequence[str], tokens: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": server.model,
        "prompt": one.prompt,
        "max_tokens": tokens,
        "temperature": one.temperature,
        "seed": one.seed,
        "logprobs": 2,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if one.profile is not None:
        body["vllm_xargs"] = {"kprune_head": names[one.profile]}
    headers = {"Content-Type": "application/json"}
    request = Request(f"{server.base_url}/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=600) as response:
        (choice,) = json.loads(response.read())["choices"]
    best = [sorted(step.values(), reverse=True) for step in choice["logprobs"]["top_logprobs"]]
    gaps = [step[0] - step[1] if len(step) > 1 else 1.0 for step in best]
    return {"ids": choice["token_ids"], "gaps": gaps}


def _get(url: str) -> str:
    with urlopen(url, timeout=60) as response:
        text: str = response.read().decode()
        return text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="gemma-3-270m")
    parser.add_argument("--profiles", default="enko,enkozh,original")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
