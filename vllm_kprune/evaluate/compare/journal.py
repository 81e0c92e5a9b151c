"""Every raw answer, kept as it came: what a killed run had done is not asked again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Journal"]


class Journal:
    """`folder/answers/SUITE.jsonl`, one line for each value, on the disk before `put` returns."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder

    def get(self, suite: str, key: str) -> Any | None:
        """The value that was put (JSON), or None."""
        raise NotImplementedError

    def put(self, suite: str, key: str, value: Any) -> None:
        """Keep a JSON value."""
        raise NotImplementedError

    def step(self, suite: str, key: str, produce: Callable[[], Any]) -> Any:
        """The kept JSON value of a step, or what `produce` makes, which is then kept."""
        raise NotImplementedError
