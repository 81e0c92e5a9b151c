"""The suites of `kprune compare`, by name."""

from vllm_kprune.evaluate.compare.run import Suite

__all__ = ["SUITES"]

# Filled by name -> suite; each module has its suite as a frozen dataclass.
SUITES: dict[str, Suite] = {}
