"""Send the same prompts to an original and a pruned server, and stream both answers.

vllm serve MODEL --port 8000
vllm serve MODEL --port 8001 --plugin kprune --kprune-profile enko
python examples/openai_client.py http://localhost:8000/v1 http://localhost:8001/v1
"""

import sys

from openai import OpenAI

PROMPTS = ("대한민국의 수도는", "The three laws of robotics are", "def fibonacci(n):")


def stream(client: OpenAI, prompt: str) -> None:
    """Print a greedy continuation as it arrives."""
    model = client.models.list().data[0].id
    chunks = client.completions.create(
        model=model, prompt=prompt, max_tokens=40, temperature=0, stream=True
    )
    for chunk in chunks:
        sys.stdout.write(chunk.choices[0].text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def main(urls: list[str]) -> None:
    """Ask every server every prompt."""
    if not urls:
        sys.exit(__doc__)
    for prompt in PROMPTS:
        for url in urls:
            sys.stdout.write(f"\n[{url}] {prompt}")
            stream(OpenAI(base_url=url, api_key="none"), prompt)


if __name__ == "__main__":
    main(sys.argv[1:])
