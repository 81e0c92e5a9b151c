"""Everything of vLLM that may change: the table of names, who verifies them, who uses them.

`seams` is the table and `installer` works it off; `version` says which releases it was read in. The
other modules wrap and call what the table lists. Nothing here imports vLLM before it is needed:
`register()` runs in every vLLM process of a machine, also where nobody asked for kprune.
"""

from vllm_kprune.serving.compat.engine import refuses_logits_processors
from vllm_kprune.serving.compat.log import logger
from vllm_kprune.serving.compat.version import check_version, vllm_version

__all__ = ["check_version", "logger", "refuses_logits_processors", "vllm_version"]
