"""The suites of `kprune compare`, by name, in the order they run and are told."""

from collections.abc import Mapping

from vllm_kprune.evaluate.compare.run import Suite
from vllm_kprune.evaluate.compare.suites.accuracy import Accuracy
from vllm_kprune.evaluate.compare.suites.exactness import Exactness
from vllm_kprune.evaluate.compare.suites.input import InputPruning
from vllm_kprune.evaluate.compare.suites.latency import Latency
from vllm_kprune.evaluate.compare.suites.memory import Memory
from vllm_kprune.evaluate.compare.suites.stability import Stability
from vllm_kprune.evaluate.compare.suites.translation import Translation

__all__ = ["SUITES"]

_SUITES: tuple[Suite, ...] = (
    *(Stability(), Translation(), Accuracy(), Exactness(), Latency(), Memory(), InputPruning()),
)
SUITES: Mapping[str, Suite] = {suite.name: suite for suite in _SUITES}
