"""The teacher: the original model, reduced to the tokens that the student kept.

The student's text is its own tokens. The teacher gets the same tokens by the ids that they have in
the original vocabulary, and its softmax is over the kept tokens. Both follow from gathering the
kept rows of its embedding and LM head: what is left has the student's ids.

So the teacher reads text in the student's tokens, which are more than its own tokenizer would give.
A model that only lost vocabulary begins with just the teacher's predictions (law 4): there,
distillation does not teach the new splits, it keeps the model close to the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_kprune.checkpoint.base import BaseModel
from vllm_kprune.checkpoint.manifest import EXPORT_NAME, is_export, load_manifest
from vllm_kprune.checkpoint.places import find_place
from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.body import ModelBody, open_body
from vllm_kprune.sparsify.record import SPARSITY_NAME
from vllm_kprune.storage.bounded import NOTES, read_object

__all__ = ["Teacher", "find_teacher"]


@dataclass(frozen=True)
class Teacher:
    """A checked model, and its rows in the order of the student's ids; None for the same rows."""

    body: ModelBody
    rows: tuple[int, ...] | None


def find_teacher(student: ModelBody, teacher: str | Path | None, revision: str | None) -> Teacher:
    """The teacher of a student: the model that is named, or what the student was made from.

    Raises `KPruneError` if none is known, or if its tokens are not those of the student.
    """
    folder = student.base.folder
    body = open_body(teacher, revision) if teacher else open_body(_origin(folder))
    rows = student.base.rows
    if body.base.rows == rows and _same_tokens(student.base, body.base, range(rows)):
        return Teacher(body, None)
    if is_export(folder):
        kept = load_manifest(folder, EXPORT_NAME)
        fits = len(kept.kept_rows) == rows and kept.kept_rows[-1] < body.base.rows
        if fits and _same_tokens(student.base, body.base, kept.kept_ids):
            return Teacher(body, kept.kept_rows)
    raise KPruneError(
        f"{body.base.folder} has other tokens than {folder}, so predictions cannot be compared; "
        "give the model that it was made from with --teacher, or use --distillation 0"
    )


def _origin(folder: Path) -> Path:
    """The folder of the model that a pruned one was made from; an export says it best."""
    if is_export(folder):
        base = load_manifest(folder, EXPORT_NAME).base
        found = find_place(base.path, base.contents)
    elif (folder / SPARSITY_NAME).is_file():
        record = read_object(folder / SPARSITY_NAME, NOTES).get("base")
        files = record.get("files") if isinstance(record, dict) else None
        found = find_place("", files) if isinstance(files, dict) else None
    else:
        raise KPruneError(
            f"{folder} does not say what it was made from; name the original with --teacher, or "
            "use --distillation 0"
        )
    if found is None:
        raise KPruneError(
            f"the original of {folder} is not where it was, or was never here; give its folder "
            "with --teacher, or use --distillation 0"
        )
    return found


def _same_tokens(student: BaseModel, teacher: BaseModel, ids: Sequence[int]) -> bool:
    """Is the student's token i the teacher's token ids[i], for every i?"""
    ours, theirs = student.tokenizer.tokens, teacher.tokenizer.tokens
    return all(ours.get(new) == theirs.get(old) for new, old in enumerate(ids))
