"""What `kprune demo` finds out, as values; and as the JSON that its `--json` writes."""

from dataclasses import asdict, dataclass
from typing import Any

from vllm_kprune.evaluate.answers import AnswerPair
from vllm_kprune.evaluate.decode_speed import SpeedComparison
from vllm_kprune.evaluate.server_memory import ServerMemory
from vllm_kprune.evaluate.sizes import ModelSize

__all__ = ["DemoResult", "ServedModel", "as_json"]


@dataclass(frozen=True)
class ServedModel:
    """Figures of one side.

    `disk_bytes` is what it adds on disk: an overlay shares its base's weights. `ready_seconds` is
    from start to the first answer, with the other server starting beside it; `load_seconds` is the
    part that read weights, if the log tells.
    """

    size: ModelSize
    disk_bytes: int
    ready_seconds: float
    load_seconds: float | None
    memory: ServerMemory


@dataclass(frozen=True)
class DemoResult:
    """Everything that a run found out; `load_average` is how busy the machine was beforehand."""

    model: str
    profile: str
    hardware: str
    load_average: float
    original: ServedModel
    pruned: ServedModel
    predicted_ratio: float
    speeds: tuple[SpeedComparison, ...]
    answers: tuple[AnswerPair, ...]

    @property
    def identical(self) -> int:
        """Number of prompts that both models answered token for token alike."""
        return sum(pair.difference is None for pair in self.answers)

    @property
    def different(self) -> dict[str, list[AnswerPair]]:
        """The other answers by kind of difference."""
        kinds: dict[str, list[AnswerPair]] = {}
        for pair in self.answers:
            if pair.difference:
                kinds.setdefault(pair.difference.kind, []).append(pair)
        return kinds


def as_json(result: DemoResult) -> dict[str, Any]:
    """All figures, the derived ones included, as plain JSON values."""
    return asdict(result) | {
        "speeds": [_speed_json(speed, result.predicted_ratio) for speed in result.speeds],
        "identical_answers": result.identical,
        "different_answers": {kind: len(pairs) for kind, pairs in result.different.items()},
    }


def _speed_json(speed: SpeedComparison, predicted: float) -> dict[str, Any]:
    """`of_predicted` is the share of the gain in speed that bytes predict; at batch 1 only."""
    return asdict(speed) | {
        "original_tokens_per_s": speed.original,
        "pruned_tokens_per_s": speed.pruned,
        "ratio": speed.ratio,
        "ratio_range": list(speed.ratio_range),
        "of_predicted": speed.ratio / predicted if speed.batch == 1 else None,
    }
