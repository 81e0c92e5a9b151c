"""vLLM's two logits processor interfaces as base classes.

The guard's class must import safely where one of them is missing. The guard is then off: `engine`
says so before the engine starts, and the stand-in base is never used.
"""

__all__ = ["V1LogitsProcessor", "V2LogitsProcessor"]

try:
    from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
except ImportError:

    class V1LogitsProcessor:  # type: ignore[no-redef]
        """Stands in for the interface of the V1 model runner."""


try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsProcessor as V2LogitsProcessor,
    )
except ImportError:

    class V2LogitsProcessor:  # type: ignore[no-redef]
        """Stands in for the interface of the V2 model runner."""
