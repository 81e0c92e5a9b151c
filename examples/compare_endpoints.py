"""Ask both endpoints with the openai client: sampled answers side by side, foreign letters in red.

vllm serve MODEL --port 8000
vllm serve MODEL --port 8001 --plugin kprune --kprune-profile enko
python examples/compare_endpoints.py http://localhost:8000/v1 http://localhost:8001/v1

Both get the same prompt, seed and temperature at the same time. Letters outside Hangul and Latin
are shown in red; four prompts usually produce none. `kprune compare` does this with many prompts,
confidence intervals and a report. The key of a hosted endpoint comes from OPENAI_API_KEY.
"""

import asyncio
import os
import sys

import regex
from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table
from rich.text import Text

PROMPTS = (
    "오늘 서울의 날씨는",
    "가을에 읽기 좋은 책을 추천하자면",
    "The best way to learn Korean is",
    "한국 음식 가운데 외국인이 좋아하는 것은",
)
FOREIGN = regex.compile(r"[^\p{Hangul}\p{Latin}\p{Common}\p{Inherited}]+")


async def ask(client: AsyncOpenAI, prompt: str, seed: int) -> str:
    """One sampled continuation of 60 tokens."""
    model = (await client.models.list()).data[0].id
    answer = await client.completions.create(
        model=model, prompt=prompt, max_tokens=60, temperature=1.0, seed=seed
    )
    return answer.choices[0].text


def marked(prompt: str, answer: str) -> Text:
    """The prompt and its answer, with foreign letters in red."""
    text = Text.assemble((prompt, "dim"), answer)
    text.highlight_regex(FOREIGN, "bold red")  # type: ignore[arg-type]
    return text


async def main(urls: list[str]) -> None:
    """Ask both endpoints every prompt."""
    key = os.environ.get("OPENAI_API_KEY", "none")
    clients = [AsyncOpenAI(base_url=url, api_key=key) for url in urls]
    table = Table(show_lines=True, expand=True)
    for url in urls:
        table.add_column(url, overflow="fold", ratio=1)
    foreign = [0, 0]
    for seed, prompt in enumerate(PROMPTS):
        answers = await asyncio.gather(*(ask(client, prompt, seed) for client in clients))
        table.add_row(*(marked(prompt, answer) for answer in answers))
        foreign = [n + bool(FOREIGN.search(a)) for n, a in zip(foreign, answers, strict=True)]
    table.caption = f"answers with foreign letters: {foreign[0]} and {foreign[1]} of {len(PROMPTS)}"
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1:]))
