"""The LitePruner paper's analyses: how alike rankers are, and what dropping tokens saves.

    .venv/bin/python benchmarks/litepruner.py similarity RANKER [OTHER] --language en
    .venv/bin/python benchmarks/litepruner.py bleu RANKER OTHER --language en
    .venv/bin/python benchmarks/litepruner.py flops RANKER TARGET
    .venv/bin/python benchmarks/litepruner.py dropping TOKENIZER TARGET --language en

similarity (formula 1, tables 6, 7, 11-16): the first three layers of a model against those of
another model with the same tokenizer, or against its own. RAD is the mean over tokens of |a - b|,
where a and b are the attention that a token receives in two layers. The scores of a prompt of n
tokens sum to 1, so RAD shrinks as 1/n whatever the layers do. "n x RAD" is the difference in units
of the mean score, from 0 to 2, and can be compared between prompts. The cosine of two positive
vectors is high as soon as both have the same few peaks. <bos> is the usual peak, and
`--without-bos` leaves it out; "shuffled" compares with the same scores in random order. "dropped
alike" is what pruning notices: the share of the tokens dropped by one, at keep 0.7, that the other
drops too (30 % by chance). `--causal` compares the layers as the models run, where early tokens are
seen by more queries. The paper ranks without the mask and does not say which of the two its tables
show.

bleu (table 8): mean sentence BLEU (sacrebleu) between the texts that two rankers keep. They may
have different tokenizers, and each keeps a share of its own tokens. "random" compares two random
droppings of the same size: the zero of the scale. Korean words are long for this measure: if a part
of one is missing, the whole word counts as different.

flops (figure 2): the cost of ranking and prefill by length, by formula (flops.py). "saved" is the
saving in prefill minus the cost of ranking, as a share of the unpruned prefill. A scorer without a
model, such as `rarity`, has no ranking to subtract. flops.PUBLISHED has names that can be given
instead of folders.

dropping (tables 9, 10): every token except the last ten is dropped with probability p; the result
is the FLOPs that the target saves. Tokens are counted as ids, as in the paper, and again after the
text went through the tokenizer, as on a server, where parts of words that now touch may merge or be
cut differently. litepruner_quality.py measures what random dropping does to quality: `random` is
its baseline.

The texts are passages of XQuAD (`en`, `zh`, ...) and KoBEST (`ko`) in $KPRUNE_DATA. Without it
there are a few sentences: enough to try the commands, but not to quote the results.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from flops import load_shape, prefill_flops, ranking_flops
from ranker_agreement import bleu, similarity

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.scorers import SCORERS
from vllm_kprune.tokenizer.encoder import load_encoder

RATES = (0.9, 0.8, 0.7)
WITHOUT_SPACES = {"zh": "zh", "th": "char"}  # sacrebleu's tokenizer
LENGTHS = (128, 512, 2048, 8192, 32768)
SAMPLES = {
    "en": (
        "The harbour was built on soft ground, so the engineers first sank 1,200 oak piles. Only "
        "then could the stone quay be laid, and the first ships unloaded there in 1863.",
        "Glass does not flow at room temperature. Old window panes are thicker at one edge because "
        "of the way they were made, and glaziers usually set that edge at the bottom.",
    ),
    "zh": (
        "这座港口建在松软的土地上，因此工程师们先打下了一千二百根橡木桩，然后才铺设石码头。",
        "玻璃在室温下不会流动。老窗玻璃一边较厚，是因为当时的制造方法，工匠通常把厚的一边放在下面。",
    ),
    "ko": (
        "이 항구는 무른 땅 위에 지어졌기 때문에 기술자들은 먼저 참나무 말뚝 천이백 개를 박았다.",
        "유리는 상온에서 흐르지 않는다. 오래된 창유리의 한쪽이 두꺼운 것은 만드는 방법 때문이다.",
    ),
}
Rows = list[dict[str, Any]]


def texts(language: str, most: int, join: int) -> list[str]:
    """At most `most` prompts, each of `join` passages."""
    data = os.environ.get("KPRUNE_DATA")
    if not data and language not in SAMPLES:
        raise KPruneError(f"texts in {language!r} need KPRUNE_DATA; without it: {list(SAMPLES)}")
    found = _passages(Path(data), language) if data else iter(SAMPLES[language])
    joined = iter(lambda: list(islice(found, join)), [])
    prompts = ["\n\n".join(part) for part in islice(joined, most)]
    if not prompts:
        raise KPruneError(f"{most} prompts of {join} passages: expected at least 1 of 1")
    return prompts


def _passages(data: Path, language: str) -> Iterator[str]:
    from litepruner_quality import kobest, xquad

    try:
        for item in kobest(data) if language == "ko" else xquad(data, language):
            yield item.passage
    except FileNotFoundError as error:
        raise KPruneError(f"no texts in {language!r}: {error}") from None


def flops(ranker: Path, target: Path, lengths: Sequence[int]) -> Rows:
    """GFLOPs by length, and the share of them that pruning saves."""
    small, large = load_shape(str(ranker)), load_shape(str(target))
    rows = []
    for tokens in lengths:
        ranking, whole = ranking_flops(small, tokens), prefill_flops(large, tokens)
        row: dict[str, Any] = {
            "tokens": tokens,
            "algorithm 1": ranking_flops(small, tokens, whole_layer=True) / 1e9,
            "ranking": ranking / 1e9,
            "prefill": whole / 1e9,
        }
        for keep in RATES:
            left = prefill_flops(large, math.ceil(keep * tokens))
            row |= {f"prefill {keep}": left / 1e9, f"saved {keep}": 1 - (left + ranking) / whole}
        rows.append(row)
    return rows


def dropping(folder: Path, target: Path, prompts: Sequence[str]) -> Rows:
    """Mean number of tokens left of a prompt, and mean share of the target's FLOPs saved."""
    tokenizer, shape = load_encoder(folder), load_shape(str(target))
    rng = np.random.default_rng(0)
    rows = []
    for p in (0.1, 0.2, 0.3, 0.4):
        found = []
        for prompt in prompts:
            ids = np.array(tokenizer.encode(prompt).ids)
            kept = ids[(rng.random(len(ids)) >= p) | (np.arange(len(ids)) >= len(ids) - 10)]
            again = len(tokenizer.encode(tokenizer.decode(kept.tolist())).ids)
            whole, left, text = (prefill_flops(shape, n) for n in (len(ids), len(kept), again))
            found.append((len(ids), len(kept), 1 - left / whole, again, 1 - text / whole))
        names = ("before", "tokens", "FLOPs drop", "tokens as text", "FLOPs drop as text")
        rows.append({"p": p, **dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))})
    return rows


def show(title: str, rows: Rows) -> None:
    print(f"\n{title}\n\n| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(_cell(*item) for item in row.items()) + " |", flush=True)


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1%}" if "drop" in name or "saved" in name else f"{value:.4g}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["similarity", "bleu", "flops", "dropping"])
    parser.add_argument("ranker", type=Path, help="a model's folder")
    parser.add_argument("other", type=Path, nargs="?", help="the other ranker, or the target")
    parser.add_argument("--language", action="append", help="en (default), zh, ko, ...; repeatable")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--join", type=int, default=1, help="passages in a prompt")
    parser.add_argument("--without-bos", action="store_true", help="similarity of text tokens only")
    parser.add_argument("--causal", action="store_true", help="similarity under the causal mask")
    parser.add_argument("--scorer", choices=SCORERS, default="attention", help="for bleu")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="for flops")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    if options.other is None and options.what != "similarity":
        parser.error(f"{options.what} needs two models")
    return options


def measure(options: argparse.Namespace, language: str, prompts: Sequence[str]) -> Rows:
    """The table of one language."""
    first, second = options.ranker, options.other or options.ranker
    if options.what == "similarity":
        how = {"bos": not options.without_bos, "causal": options.causal}
        return similarity(first, second, prompts, **how)
    if options.what == "dropping":
        return dropping(first, second, prompts)
    cut = WITHOUT_SPACES.get(language, "13a")
    return bleu([first, second], prompts, RATES, options.scorer, cut)


def main() -> None:
    """Print the tables and write the results."""
    options = parse()
    models = " and ".join(p.name for p in (options.ranker, options.other) if p)
    how = [name for name in ("causal", "without_bos") if getattr(options, name)]
    tables: dict[str, Rows] = {}
    try:
        if options.what == "flops":
            tables[f"GFLOPs: {models}"] = flops(options.ranker, options.other, options.lengths)
        else:
            for language in options.language or ["en"]:
                prompts = texts(language, options.prompts, options.join)
                title = ", ".join(
                    [models, language, f"{len(prompts)} prompts of {options.join}", *how]
                )
                tables[f"{options.what}: {title}"] = measure(options, language, prompts)
    except KPruneError as error:
        sys.exit(str(error))
    for title, rows in tables.items():
        show(title, rows)
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
