"""A model that thinks, with the `openai` client: guard its answer, its reasoning, or both.

vllm serve MODEL --plugin kprune --reasoning-parser PARSER
python examples/thinking.py http://localhost:8000/v1

MODEL is any model that reasons before it answers, such as Qwen3 with the parser `qwen3`. The guard
of an answer leaves the reasoning alone: forcing a model to think in another language than it likes
to costs accuracy. `--kprune-think-languages` and `--kprune-languages` would guard every request.
"""

import sys

from openai import APIConnectionError, APIError, OpenAI

QUESTION = "서울에서 부산까지 기차로 얼마나 걸려요?"
GUARDS = (
    {"kprune_languages": "ko"},
    {"kprune_languages": "ko", "kprune_think_languages": "en"},
    {"kprune_languages": "off", "kprune_think_languages": "ko,en"},
)


def ask(client: OpenAI, guard: dict[str, object]) -> None:
    """Print the reasoning and the answer to one question."""
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=400,
        extra_body={"vllm_xargs": guard},
    )
    message = answer.choices[0].message
    reasoning = (message.model_extra or {}).get("reasoning")
    sys.stdout.write(f"reasoning: {reasoning}\nanswer: {message.content}\n")


def main(url: str) -> None:
    """Ask with each of the guards."""
    client = OpenAI(base_url=url, api_key="none")
    for guard in GUARDS:
        sys.stdout.write(f"\n{guard}\n")
        try:
            ask(client, guard)
        except APIConnectionError:
            sys.exit(
                f"no server answers at {url}: vllm serve MODEL --plugin kprune "
                "--reasoning-parser PARSER"
            )
        except APIError as error:
            sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
