"""Script: random traffic through vLLM's V2 sampler with the guard inside; writes JSON.

    python v2_simulation.py STEPS SEED

It runs in the environment of `triton_package.py`, and `v2_runs.py` has what it runs. `vllm` may be
another release than the installed one, found by PYTHONPATH: its Python files are enough.
"""

import json
import sys

from support.triton_interpreter import use_interpreter


def main(steps: int, seed: int) -> None:
    """Each run, with seeds from `seed` on."""
    use_interpreter()
    from support.v2_runs import RUNS, simulate
    from vllm_kprune.serving.plugin import register

    # As vLLM does in each of its processes. Among others, it tells the guard of ended requests.
    register()
    found = [simulate(run, steps, seed + n) for n, run in enumerate(RUNS)]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
