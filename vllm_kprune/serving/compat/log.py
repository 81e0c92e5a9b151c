"""The logger of everything that kprune does inside vLLM."""

import logging

__all__ = ["logger"]

# A child of vLLM's own logger, so that messages have vLLM's format and level.
logger = logging.getLogger("vllm.kprune")
