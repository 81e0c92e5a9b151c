"""Prune prompts with vLLM's offline `LLM` class; the served model ranks its own prompts.

python examples/offline_input_pruning.py MODEL

Offline, kprune does not measure from which length on pruning pays. A prompt of fewer than 512
tokens is left alone unless `kprune_min_tokens` names another limit; here it is 0.
"""

import sys

from vllm import LLM, SamplingParams

PASSAGE = (
    "The lighthouse of Homigot stands on the easternmost cape of the Korean peninsula. It was "
    "built in 1908 of brick alone, without any steel, after a foreign ship had run aground there. "
)
REQUEST_OPTIONS = (None, {"kprune_keep": 0.7}, {"kprune_keep": 0.7, "kprune_min_tokens": 0})


def main(model: str) -> None:
    """Continue one prompt three times: whole, left alone because it is short, and pruned."""
    llm = LLM(
        model=model,
        enforce_eager=True,
        max_model_len=2048,
        additional_config={"kprune": {"input_pruner": "self"}},
    )
    for options in REQUEST_OPTIONS:
        params = SamplingParams(temperature=0, max_tokens=24, extra_args=options)
        (answer,) = llm.generate([PASSAGE * 4], params)
        sys.stdout.write(f"{options}: {len(answer.prompt_token_ids)} prompt tokens\n")
        sys.stdout.write(f"{answer.outputs[0].text}\n")
    try:
        llm.generate([PASSAGE], SamplingParams(extra_args={"kprune_keep": "most"}))
    except ValueError as error:  # a KPruneError
        sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
