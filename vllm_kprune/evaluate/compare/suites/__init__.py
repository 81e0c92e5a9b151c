"""The suites of `kprune compare`, by name, in the order they run."""

from collections.abc import Mapping

from vllm_kprune.evaluate.compare.run import Suite
from vllm_kprune.evaluate.compare.suites.exactness import Exactness
from vllm_kprune.evaluate.compare.suites.stability import Stability

__all__ = ["SUITES"]

_SUITES: tuple[Suite, ...] = (Stability(), Exactness())
SUITES: Mapping[str, Suite] = {suite.name: suite for suite in _SUITES}
