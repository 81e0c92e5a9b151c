"""Guard single requests with the `openai` client, streamed: Korean and English, or other scripts.

vllm serve MODEL --plugin kprune
python examples/guard.py http://localhost:8000/v1

MODEL is any model, pruned or not. `--kprune-languages ko,en` would guard every request.
"""

import sys

from openai import APIConnectionError, APIError, OpenAI

PROMPT = "日本の首都は東京です。韓国の首都は"
GUARDS = (
    {"kprune_languages": "off"},
    {"kprune_languages": "ko,en"},
    {"kprune_languages": "ko,en", "kprune_hanja": "ksx1001"},
    {"kprune_scripts": ["Hangul"], "kprune_digits": "false"},
    {"kprune_languages": "korean"},  # a mistake: HTTP 400 names the known codes
)


def stream(client: OpenAI, guard: dict[str, object]) -> None:
    """Print a continuation at a high temperature as it arrives."""
    model = client.models.list().data[0].id
    chunks = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=40,
        temperature=1.3,
        stream=True,
        extra_body={"vllm_xargs": guard},
    )
    for chunk in chunks:
        sys.stdout.write(chunk.choices[0].text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def main(url: str) -> None:
    """Ask with each of the guards."""
    client = OpenAI(base_url=url, api_key="none")
    for guard in GUARDS:
        sys.stdout.write(f"\n{guard}\n{PROMPT}")
        try:
            stream(client, guard)
        except APIConnectionError:
            sys.exit(f"\nno server answers at {url}: vllm serve MODEL --plugin kprune")
        except APIError as error:
            sys.stdout.write(f"\n{error}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
