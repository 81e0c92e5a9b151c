"""Automatons in files, so that one process builds a policy and others only read it.

To build a policy takes 20 to 60 ms, which is too long for a worker between two steps. A front end
that calls `keep_automaton` when a request arrives leaves the file for the worker, which reads it in
a few milliseconds with `stored_automaton`. A file holds tables alone; what they depend on is in its
name.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.array_files import Arrays, read_arrays, write_arrays
from vllm_kprune.guard.automaton import Automaton, build_automaton
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.ending import Ending
from vllm_kprune.guard.phases import PhasedReader, ReasoningTokens, build_phases
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.guard.tokens import TokenSpellings

__all__ = ["AutomatonSpec", "keep_automaton", "stored_automaton"]

_MOST_FILES = 64  # each of 1 to 4 MB; policies are the clients' choice
_TABLES = {"token_class": np.int16, "class_next": np.int16, "class_fallback": np.int16}
_ENDING = {"table": np.int16, "alive": np.bool_, "numbers": np.int32}
_PHASES = {"roles": np.int8, "before": np.int64}
_NONE = -1


@dataclass(frozen=True)
class AutomatonSpec:
    """All that an automaton depends on besides the tokenizer.

    `policy` is the answer's. Without `tokens` there are no phases, and it must be given; with them,
    None leaves the answer free. Other fields are as in `build_automaton` and `build_phases`.
    """

    policy: GuardPolicy | None
    num_rows: int
    control_ids: tuple[int, ...] = ()
    reasoning: GuardPolicy | None = None
    tokens: ReasoningTokens | None = None

    def build(self, spellings: TokenSpellings) -> Automaton:
        """Build it. Raises `KPruneError` as `build_automaton` and `build_phases` do."""
        if self.tokens is not None:
            return build_phases(
                *(spellings, self.policy, self.reasoning, self.tokens),
                num_rows=self.num_rows,
                control_ids=self.control_ids,
            )
        if self.policy is None:
            raise KPruneError("got no policy, expected one for the answer")
        return build_automaton(spellings, self.policy, self.num_rows, self.control_ids)

    def digest(self, spellings: TokenSpellings) -> str:
        """Equal for equal automatons, in every process."""
        # The fields are text, numbers and tuples of these, so their `repr` says all.
        digest = hashlib.sha256(f"{_code_digest()} {spellings.digest} {self!r}".encode())
        # Which characters a policy allows depends on the version of `regex` too.
        for policy in (self.policy, self.reasoning):
            digest.update(np.packbits(allowed_characters(policy)).tobytes() if policy else b"none")
        return digest.hexdigest()


def stored_automaton(spellings: TokenSpellings, spec: AutomatonSpec, cache: Path) -> Automaton:
    """The automaton of a spec, read from the folder `cache`, or built and kept there.

    A cache that cannot be read or written is only logged. Raises `KPruneError` as `spec.build`.
    """
    path = _path(spellings, spec, cache)
    parts = ("answer", "reasoning") if spec.tokens else ("answer",)
    names = [*_TABLES, "numbers", *(_PHASES if spec.tokens else ())]
    names += [f"{part}_{name}" for part in parts for name in _ENDING]
    found = read_arrays(path, names, lambda arrays: _automaton(arrays, spec, spellings))
    if found is None:
        found = spec.build(spellings)
        write_arrays(path, _arrays(found), _MOST_FILES)
    return found


def keep_automaton(spellings: TokenSpellings, spec: AutomatonSpec, cache: Path) -> None:
    """Build an automaton and keep it in the folder `cache`, unless it is there already."""
    path = _path(spellings, spec, cache)
    if not path.exists():
        write_arrays(path, _arrays(spec.build(spellings)), _MOST_FILES)


def _path(spellings: TokenSpellings, spec: AutomatonSpec, cache: Path) -> Path:
    return cache / f"automaton-{spec.digest(spellings)[:32]}.npz"


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """Of the code that builds automatons, so that none is read that other code has built."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _arrays(automaton: Automaton) -> Arrays:
    reader = automaton._reader
    tables = {name: getattr(automaton, name).numpy() for name in _TABLES}
    numbers = _numbers(automaton.broken, automaton.first_reasoning_state)
    if isinstance(reader, PhasedReader):
        phases = {"roles": reader.roles, "before": reader.before}
        endings = _ending("answer", reader.answer) | _ending("reasoning", reader.reasoning)
        return {**tables, "numbers": numbers, **phases, **endings}
    assert isinstance(reader, Ending)
    return {**tables, "numbers": numbers, **_ending("answer", reader)}


def _ending(part: str, ending: Ending) -> Arrays:
    numbers = _numbers(ending.broken, ending.escaped)
    arrays = {"table": ending.table, "alive": ending.alive, "numbers": numbers}
    return {f"{part}_{name}": array for name, array in arrays.items()}


def _numbers(*numbers: int | None) -> Any:
    return np.array([_NONE if number is None else number for number in numbers], np.int32)


def _automaton(arrays: Arrays, spec: AutomatonSpec, spellings: TokenSpellings) -> Automaton:
    """Turn arrays into a value; ValueError if they do not belong together."""
    dtypes = _TABLES | {"numbers": np.int32} | (_PHASES if spec.tokens else {})
    if any(arrays[name].dtype != dtype for name, dtype in dtypes.items()):
        raise ValueError("its arrays have other types")
    tables, broken = [arrays[name] for name in _TABLES], int(arrays["numbers"][0])
    _check(lambda: _are_tables(tables, spec.num_rows) and 0 <= broken < len(tables[1]))
    answer = _read_ending(arrays, "answer", spellings)
    if spec.tokens is None:
        _check(lambda: len(answer.alive) == len(tables[1]))
        return _made(spec, tables, broken, answer)
    reasoning = _read_ending(arrays, "reasoning", spellings)
    first, before, roles = int(arrays["numbers"][1]), arrays["before"], arrays["roles"]
    _check(lambda: first + len(reasoning.alive) == len(tables[1]))
    _check(lambda: before.shape == answer.alive.shape and _in_range(before, 0, first))
    _check(lambda: roles.shape == (spec.num_rows,) and _in_range(roles, 0, 4))
    reader = PhasedReader(answer, reasoning, spec.tokens, roles, before, first)
    return _made(spec, tables, broken, reader, first)


def _made(
    spec: AutomatonSpec,
    tables: list[Any],
    broken: int,
    reader: Ending | PhasedReader,
    first: int | None = None,
) -> Automaton:
    policy = spec.policy or spec.reasoning
    if policy is None:
        raise KPruneError("got no policy, expected one for the answer, the reasoning, or both")
    token_class, class_next, class_fallback = map(torch.from_numpy, tables)
    return Automaton(
        *(policy, token_class, class_next, class_fallback, broken, reader, first),
        reasoning=spec.reasoning if spec.tokens else None,
    )


def _read_ending(arrays: Arrays, part: str, spellings: TokenSpellings) -> Ending:
    table, alive, numbers = (arrays[f"{part}_{name}"] for name in _ENDING)
    dtypes = [array.dtype for array in (table, alive, numbers)]
    _check(lambda: dtypes == [np.dtype(dtype) for dtype in _ENDING.values()])
    _check(lambda: table.ndim == 2 and table.shape[1] == 256 and alive.ndim == 1)
    # The last row of the table is no state. A table may have fewer states than its automaton.
    _check(lambda: 1 < len(table) <= len(alive) + 1 and _in_range(table, -1, len(table) - 1))
    _check(lambda: numbers.shape == (2,) and _in_range(numbers, _NONE, len(alive)))
    broken, escaped = map(int, numbers)
    _check(lambda: broken >= 0)
    return Ending(spellings, table, broken, alive, None if escaped == _NONE else escaped)


def _are_tables(tables: list[Any], num_rows: int) -> bool:
    """May these be indexed with each other, as the guard does on a GPU without a check?"""
    token_class, class_next, class_fallback = tables
    if token_class.shape != (num_rows,) or class_next.ndim != 2 or not class_next.size:
        return False
    num_states, num_classes = class_next.shape
    return (
        class_fallback.shape == (num_classes,)
        and _in_range(token_class, 0, num_classes)
        and _in_range(class_next, -1, num_states)
        and _in_range(class_fallback, 0, num_states)
    )


def _in_range(numbers: Any, least: int, end: int) -> bool:
    return not numbers.size or (int(numbers.min()) >= least and int(numbers.max()) < end)


def _check(holds: Callable[[], bool]) -> None:
    if not holds():
        raise ValueError("its arrays do not belong together")
