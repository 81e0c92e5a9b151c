"""The text of a training: windows of token ids to train on, and held-out windows to judge by.

The last part of each file is held out, so it is other documents than those trained on; or a file of
its own is. Windows of different files take turns. Which window is next depends only on the seed and
the number of windows before it, so a run that goes on needs no other state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.arrays import Integers
from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.options import HealOptions
from vllm_kprune.profile import nearest_language
from vllm_kprune.progress import Tell
from vllm_kprune.sparsify.calibration import (
    SHORTEST_LINE,
    CalibrationFile,
    identified_languages,
    parse_calibration,
    text_blocks,
)
from vllm_kprune.storage.digest import sha256_file

__all__ = ["HealText", "parse_texts", "read_heal_text"]

# Small, so that the held-out part of a text begins close to where it should; a held-out document is
# several of them, so that it fills windows.
_BLOCK_CHARACTERS = 1 << 10
_BLOCKS_TOGETHER = 4
# More is never reached by a short training, and its ids would fill the memory.
_MOST_TOKENS = 8_000_000
# Held-out windows of a language, and the largest share of a file that they may take.
_HELD_OUT_WINDOWS = 8
_HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class HealText:
    """Windows [number, length] of each file; held-out documents by language; notes to record.

    A text whose language was not named goes by the name of its file.
    """

    windows: tuple[Integers, ...]
    held_out: Mapping[str, tuple[str, ...]]
    seed: int
    notes: tuple[dict[str, Any], ...]
    # File -> the epoch that it is in, and the order of its windows there.
    _orders: dict[int, tuple[int, Integers]] = field(default_factory=dict)

    def window(self, number: int) -> Integers:
        """The ids of a window of the training, by how many were before it."""
        file = number % len(self.windows)
        windows = self.windows[file]
        epoch, place = divmod(number // len(self.windows), len(windows))
        if self._orders.get(file, (-1, None))[0] != epoch:
            random = np.random.default_rng((self.seed, file, epoch))
            self._orders[file] = epoch, random.permutation(len(windows))
        ids: Integers = windows[int(self._orders[file][1][place])]
        return ids


@dataclass(frozen=True)
class _Piece:
    """A block of a text, and its ids."""

    text: str
    ids: list[int]


def parse_texts(options: HealOptions) -> tuple[tuple[CalibrationFile, ...], ...]:
    """The files of `--text` and of `--held-out`; a mistake in one is a `KPruneError`."""
    return (
        parse_calibration(options.text, "--text"),
        parse_calibration(options.held_out, "--held-out"),
    )


def read_heal_text(options: HealOptions, encoder: Tokenizer, tell: Tell) -> HealText:
    """Read all files, check their languages, and cut them into windows.

    Raises `KPruneError` for a file that is empty or too short, and for a language that the options
    name but no text has.
    """
    texts, others = parse_texts(options)
    begin = encoder.encode("").ids
    width = options.length - len(begin)
    given = {_name(file) for file in others}
    train: list[Integers] = []
    held: dict[str, list[list[_Piece]]] = {}
    notes = []
    for file in texts:
        pieces, note = _read(file, "text", encoder, tell)
        kept = [] if _name(file) in given else _split_off(pieces, width)
        if kept:
            held.setdefault(_name(file), []).append(kept)
        windows = _windows([i for piece in pieces for i in piece.ids], width, begin)
        if not len(windows):
            raise _too_short(file.path, pieces + kept, width)
        train.append(windows)
        notes.append({**note, "windows": len(windows), "held_out": False})
    for file in others:
        pieces, note = _read(file, "held-out", encoder, tell)
        held.setdefault(_name(file), []).append(pieces)
        notes.append({**note, "held_out": True})
    held_out = {name: _spread(parts, width) for name, parts in held.items()}
    _check_names(options, list(held_out))
    return HealText(tuple(train), held_out, options.seed, tuple(notes))


def _name(file: CalibrationFile) -> str:
    return file.language or file.path.name


def _read(
    file: CalibrationFile, what: str, encoder: Tokenizer, tell: Tell
) -> tuple[list[_Piece], dict[str, Any]]:
    """The pieces of a file, and what is recorded of it."""
    pieces: list[_Piece] = []
    lines: list[str] = []
    tokens = 0
    for block in text_blocks(file.path, _BLOCK_CHARACTERS):
        lines += [line for line in block.splitlines() if len(line) >= SHORTEST_LINE]
        ids = encoder.encode(block, add_special_tokens=False).ids
        pieces.append(_Piece(block, ids))
        tokens += len(ids)
        if tokens > _MOST_TOKENS:
            tell(f"{what} {file.path}: only its first {tokens:,} tokens are used")
            break
    if not any(piece.text.strip() for piece in pieces):
        raise KPruneError(f"{what} {file.path} has no text")
    note: dict[str, Any] = {"file": file.path.name, "sha256": sha256_file(file.path)}
    note |= {"language": file.language, "tokens": tokens}
    if file.language:
        named = f"{what} {file.path}"
        note["identified"] = identified_languages(named, file.language, lines, tell)
    return pieces, note


def _split_off(pieces: list[_Piece], width: int) -> list[_Piece]:
    """Take the last pieces of a text away, for the held-out windows; give them."""
    wanted = _HELD_OUT_WINDOWS * width
    most = _HELD_OUT_SHARE * sum(len(piece.ids) for piece in pieces)
    taken: list[_Piece] = []
    count = 0
    while len(pieces) > 1 and count < wanted and count + len(pieces[-1].ids) <= most:
        taken.insert(0, pieces.pop())
        count += len(taken[0].ids)
    return taken


def _windows(ids: list[int], width: int, begin: list[int]) -> Integers:
    """Windows [number, length] without overlap, each with the ids that a text begins with."""
    number = len(ids) // width
    body = np.array(ids[: number * width], np.int64).reshape(number, width)
    first = np.tile(np.array(begin, np.int64), (number, 1))
    return np.concatenate([first, body], axis=1)


def _spread(parts: list[list[_Piece]], width: int) -> tuple[str, ...]:
    """Documents from all files of a name, spread evenly over each, for about so many windows."""
    share = max(1, _HELD_OUT_WINDOWS // len(parts)) * width
    chosen: list[str] = []
    for pieces in parts:
        groups = [pieces[i : i + _BLOCKS_TOGETHER] for i in range(0, len(pieces), _BLOCKS_TOGETHER)]
        total = sum(len(piece.ids) for piece in pieces)
        kept = groups[:: max(1, round(total / share))]
        chosen += ["".join(piece.text for piece in group) for group in kept]
    return tuple(text for text in chosen if text.strip())


def _too_short(path: Path, pieces: Sequence[_Piece], width: int) -> KPruneError:
    tokens = sum(len(piece.ids) for piece in pieces)
    return KPruneError(
        f"text {path} has {tokens:,} tokens, but a window and the held-out part need more than "
        f"{width:,}; give more text, or lower --length"
    )


def _check_names(options: HealOptions, names: Sequence[str]) -> None:
    """Raise `KPruneError` if a language that an option names has no held-out text."""
    if not names:
        raise KPruneError(
            "no text is long enough to hold a part of it out; give more, or --held-out FILE"
        )
    for option, asked in (("--languages", options.languages), ("--keep-within", options.limits)):
        for name in asked:
            if name not in names:
                hint = nearest_language(name, names)
                raise KPruneError(
                    f"{option} {name}: no held-out text has this name; give --held-out "
                    f"{name}=FILE, or longer --text ({hint})"
                )
