"""Open a base model: check it before any long work, and describe its vocabulary.

A tokenizer can be pruned without a model: its folder has no weights, and so no rows. Weights are
not read, only their headers.

Three functions open a folder. `open_base` opens exactly what it is given. `open_original` and
`open_original_tokenizer` also accept a folder that kprune made, and open what it was made from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from vllm_kprune.checkpoint.families import (
    Family,
    find_family,
    implied_ids,
    with_implied_ids,
)
from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.model_folder import (
    CONFIG_FILES,
    INDEX_NAME,
    has_weights,
    resolve_model,
    weight_files,
)
from vllm_kprune.checkpoint.shards import StoredTensor, read_shard
from vllm_kprune.checkpoint.vocabulary_tensors import check_rows, check_vocabulary
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import BytesDone
from vllm_kprune.storage.bounded import MODEL_FILE, read_object
from vllm_kprune.storage.digest import FileDigest, digest_file, remembered_digest
from vllm_kprune.storage.links import refuse_foreign_link
from vllm_kprune.tokenizer.bpe import BpeTokenizer, read_tokenizer

__all__ = [
    "BaseModel",
    "TokenizerFolder",
    "open_base",
    "open_original",
    "open_original_tokenizer",
]

_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TokenizerFolder:
    """A checked folder with a tokenizer and its configuration files, of any model.

    `reference` is the model as the user named it: a folder or a hub id.
    """

    reference: str
    revision: str | None
    folder: Path
    tokenizer: BpeTokenizer

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that affects what is built from the folder."""
        configs = (self.folder / name for name in CONFIG_FILES)
        return tuple(path for path in configs if path.is_file())

    def digests(
        self, advance: BytesDone | None = None, memory: Path | None = None
    ) -> dict[str, FileDigest]:
        """Name -> size, time and SHA-256 of each of `files`.

        Reads them all, weights included; with a folder `memory`, only those that are not remembered
        there.
        """
        if memory is None:
            return {path.name: digest_file(path, advance) for path in self.files}
        return {path.name: remembered_digest(path, memory, advance) for path in self.files}

    def read_config(self, name: str) -> dict[str, Any]:
        """A configuration file; config.json with the token ids that it leaves to defaults."""
        value = read_object(self.folder / name, MODEL_FILE)
        if name == "config.json":
            return with_implied_ids(value, implied_ids(value), self.tokenizer.tokens)
        return value

    def fit_config(self, config: dict[str, Any], kept_ids: Sequence[int]) -> None:
        """Set the number of rows in a config.json that is pruned to `kept_ids`.

        Only where it already has one: without weights, the number of rows is known from nowhere
        else.
        """
        # The family need not be known here, so both places of a text model are tried.
        for part in (config, config.get("text_config")):
            if isinstance(part, dict) and isinstance(rows := part.get("vocab_size"), int):
                # Not len(kept_ids): a token at or above `rows` has no row. In a text-only Gemma-3
                # that is the image token, id 262,144 of 262,144 rows.
                part["vocab_size"] = sum(i < rows for i in kept_ids)


@dataclass(frozen=True)
class BaseModel(TokenizerFolder):
    """A checked model folder: configuration, tokenizer, and the headers of its tensors by name."""

    config: Mapping[str, Any]
    family: Family
    tensors: Mapping[str, StoredTensor]
    shards: tuple[str, ...]

    @property
    def vocabulary_tensors(self) -> tuple[StoredTensor, ...]:
        """All tensors with a row for each token, which are cut: [rows, hidden]."""
        return (*self.embedding_and_head, *self.copies)

    @property
    def embedding_and_head(self) -> tuple[StoredTensor, ...]:
        """The embedding, and the LM head if the checkpoint stores one."""
        names = (self.family.embedding, self.family.head)
        return tuple(self.tensors[name] for name in names if name in self.tensors)

    @property
    def copies(self) -> tuple[StoredTensor, ...]:
        """Further embeddings and heads, those of MTP layers, which a plain decode does not read."""
        return tuple(self.tensors[name] for name in self.family.copies_in(self.tensors))

    @property
    def dtype(self) -> str | None:
        """Data type of the weights as transformers names it ("bfloat16"); None for rare ones."""
        return _DTYPE_NAMES.get(self.vocabulary_tensors[0].dtype)

    @property
    def rows(self) -> int:
        """Rows of the embedding. Some models have more rows than tokens, some have fewer."""
        return self.vocabulary_tensors[0].shape[0]

    @property
    def tied(self) -> bool:
        """Do embedding and LM head share their weights?

        They can even if the checkpoint stores the head as well: vLLM follows the configuration.
        """
        if self.family.head not in self.tensors:
            return True
        parts = (self.family.text(self.config), self.config)
        # In a multimodal model both parts may say it; the text model's own word counts.
        ties = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
        return bool(ties[0]) if ties else self.family.ties_by_default

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that affects an overlay, weights included."""
        index = self.folder / INDEX_NAME
        shards = (self.folder / name for name in self.shards)
        return (*super().files, *([index] if index.is_file() else []), *shards)

    def fit_config(self, config: dict[str, Any], kept_ids: Sequence[int]) -> None:
        """Set the number of rows that `kept_ids` have, and the data type, in a config.json."""
        text = config[self.family.text_config] if self.family.text_config else config
        if self.dtype and "dtype" not in text and "torch_dtype" not in text:
            text["dtype"] = self.dtype  # vLLM would look it up in the weights, which are not here
        text["vocab_size"] = sum(i < self.rows for i in kept_ids)


_Folder = TypeVar("_Folder", bound=TokenizerFolder)


def open_base(model: str | Path, revision: str | None = None) -> BaseModel:
    """Find and check a model with weights: exactly this folder or hub id.

    Every reason to refuse a model is found here, before the long work. Raises `KPruneError`.
    """
    folder = resolve_model(model, revision)
    _refuse_links(folder)
    if not (folder / "config.json").is_file():
        raise KPruneError(f"{folder} has no config.json, so it is not a model folder")
    config = read_object(folder / "config.json", MODEL_FILE)
    family = find_family(config, str(folder / "config.json"))
    shards = weight_files(folder)
    tensors = {t.name: t for shard in shards for t in read_shard(folder / shard).tensors}
    if family.text_config and not isinstance(config.get(family.text_config), dict):
        raise KPruneError(
            f"{folder / 'config.json'}: no '{family.text_config}', which {family.architecture} has"
        )
    family = family.spelled_in(tensors)
    check_vocabulary(tensors, family, folder)
    tokenizer = read_tokenizer(folder)
    check_rows(tensors[family.embedding], tokenizer, folder)
    return BaseModel(str(model), revision, folder, tokenizer, config, family, tensors, shards)


def open_original(model: str | Path, revision: str | None = None) -> BaseModel:
    """The original model with its weights. For an overlay, that is the base that it prunes."""
    return _follow(model, revision, open_base)


def open_original_tokenizer(
    model: str | Path, revision: str | None = None, *, weights_if_any: bool = False
) -> TokenizerFolder:
    """The original tokenizer. For a folder that kprune made, that is the one that it prunes.

    Weights are neither needed nor looked at. With `weights_if_any`, a model that has weights is
    opened as a `BaseModel`.
    """
    folder = Path(model).expanduser()
    if weights_if_any and _has_weights(folder):
        return open_original(model, revision)
    return _follow(model, revision, _open_tokenizer_folder)


def _has_weights(folder: Path) -> bool:
    if is_overlay(folder):
        return not load_manifest(folder).tokenizer_only
    return not folder.is_dir() or has_weights(folder)  # a model on the hub has weights


def _open_tokenizer_folder(model: str | Path, revision: str | None) -> TokenizerFolder:
    folder = resolve_model(model, revision, weights=False)
    _refuse_links(folder)
    return TokenizerFolder(str(model), revision, folder, read_tokenizer(folder))


def _refuse_links(folder: Path) -> None:
    """Weights may be linked from anywhere: nothing but tensors is read of them."""
    for name in (*CONFIG_FILES, INDEX_NAME):
        refuse_foreign_link(folder / name)


def _follow(
    model: str | Path,
    revision: str | None,
    open_folder: Callable[[str | Path, str | None], _Folder],
) -> _Folder:
    folder = Path(model).expanduser()
    if not is_overlay(folder):
        return open_folder(model, revision)
    manifest = load_manifest(folder)
    # A recorded folder, so the hub is not asked for a revision. What the user named at the first
    # build is put back, so that a build from an overlay records the same origin.
    base = open_folder(manifest.check_base(), None)
    return replace(base, reference=manifest.base.reference, revision=manifest.base.revision)
