"""The suites of `kprune compare`: the table `SUITES`, in the order in which they run.

A new suite is one file with a subclass of `Suite`, and one row here. Its options appear on the
command line, its settings in the journal, and its metrics in the report and in `--fail-on`.
"""

from vllm_kprune.compare.run import Suite
from vllm_kprune.compare.suites.accuracy import Accuracy
from vllm_kprune.compare.suites.exactness import Exactness
from vllm_kprune.compare.suites.input import InputPruning
from vllm_kprune.compare.suites.latency import Latency
from vllm_kprune.compare.suites.memory import Memory
from vllm_kprune.compare.suites.stability import Stability
from vllm_kprune.compare.suites.translation import Translation

__all__ = ["SUITES"]

_TABLE: tuple[Suite, ...] = (
    Stability(),
    Translation(),
    Accuracy(),
    Exactness(),
    Latency(),
    Memory(),
    InputPruning(),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _TABLE}
