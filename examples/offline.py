"""Use vLLM's offline `LLM` class with an overlay, or prune a model in one step.

python examples/offline.py build/enko
python examples/offline.py MODEL enko
"""

import sys

from vllm import LLM, SamplingParams


def main(model: str, profile: str | None = None) -> None:
    """Continue two prompts greedily."""
    options = {"additional_config": {"kprune": {"profile": profile}}} if profile else {}
    llm = LLM(model=model, enforce_eager=True, max_model_len=2048, **options)
    prompts = ["대한민국의 수도는", "The capital of South Korea is"]
    for answer in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24)):
        sys.stdout.write(f"{answer.prompt}{answer.outputs[0].text}\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
