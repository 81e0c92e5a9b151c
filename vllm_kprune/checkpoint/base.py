"""Read a base model's folder: find it, check it before anything long, describe its vocabulary.

A tokenizer can be pruned alone: its folder is the same without weights, and without the rows that
these have. Only headers of the weights are read. Nothing is executed: pickled weights and code in
the folder are refused or ignored.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.families import (
    Family,
    find_family,
    implied_ids,
    with_implied_ids,
)
from vllm_kprune.checkpoint.shards import StoredTensor, read_shard
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.digest import FileDigest, digest_file
from vllm_kprune.tokenizer.bpe import BpeTokenizer, read_tokenizer

__all__ = [
    "INDEX_NAME",
    "BaseModel",
    "TokenizerFolder",
    "has_weights",
    "open_base",
    "open_tokenizer_folder",
    "read_json",
    "resolve_model",
    "weight_files",
]

_MAX_JSON_BYTES = 64 << 20
INDEX_NAME = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_PLAIN_DTYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Files of the base that an overlay is made from; all others (code above all) are left alone.
CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "hf_quant_config.json",
    "quantize_config.json",
)


@dataclass(frozen=True)
class TokenizerFolder:
    """A checked folder with a tokenizer and the configuration files beside it, of any model."""

    reference: str
    revision: str | None
    folder: Path
    tokenizer: BpeTokenizer

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that what is built from the folder depends on."""
        configs = (self.folder / name for name in CONFIG_FILES)
        return tuple(path for path in configs if path.is_file())

    def digests(self, advance: Callable[[int], None] | None = None) -> dict[str, FileDigest]:
        """Size, time and SHA-256 of each of its files. Reads them all."""
        return {path.name: digest_file(path, advance) for path in self.files}

    def read_config(self, name: str) -> dict[str, Any]:
        """A configuration file; config.json with the ids that it implies, where these are known."""
        value = read_json(self.folder / name)
        if name == "config.json":
            return with_implied_ids(value, implied_ids(value), self.tokenizer.tokens)
        return value

    def fit_config(self, config: dict[str, Any], kept_ids: Sequence[int]) -> None:
        """Make a config.json that is pruned to `kept_ids` tell the number of rows that they have.

        Only where it tells one: of a model without weights nothing else is known.
        """
        for part in (config, config.get("text_config")):
            if isinstance(part, dict) and isinstance(rows := part.get("vocab_size"), int):
                part["vocab_size"] = sum(i < rows for i in kept_ids)


@dataclass(frozen=True)
class BaseModel(TokenizerFolder):
    """A checked model folder: configuration, tokenizer, and its tensors' headers by name."""

    config: Mapping[str, Any]
    family: Family
    tensors: Mapping[str, StoredTensor]
    shards: tuple[str, ...]

    @property
    def vocabulary_tensors(self) -> tuple[StoredTensor, ...]:
        """Embedding and, where the checkpoint has one of its own, LM head: [rows, hidden]."""
        names = (self.family.embedding, self.family.head)
        return tuple(self.tensors[name] for name in names if name in self.tensors)

    @property
    def dtype(self) -> str | None:
        """Data type of the weights as transformers names it ("bfloat16"), if it is a usual one."""
        return _DTYPE_NAMES.get(self.vocabulary_tensors[0].dtype)

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return self.vocabulary_tensors[0].shape[0]

    @property
    def tied(self) -> bool:
        """Do embedding and LM head share their weights?

        Also when the checkpoint stores a copy of the head: vLLM goes by the configuration.
        """
        if self.family.head not in self.tensors:
            return True
        said = (self.family.text(self.config), self.config)
        ties = [part["tie_word_embeddings"] for part in said if "tie_word_embeddings" in part]
        return bool(ties[0]) if ties else self.family.ties_by_default

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that an overlay depends on."""
        index = self.folder / INDEX_NAME
        shards = (self.folder / name for name in self.shards)
        return (*super().files, *([index] if index.is_file() else []), *shards)

    def fit_config(self, config: dict[str, Any], kept_ids: Sequence[int]) -> None:
        """Write the number of rows that `kept_ids` have, and the data type, into a config.json."""
        text = config[self.family.text_config] if self.family.text_config else config
        if self.dtype and "dtype" not in text and "torch_dtype" not in text:
            text["dtype"] = self.dtype  # vLLM would look it up in the weights
        text["vocab_size"] = sum(i < self.rows for i in kept_ids)


def resolve_model(model: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of `model`: a path, or a hub id whose snapshot is found or downloaded.

    Without `weights` these are not downloaded. Raises `KPruneError` for a folder that does not
    exist and a hub id that cannot be had.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise KPruneError(f"model folder {model} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.jinja", "LICENSE*", "NOTICE*", "*.md"]
    if weights:
        patterns.append("*.safetensors")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KPruneError(
            f"{model} is neither a folder nor a model that the hub gives "
            f"({type(error).__name__}: {reason}); for a gated model accept its terms and set "
            "HF_TOKEN"
        ) from None


def open_base(model: str, revision: str | None = None) -> BaseModel:
    """Find and check a model; every reason to refuse it is found here, before the long part."""
    folder = resolve_model(model, revision)
    if not (folder / "config.json").is_file():
        raise KPruneError(f"{folder} has no config.json: not a model folder")
    config = read_json(folder / "config.json")
    family = find_family(config, str(folder / "config.json"))
    shards = weight_files(folder)
    tensors = {t.name: t for shard in shards for t in read_shard(folder / shard).tensors}
    if family.text_config and not isinstance(config.get(family.text_config), dict):
        raise KPruneError(
            f"{folder / 'config.json'}: no '{family.text_config}', which {family.architecture} has"
        )
    family = family.spelled_in(tensors)
    _check_vocabulary(tensors, family, folder)
    tokenizer = read_tokenizer(folder)
    return BaseModel(model, revision, folder, tokenizer, config, family, tensors, shards)


def open_tokenizer_folder(model: str, revision: str | None = None) -> TokenizerFolder:
    """Find and check a tokenizer; weights are neither needed nor looked at."""
    folder = resolve_model(model, revision, weights=False)
    return TokenizerFolder(model, revision, folder, read_tokenizer(folder))


def has_weights(folder: Path) -> bool:
    """Does a folder hold weights of any format, or the index of some?"""
    patterns = (INDEX_NAME, "*.safetensors", *_PICKLED)
    return any(path.is_file() for pattern in patterns for path in folder.glob(pattern))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, bounded in size."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise KPruneError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except KPruneError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise KPruneError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise KPruneError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of a folder's safetensors files; `KPruneError` if there are none, or pickled ones."""
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise KPruneError(f"{index}: no 'weight_map'")
        names = sorted({str(name) for name in weight_map.values()})
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise KPruneError(f"{folder} lacks the weight file {name} that its index names")
    if names:
        return tuple(names)
    pickled = [path.name for pattern in _PICKLED for path in folder.glob(pattern)]
    if pickled:
        raise KPruneError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when read; "
            "save them as safetensors first"
        )
    raise KPruneError(f"{folder} holds no *.safetensors weights")


def _check_vocabulary(tensors: Mapping[str, StoredTensor], family: Family, folder: Path) -> None:
    for name in (family.embedding, family.head):
        _refuse_companions(name, tensors, folder)
    if family.embedding not in tensors:
        named = " or ".join((family.embedding, *(embedding for embedding, _ in family.spellings)))
        raise KPruneError(f"{folder}: no tensor {named}, the embedding of its family")
    embedding = tensors[family.embedding]
    for info in (embedding, tensors.get(family.head, embedding)):
        if len(info.shape) != 2 or info.dtype not in _PLAIN_DTYPES:
            raise KPruneError(
                f"{folder}: {info.name} is {info.dtype}{list(info.shape)}; expected a plain "
                "[rows, hidden] tensor"
            )
        if info.shape[0] != embedding.shape[0]:
            raise KPruneError(
                f"{folder}: {info.name} has {info.shape[0]} rows, {embedding.name} has "
                f"{embedding.shape[0]}"
            )


def _refuse_companions(name: str, tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """Refuse what a quantised layer has beside its weight: scales, zeros, packed numbers.

    Every format has other names for them, but all are inside the layer, as is a bias.
    """
    stem = name.removesuffix("weight")
    for other in sorted(tensors):
        if other == name or not other.startswith(stem):
            continue
        if other == stem + "bias":
            raise KPruneError(f"{folder}: {other}: kprune does not prune a bias of the vocabulary")
        raise KPruneError(
            f"{folder}: {name} is quantised ({other}), so its rows cannot be gathered; "
            "use a checkpoint whose embedding and head are plain"
        )
