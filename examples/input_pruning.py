"""Prune long prompts with the `openai` client: shares to keep, marked spans, and what was saved.

vllm serve MODEL --plugin kprune --kprune-input-pruner self
python examples/input_pruning.py http://localhost:8000/v1

MODEL is any model that vLLM serves; one without a chat template needs --chat-template. Nothing is
pruned unless a request asks for it (`--kprune-keep 0.8` would prune every request).
"""

import sys
from collections.abc import Mapping

from openai import APIConnectionError, APIError, BadRequestError, OpenAI

PASSAGE = (
    "The lighthouse of Homigot stands on the easternmost cape of the Korean peninsula. It was "
    "built in 1908 of brick alone, without any steel, after a foreign ship had run aground there. "
    "It is 26 metres high, and inside it has six storeys whose ceilings bear the plum blossom of "
    "the imperial house. A museum beside it shows lamps from other lighthouses. "
)
QUESTION = "How high is it?"
MARKED = f'Answer from this text. <kprune keep="0.6">{PASSAGE * 4}</kprune> {QUESTION}'
SERVE = "vllm serve MODEL --plugin kprune --kprune-input-pruner self"
# The `vllm_xargs` of each request. `kprune_min_tokens` 0 prunes prompts of any length.
REQUEST_OPTIONS: tuple[Mapping[str, object], ...] = (
    {},
    {"kprune_keep": 0.7, "kprune_min_tokens": 0},
    {"kprune_keep": 0.7, "kprune_min_tokens": 0, "kprune_force_digits": 1, "kprune_unit": "word"},
    {"kprune_target_tokens": 100, "kprune_min_tokens": 0},
    {"kprune_keep": "most"},  # a mistake: HTTP 400 says what is expected
)


def ask(client: OpenAI, content: str, options: Mapping[str, object], *, earlier: str = "") -> None:
    """Ask once, and print the answer and what its headers say."""
    turns = [{"role": "user", "content": earlier}, {"role": "assistant", "content": "I see."}]
    raw = client.chat.completions.with_raw_response.create(
        model=client.models.list().data[0].id,
        messages=[*(turns if earlier else []), {"role": "user", "content": content}],  # type: ignore[list-item]
        max_tokens=40,
        temperature=0,
        extra_body={"vllm_xargs": dict(options)},
    )
    answer = raw.parse()
    names = ("prompt-tokens-original", "prompt-tokens-kept", "segments-pruned")
    if any(f"x-kprune-{name}" not in raw.headers for name in names):
        sys.exit(f"the server prunes no prompts: start it with {SERVE}")
    original, kept, segments = (raw.headers[f"x-kprune-{name}"] for name in names)
    sys.stdout.write(f"{kept} of {original} tokens, {segments} segments pruned; ")
    sys.stdout.write(f"usage says {answer.usage and answer.usage.prompt_tokens}\n")
    sys.stdout.write(f"{answer.choices[0].message.content}\n")


def main(url: str) -> None:
    """Prune a passage of an earlier turn in several ways, then one in a marked span."""
    client = OpenAI(base_url=url, api_key="none")
    for options in REQUEST_OPTIONS:
        sys.stdout.write(f"\n{dict(options)}\n")
        try:
            ask(client, QUESTION, options, earlier=PASSAGE * 4)
        except BadRequestError as error:
            if options.get("kprune_keep") != "most":
                raise
            sys.stdout.write(f"{error}\n")
    sys.stdout.write("\nmarked\n")
    ask(client, MARKED, {"kprune_min_tokens": 0})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except APIConnectionError:
        sys.exit(f"no server answers at {sys.argv[1]}: {SERVE}")
    except APIError as error:
        sys.exit(f"the server refused: {error}")
