"""The suites of `kprune compare`, by name, in the order they run and are told."""

from collections.abc import Mapping

from vllm_kprune.compare.run import Suite
from vllm_kprune.compare.suites.accuracy import Accuracy
from vllm_kprune.compare.suites.exactness import Exactness
from vllm_kprune.compare.suites.input import InputPruning
from vllm_kprune.compare.suites.latency import Latency
from vllm_kprune.compare.suites.memory import Memory
from vllm_kprune.compare.suites.stability import Stability
from vllm_kprune.compare.suites.translation import Translation

__all__ = ["SUITES"]

_SUITES: tuple[Suite, ...] = (
    *(Stability(), Translation(), Accuracy(), Exactness(), Latency(), Memory(), InputPruning()),
)
SUITES: Mapping[str, Suite] = {suite.name: suite for suite in _SUITES}
