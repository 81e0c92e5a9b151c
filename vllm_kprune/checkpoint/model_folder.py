"""Find a model's folder, and read its configuration and the names of its weight files.

Nothing in a folder is executed: pickled weights are refused, and code is ignored.
"""

from pathlib import Path

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.bounded import Limits, read_object

__all__ = [
    "CONFIG_FILES",
    "INDEX",
    "INDEX_NAME",
    "has_weights",
    "resolve_model",
    "unindexed_weight_files",
    "weight_files",
]

INDEX_NAME = "model.safetensors.index.json"
# The largest that are published name 150,000 tensors in 13 MB.
INDEX = Limits(bytes=64 << 20, values=1_000_000)
# The files of a base model that an overlay is made from. All others, code above all, are ignored.
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
_LONGEST_NAME = 200
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def resolve_model(model: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of `model`: a path, or a hub id whose snapshot is found or downloaded.

    Without `weights` only the other files are downloaded. Raises `KPruneError` if the folder does
    not exist or the hub does not provide the model.
    """
    folder = Path(model).expanduser()
    # A folder comes first, even if its relative path, such as org/model, is a hub id as well.
    if folder.is_dir():
        return folder
    model = str(model)
    # A hub id is owner/name; a mistyped path must not become a question to the hub.
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
            f"{model} is neither a folder nor a model that the hub provides "
            f"({type(error).__name__}: {reason}); for a gated model, accept its terms and set "
            "HF_TOKEN"
        ) from None


def has_weights(folder: Path) -> bool:
    """Does a folder hold weights in any format, or an index of weights?"""
    patterns = (INDEX_NAME, "*.safetensors", *_PICKLED)
    return any(path.is_file() for pattern in patterns for path in folder.glob(pattern))


def _file_name(name: object, index: Path) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        raise KPruneError(f"{index} names the file {shown(name)}; expected that of a weight file")
    return name


def unindexed_weight_files(folder: Path) -> list[str]:
    """The names of what loaders take for weights where no index names them, sorted.

    Hidden files are none, for vLLM as well; `heal` keeps its state in some.
    """
    return sorted(path.name for path in folder.glob("[!.]*.safetensors"))


def weight_files(folder: Path) -> tuple[str, ...]:
    """Names of a folder's safetensors files.

    Raises `KPruneError` if there are none, if they are pickled, or if one is missing.
    """
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map = read_object(index, INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise KPruneError(f"{index}: no 'weight_map'")
        # Only shards that the index names: a folder may hold other safetensors files besides.
        names = sorted({_file_name(name, index) for name in weight_map.values()})
    else:
        names = unindexed_weight_files(folder)
    for name in names:
        # An index is input from outside: a name must not lead out of the folder.
        if Path(name).name != name or not (folder / name).is_file():
            raise KPruneError(f"{folder} lacks the weight file {name} that its index names")
    if names:
        return tuple(names)
    pickled = [path.name for pattern in _PICKLED for path in folder.glob(pattern)]
    if pickled:
        raise KPruneError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when they are "
            "read; save them as safetensors first"
        )
    raise KPruneError(f"{folder} holds no *.safetensors weights")
