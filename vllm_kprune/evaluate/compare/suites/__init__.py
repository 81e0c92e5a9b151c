"""The suites of `kprune compare`, by name."""

from vllm_kprune.evaluate.compare.run import Suite
from vllm_kprune.evaluate.compare.suites.accuracy import Accuracy
from vllm_kprune.evaluate.compare.suites.input import InputPruning
from vllm_kprune.evaluate.compare.suites.latency import Latency
from vllm_kprune.evaluate.compare.suites.memory import Memory
from vllm_kprune.evaluate.compare.suites.translation import Translation

__all__ = ["SUITES"]

# In the order in which they are run and told.
SUITES: dict[str, Suite] = {
    suite.name: suite for suite in (Translation(), Accuracy(), Latency(), Memory(), InputPruning())
}
