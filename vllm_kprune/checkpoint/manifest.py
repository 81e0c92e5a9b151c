"""`kprune.json`: what an overlay was made from, what it keeps, and proof that neither changed.

A tokenizer that was pruned without a model has the same manifest, without family, rows and tensors.

Servers read the manifest, so it is treated as hostile. It is bounded in size and checked field by
field. It is refused if its own fingerprint does not match (it was edited) or the base weights are
not those it was built from. File names in it cannot lead out of their folder.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
)

from vllm_kprune.checkpoint.manifest_form import check_form
from vllm_kprune.checkpoint.model_folder import INDEX_NAME
from vllm_kprune.checkpoint.places import find_place, public_name
from vllm_kprune.checkpoint.unlisted import refuse_added, refuse_added_to_base
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile, parse_profile
from vllm_kprune.progress import BytesDone
from vllm_kprune.storage.bounded import Limits, read_object
from vllm_kprune.storage.digest import FileDigest, canonical_json, digest_text, sha256_file
from vllm_kprune.tokenizer.checks import MOST_TOKENS

__all__ = [
    "EXPORT_NAME",
    "HEAL_NAME",
    "MANIFEST_NAME",
    "SPARSITY_NAME",
    "BaseReference",
    "Manifest",
    "is_export",
    "is_overlay",
    "load_manifest",
]

MANIFEST_NAME = "kprune.json"
# The same content in a standalone checkpoint, where it only records the origin: no server reads it.
EXPORT_NAME = "kprune-export.json"
# What `kprune sparsify` did to the weights, in a standalone checkpoint or a model of the user's.
SPARSITY_NAME = "kprune-sparsity.json"
# The same of `kprune heal`.
HEAL_NAME = "kprune-heal.json"
# A million kept ids take 8 MB.
_LIMITS = Limits(bytes=64 << 20, values=4_000_000)

# No dot at the start, no slash or backslash, no NUL: neither `..` nor a path. 255 characters are
# what file systems allow.
PlainName = Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]{0,254}$")]
TokenId = Annotated[int, Field(ge=0, le=MOST_TOKENS)]


def _checked_profile(value: object) -> Profile:
    if isinstance(value, Profile):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("a profile is a mapping of its options")
    return parse_profile(value)


class _Strict(BaseModel):
    # Strict: neither "1" nor 1.0 nor true is a token id. JSON has no tuples, so fields that are
    # tuples say strict=False; their items stay strict.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BaseReference(_Strict):
    """The model that an overlay prunes: its name as the user gave it, its folder, and its files.

    In an export, `reference` and `path` are its public name (see `places`).
    """

    reference: str
    revision: str | None = None
    path: str
    files: dict[PlainName, FileDigest]

    @property
    def contents(self) -> dict[str, str]:
        """The SHA-256 of each file."""
        return {name: digest.sha256 for name, digest in self.files.items()}


class Evidence(_Strict):
    """A source that tokens were counted in: name, digest of its content, number of tokens."""

    source: str
    digest: str
    tokens: int


class Manifest(_Strict):
    """An overlay's manifest.

    `kept_ids` are ids of the original tokenizer in increasing order; the position of an id is the
    new id. `reasons` has one letter for each of them (`vocabulary.selection.REASONS`). Kept ids at
    or above `original_rows` have no embedding row, before or after. `vocabulary_tensors` are the
    tensors of the base checkpoint whose rows (dimension 0) are gathered; a tokenizer without a
    model has none.
    """

    format: Literal[1] = 1
    kprune_version: str
    family: str = ""
    profile: Annotated[Profile, PlainValidator(_checked_profile), PlainSerializer(asdict)]
    base: BaseReference
    original_tokens: TokenId
    original_rows: TokenId = 0
    kept_ids: Annotated[tuple[TokenId, ...], Field(strict=False, min_length=1)]
    reasons: str
    vocabulary_tensors: Annotated[tuple[str, ...], Field(strict=False)] = ()
    evidence: Annotated[tuple[Evidence, ...], Field(strict=False)] = ()
    files: dict[PlainName, str]
    fingerprint: str = ""

    @property
    def tokenizer_only(self) -> bool:
        """Was only a tokenizer pruned, without a model's weights?"""
        return not self.vocabulary_tensors

    @property
    def kept_rows(self) -> tuple[int, ...]:
        """Rows to gather from each vocabulary tensor: the kept ids that have one."""
        return tuple(i for i in self.kept_ids if i < self.original_rows)

    def sealed(self) -> "Manifest":
        """The same manifest with the fingerprint of its content."""
        return self.model_copy(update={"fingerprint": self._fingerprint()})

    def write(self, folder: Path) -> "Manifest":
        """Write `kprune.json` into `folder`. Returns what was written: this manifest, sealed."""
        sealed = self.sealed()
        text = canonical_json(sealed.model_dump(mode="json"))
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
        return sealed

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Names of the base's weight files, sorted; an export has files of the same names."""
        return tuple(sorted(name for name in self.base.files if name.endswith(".safetensors")))

    def without_place(self) -> "Manifest":
        """The same, with the public name of the base instead of its folder."""
        name = public_name(self.base.reference, Path(self.base.path))
        base = self.base.model_copy(update={"reference": name, "path": name})
        return self.model_copy(update={"base": base})

    @property
    def index_expected(self) -> bool:
        """Does an export have an index? A single `model.safetensors` needs none."""
        return INDEX_NAME in self.base.files or self.weight_files != ("model.safetensors",)

    def check_base(
        self,
        path: Path | None = None,
        option: str = "",
        *,
        whole: bool = False,
        advance: BytesDone | None = None,
    ) -> Path:
        """The folder of the base weights, after checking that no file changed since the build.

        `path` replaces the recorded folder if the base was moved; `option` is how a caller lets the
        user give it ("--base"). With `whole`, every file is read;
        `advance` is called for each block. Raises `KPruneError` if the folder is gone, a file
        differs, or one was added.
        """
        folder = path or find_place(self.base.path, self.base.contents)
        if folder is None or not folder.is_dir():
            remedy = (
                f"give its folder with {option} FOLDER" if option else "name it where it is now"
            )
            raise KPruneError(
                f"the base model is not at {path or self.base.path} any more; {remedy}, or build "
                "the overlay again"
            )
        for name, digest in self.base.files.items():
            file = folder / name
            # Size and time suffice where the time is the recorded one, so a start reads no
            # gigabytes.
            if not file.is_file() or not digest.matches(file, whole=whole, advance=advance):
                what = "changed" if file.is_file() else "is missing"
                raise KPruneError(
                    f"{file} {what} since the overlay was built from it; restore it, "
                    "or build the overlay again"
                )
        refuse_added_to_base(folder, self.base.files, weights=not self.tokenizer_only)
        return folder

    def check_files(self, folder: Path, name: str = MANIFEST_NAME) -> None:
        """Read every file of the overlay or, with the other `name`, of a standalone checkpoint.

        Raises `KPruneError` if one was edited, is missing or was added. Weights are not read.
        """
        of_export = (*self.weight_files, *([INDEX_NAME] if self.index_expected else ()))
        more = (*of_export, SPARSITY_NAME, HEAL_NAME) if name == EXPORT_NAME else ()
        refuse_added(folder, {*self.files, name, *more})
        for name, sha256 in self.files.items():
            file = folder / name
            if not file.is_file() or sha256_file(file) != sha256:
                what = "was edited" if file.is_file() else "is missing"
                raise KPruneError(f"{file} {what} since the overlay was built; build it again")

    # A checksum, not a signature: anybody can compute it for other content. It finds edits; the
    # checks of fields are what keeps hostile content out.
    def _fingerprint(self) -> str:
        # Without where the base lies and when its files were written: the same input has the same
        # fingerprint everywhere. Neither is trusted, since `check_base` looks at the content.
        place = {"reference": True, "revision": True, "path": True}
        times = {name: {"mtime_ns"} for name in self.base.files}
        skipped: dict[str, Any] = {"fingerprint": True, "base": {**place, "files": times}}
        content = self.model_dump(mode="json", exclude=skipped)
        return digest_text(canonical_json(content))

    def _check_consistency(self) -> None:
        ids = self.kept_ids
        if ids[-1] >= max(self.original_tokens, self.original_rows):
            raise ValueError(f"kept id {ids[-1]} is outside the original vocabulary")
        if len(self.reasons) != len(ids):
            raise ValueError(f"{len(self.reasons)} reasons for {len(ids)} kept ids")
        if self.tokenizer_only and (self.family or self.original_rows):
            raise ValueError("a family or rows, but no vocabulary_tensors")
        if self.tokenizer_only and self.weight_files:
            raise ValueError("weight files, but no vocabulary_tensors")


def is_overlay(model: str | Path) -> bool:
    """Is `model` a folder that `kprune build` or `kprune tokenizer` made?"""
    return (Path(model) / MANIFEST_NAME).is_file()


def is_export(model: str | Path) -> bool:
    """Is `model` a standalone checkpoint that `kprune export` made?"""
    return (Path(model) / EXPORT_NAME).is_file()


def load_manifest(folder: Path, name: str = MANIFEST_NAME) -> Manifest:
    """Read and check `folder/kprune.json`. The base weights are not looked at yet."""
    path = folder / name
    try:
        value = read_object(path, _LIMITS)
    except KPruneError as error:
        raise KPruneError(f"{error}; build the overlay again") from None
    try:
        check_form(value, Manifest.model_fields)
        manifest = Manifest.model_validate(value)
        manifest._check_consistency()
    # pydantic's error is a ValueError too, so it must be caught first.
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"])
        reason = " ".join(first["msg"].split())
        raise KPruneError(f"{path}: {where}: {reason}; build the overlay again") from None
    except ValueError as error:
        raise KPruneError(f"{path}: not a manifest: {error}; build the overlay again") from None
    if manifest.fingerprint != manifest._fingerprint():
        raise KPruneError(f"{path} was edited (its fingerprint does not match); build it again")
    return manifest
