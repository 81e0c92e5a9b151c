"""The text of a training: windows of token ids to train on, and held-out windows to judge by.

The last part of each file is held out, so it is other documents than those trained on; or a file of
its own is. Windows of different files take turns. Which window is next depends only on the seed and
the number of windows before it, so a run that goes on needs no other state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.arrays import Integers
from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.options import HealOptions
from vllm_kprune.profile import nearest_language
from vllm_kprune.sparsify.calibration import (
    SHORTEST_LINE,
    CalibrationFile,
    identified_languages,
    parse_calibration,
    text_blocks,
)
from vllm_kprune.storage.digest import sha256_file

__all__ = ["HealText", "HeldOut", "parse_texts", "read_heal_text"]

# Small enough that the held-out part begins close to where it should.
_BLOCK_CHARACTERS = 1 << 12
# More is never reached by a short training, and its ids would fill the memory.
_MOST_TOKENS = 8_000_000
# Held-out windows of a language, and the largest share of a file that they may take.
_HELD_OUT_WINDOWS = 8
_HELD_OUT_SHARE = 0.2

Tell = Callable[[str], None]


@dataclass(frozen=True)
class HeldOut:
    """Text to judge by: windows of ids that begin as a text does, and their characters in all.

    The first `begin` ids of a window are not part of the text and are not predicted.
    """

    name: str
    windows: tuple[Integers, ...]
    characters: int
    begin: int


@dataclass(frozen=True)
class HealText:
    """Windows [number, length] of each file, held-out text of each language, notes for the record."""

    windows: tuple[Integers, ...]
    held_out: tuple[HeldOut, ...]
    seed: int
    notes: tuple[dict[str, Any], ...]
    _orders: dict[tuple[int, int], Integers] = field(default_factory=dict)

    def window(self, number: int) -> Integers:
        """The ids of a window of the training, by how many were before it."""
        file = number % len(self.windows)
        windows = self.windows[file]
        epoch, place = divmod(number // len(self.windows), len(windows))
        if (file, epoch) not in self._orders:
            self._orders.clear() if len(self._orders) > len(self.windows) else None
            random = np.random.default_rng((self.seed, file, epoch))
            self._orders[file, epoch] = random.permutation(len(windows))
        return windows[int(self._orders[file, epoch][place])]


@dataclass(frozen=True)
class _Piece:
    """A block of a text: its characters and its ids."""

    characters: int
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
    held: dict[str, list[tuple[list[_Piece], str]]] = {}
    notes = []
    for file in texts:
        pieces, note = _read(file, "text", encoder, tell)
        kept = [] if _name(file) in given else _split_off(pieces, width)
        if kept:
            held.setdefault(_name(file), []).append((kept, str(file.path)))
        windows = _windows([i for piece in pieces for i in piece.ids], width, begin)
        if not len(windows):
            raise _too_short(file.path, pieces + kept, width)
        train.append(windows)
        notes.append({**note, "windows": len(windows), "held_out": False})
    for file in others:
        pieces, note = _read(file, "held-out", encoder, tell)
        held.setdefault(_name(file), []).append((pieces, str(file.path)))
        notes.append({**note, "held_out": True})
    held_out = tuple(_held_out(name, parts, width, begin) for name, parts in held.items())
    text = HealText(tuple(train), held_out, options.seed, tuple(notes))
    _check_names(options, [one.name for one in held_out])
    return text


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
        pieces.append(_Piece(len(block), ids))
        tokens += len(ids)
        if tokens > _MOST_TOKENS:
            tell(f"{what} {file.path}: only its first {tokens:,} tokens are used")
            break
    if not any(piece.ids for piece in pieces):
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


def _held_out(
    name: str, parts: list[tuple[list[_Piece], str]], width: int, begin: list[int]
) -> HeldOut:
    """Windows that are spread evenly over the pieces of all files of a name."""
    windows: list[Integers] = []
    characters = 0
    share = max(1, _HELD_OUT_WINDOWS // len(parts))
    for pieces, _ in parts:
        chosen = np.unique(np.linspace(0, len(pieces) - 1, share).round().astype(int))
        wanted = share * width
        # Whole pieces, so that characters and tokens belong together.
        for piece in (pieces[int(place)] for place in chosen):
            if not piece.ids or wanted <= 0:
                continue
            characters += piece.characters
            wanted -= len(piece.ids)
            for first in range(0, len(piece.ids), width):
                ids = [*begin, *piece.ids[first : first + width]]
                windows.append(np.array(ids, np.int64))
    return HeldOut(name, tuple(windows), characters, len(begin))


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
