"""What `gpu.py` was asked to do, as its steps and their processes get it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Job", "Row", "Rows", "engine", "has_gpu", "runner_of"]


@dataclass(frozen=True)
class Row:
    """A line of the table; `is_good`: as it should be."""

    what: str
    seen: str
    is_good: bool = True


Rows: TypeAlias = Iterable[Row]


@dataclass(frozen=True)
class Job:
    """See the options of `gpu.py`."""

    work: str
    tokenizer: str
    shape: str
    speed_shape: str
    profile: str
    memory: float
    is_quick: bool

    @property
    def model(self) -> Path:
        """The folder of the model with weights."""
        return Path(self.work) / "models" / self.shape

    @property
    def overlay(self) -> Path:
        """The folder of its overlay."""
        return Path(self.work) / "models" / f"{self.shape}-{self.profile}"

    @property
    def speed_model(self) -> Path:
        """The folder of the model without weights."""
        return Path(self.work) / "models" / f"{self.speed_shape}-dummy"

    @property
    def pruned_speed_model(self) -> Path:
        """The same with as many rows as the overlay."""
        return Path(self.work) / "models" / f"{self.speed_shape}-dummy-{self.profile}"

    @property
    def environment(self) -> dict[str, str]:
        """For all processes: offline, and with engines in the process that asks for them."""
        return {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # Where FlashInfer has no compiled kernels, it would compile them for minutes.
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
        }

    def some(self, number: int) -> int:
        """As many, or an eighth of them with `--quick`."""
        return max(8, number // 8) if self.is_quick else number


def has_gpu() -> bool:
    """Is there a GPU that PyTorch can use?"""
    import torch

    return bool(torch.cuda.is_available())


def engine(job: Job, model: Path, **options: Any) -> Any:
    """vLLM's `LLM`, eager unless the options say otherwise."""
    from vllm import LLM

    given = {"max_model_len": 2048, "max_num_seqs": 256, "seed": 0, "enforce_eager": True}
    if has_gpu():
        given["gpu_memory_utilization"] = job.memory
    return LLM(model=str(model), **given | options)


def runner_of(llm: Any) -> str:
    """V1 or V2: which of vLLM's model runners an engine has."""
    return "V2" if llm.llm_engine.vllm_config.use_v2_model_runner else "V1"
