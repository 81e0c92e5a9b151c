"""Token usage: how often a server used each token in its answers, as `GET /kprune/usage` tells it.

The counts are evidence for a vocabulary that fits the server's own traffic, and need no text. They
are sums over requests. A token that occurs in fewer requests than the floor is not named, because
rare tokens tell most about single users. This module is the format, for the server that writes it
and the commands that read it; `serving/usage` counts.

A file may come from anywhere, so it is bounded in size and checked field by field.
"""

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_kprune.arrays import Floats
from vllm_kprune.errors import KPruneError

__all__ = ["LEAST_FLOOR", "TokenUsage", "make_usage", "read_usage"]

# The least number of requests in which a token must occur to be named.
LEAST_FLOOR = 20
_MAX_BYTES = 64 << 20
_MOST_IDS = 1 << 24

# Below 2 ** 53, where every whole number is a float64.
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Counts = Annotated[tuple[_Count, ...], Field(max_length=_MOST_IDS)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BelowFloor(_Strict):
    """How many ids are not named, and how often they occur together."""

    ids: _Count
    tokens: _Count


class TokenUsage(_Strict):
    """What `GET /kprune/usage` answers.

    `ids` increase; `occurrences` and `in_requests` have a number for each of them: how often the
    token occurs, and in how many requests. `tokens` are all tokens of all `requests`, named or
    not. Ids are those of the original tokenizer, whose `tokenizer.json` has this SHA-256;
    `vocabulary` is above the largest of them.
    """

    format: Literal[1] = 1
    tokenizer_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    vocabulary: Annotated[int, Field(gt=0, le=_MOST_IDS)]
    floor: Annotated[int, Field(ge=LEAST_FLOOR, lt=1 << 53)]
    requests: _Count
    tokens: _Count
    below_floor: BelowFloor
    ids: _Counts
    occurrences: _Counts
    in_requests: _Counts

    def counts(self, size: int) -> Floats:
        """Occurrences by token id (float64 [size]); ids that a tokenizer of that size lacks: none.

        A model has logits for ids that are padding, and may have sampled some.
        """
        found = np.zeros(max(size, self.vocabulary))
        found[list(self.ids)] = self.occurrences
        return found[:size]

    def objection(self) -> str | None:
        """What in it contradicts itself; None if nothing does."""
        if not len(self.ids) == len(self.occurrences) == len(self.in_requests):
            return "ids, occurrences and in_requests differ in length"
        if any(a >= b for a, b in itertools.pairwise(self.ids)):
            return "ids must increase"
        if self.ids and self.ids[-1] >= self.vocabulary:
            return f"id {self.ids[-1]} is outside of the vocabulary of {self.vocabulary}"
        named = zip(self.occurrences, self.in_requests, strict=True)
        if any(not self.floor <= within <= min(times, self.requests) for times, within in named):
            return "a token is in fewer requests than the floor, or in more than there are"
        if sum(self.occurrences) + self.below_floor.tokens != self.tokens:
            return f"occurrences do not add up to {self.tokens} tokens"
        return None


def make_usage(
    occurrences: npt.NDArray[np.uint64],
    in_requests: npt.NDArray[np.uint64],
    *,
    requests: int,
    floor: int,
    tokenizer_sha256: str,
) -> TokenUsage:
    """Usage from counts by token id, uint64 [vocabulary]: ids below the floor are added up."""
    named = in_requests >= floor
    below = occurrences[~named]
    return TokenUsage(
        tokenizer_sha256=tokenizer_sha256,
        vocabulary=len(occurrences),
        floor=floor,
        requests=requests,
        tokens=int(occurrences.sum()),
        below_floor=BelowFloor(ids=int(np.count_nonzero(below)), tokens=int(below.sum())),
        ids=_numbers(np.flatnonzero(named)),
        occurrences=_numbers(occurrences[named]),
        in_requests=_numbers(in_requests[named]),
    )


def _numbers(array: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(array.tolist())


def read_usage(path: Path) -> TokenUsage:
    """Read a file with the answer of `GET /kprune/usage`. Raises `KPruneError` if it is not one."""
    if not path.is_file():
        raise KPruneError(f"usage file {path} does not exist or is not a file")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise KPruneError(f"usage file {path} is larger than {_MAX_BYTES >> 20} MiB")
        usage = TokenUsage.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise _unfit(path, reason) from None
    except OSError as error:
        raise KPruneError(f"usage file {path} cannot be read: {error.strerror}") from None
    if objection := usage.objection():
        raise _unfit(path, objection)
    return usage


def _unfit(path: Path, reason: str) -> KPruneError:
    return KPruneError(
        f"usage file {path}: {reason}; expected what GET /kprune/usage of a server with "
        "--kprune-usage answers"
    )
