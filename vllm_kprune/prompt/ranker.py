"""How much attention each token of a prompt receives in the first layer of a small model.

LitePruner (section 2, algorithm 1) ranks tokens by it. The numbers are those of the whole model
(tests compare them, family by family) at a fraction of the cost: only the embedding, one norm and
two projections are loaded; equal tokens, which differ only by position in the first layer, are
projected once; and there is never a whole [n, n] matrix.
A deeper layer, for analyses only, needs the layers below it: see `hidden_states`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.attention import (
    LOG2_E,
    AttentionMask,
    Projections,
    received,
    rotary_angles,
)
from vllm_kprune.prompt.hidden_states import HiddenStates
from vllm_kprune.prompt.layer_config import (
    PRECISIONS,
    LayerConfig,
    Precision,
    parse_layer_config,
)
from vllm_kprune.prompt.layer_weights import LayerWeights, load_weights
from vllm_kprune.prompt.products import check_int8
from vllm_kprune.prompt.tokens import Cancelled, IsCancelled
from vllm_kprune.storage.bounded import MODEL_FILE, read_object
from vllm_kprune.tokenizer.encoder import load_encoder

__all__ = ["Cancelled", "FirstLayer"]

_ROWS_PER_BLOCK = 512


class FirstLayer:
    """One attention layer of a model, and the model's tokenizer.

    Nothing changes after loading, so several threads may use one object at once.
    """

    def __init__(
        self,
        folder: Path,
        config: LayerConfig,
        weights: LayerWeights,
        precision: Precision = "float32",
        below: HiddenStates | None = None,
    ) -> None:
        self._folder = folder
        self.config = config
        self._weights = weights
        self._precision = precision
        self._below = below

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, layer: int = 0, precision: Precision = "float32"
    ) -> FirstLayer:
        """Load the layer from a model's folder or from one that `kprune build` made.

        `precision` is used for products of queries and keys: float32 (exact), or int8, which takes
        a fraction of the time on prompts of 512 tokens or more. Everything else is float32. For a
        `layer` above 0, the weights of the layers below it are read too.

        Raises:
            KPruneError: an unknown family, a quantised or missing tensor, a damaged file, or a
                processor without exact int8 products.
        """
        if precision not in PRECISIONS:
            raise KPruneError(f"a ranker computes in {' or '.join(PRECISIONS)}, not in {precision}")
        if precision == "int8":
            check_int8()
        folder = resolve_model(str(folder))
        config_path = folder / "config.json"
        if not config_path.is_file():
            raise KPruneError(f"{folder} has no config.json; name a model's folder")
        config = parse_layer_config(read_object(config_path, MODEL_FILE), layer, config_path)
        weights = load_weights(folder, config)
        below = HiddenStates(folder, layer) if layer else None
        return cls(folder, config, weights, precision, below)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer. Read on first use, because a pruner has one already."""
        return load_encoder(self._folder)

    @property
    def num_heads(self) -> int:
        """The number of query heads."""
        return self.config.num_heads

    @property
    def rows(self) -> int:
        """The number of ids with an embedding. The tokenizer may have more, for images."""
        return self._weights.rows

    @torch.inference_mode()
    def received_attention(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        causal: bool = False,
        heads: Sequence[int] | None = None,
        window: int | None = None,
        queries: Sequence[range | None] | None = None,
        block: int | None = None,
        cancelled: IsCancelled | None = None,
    ) -> list[NDArray[np.float32]]:
        """The attention that each token receives, for each prompt: float32 [n].

        It is the mean of the softmax over heads and queries. `heads` are counted from 0; None is
        all. With a `window`, a token sees only tokens less than `window` away. `queries` has, for
        each prompt, the range of tokens that attend, such as a question at the end; None is all.
        `block` queries of a head are computed at once; None is 256, or 64 to 128 with a window.

        Raises:
            Cancelled: `cancelled`, which is asked between blocks, was true.
            KPruneError: a token has no embedding, or an option is out of range.
        """
        if block is None:
            # A block looks at the windows of all its queries together: half of 256 queries with a
            # window of 256 is a sixth less work, and less than 64 make slow products.
            block = 256 if window is None else min(128, max(64, window))
        chosen = self._check(heads, window, block)
        asking = queries if queries is not None else [None] * len(prompts)
        return [
            received(
                projected,
                chosen,
                _checked_range(asks, len(projected.places)),
                mask=AttentionMask(causal, window),
                softcap=self.config.softcap,
                block=block,
                precision=self._precision,
                cancelled=cancelled,
            ).numpy()
            for projected, asks in zip(self._project(prompts, causal), asking, strict=True)
        ]

    def _check(self, heads: Sequence[int] | None, window: int | None, block: int) -> list[int]:
        chosen = list(range(self.num_heads)) if heads is None else list(heads)
        if not chosen or not set(chosen) <= set(range(self.num_heads)):
            raise KPruneError(f"heads are {chosen}; this ranker has 0 to {self.num_heads - 1}")
        if window is not None and window < 1:
            raise KPruneError(f"window is {window}; expected at least 1 token")
        if block < 1:
            raise KPruneError(f"block is {block}; expected at least 1 query")
        return chosen

    def _project(self, prompts: Sequence[Sequence[int]], causal: bool) -> Iterator[Projections]:
        """Queries and keys of each prompt before rotation.

        In the first layer, the distinct tokens of all prompts are projected together, once.
        """
        ids = [torch.as_tensor(prompt, dtype=torch.long) for prompt in prompts]
        for prompt in ids:
            self._check_ids(prompt)
        if self._below is not None:
            for prompt in ids:
                # A deeper layer's input depends on positions: each token has a row of its own.
                states = self._below(self._base_rows(prompt), causal)
                yield self._projections(*self._heads_of(states), torch.arange(len(prompt)))
            return
        if not ids:
            return
        # `places` has the row of each token in `distinct`, for all prompts one after the other.
        distinct, places = torch.unique(torch.cat(ids), return_inverse=True)
        table = self._heads_of_tokens(self._base_rows(distinct))
        for part in places.split([len(prompt) for prompt in ids]):
            yield self._projections(*table, part)

    def _projections(
        self, queries: torch.Tensor, keys: torch.Tensor, places: torch.Tensor
    ) -> Projections:
        frequencies = self._weights.frequencies
        angles = None if frequencies is None else rotary_angles(frequencies, len(places))
        return Projections(queries, keys, places, angles)

    def _check_ids(self, ids: torch.Tensor) -> None:
        # Checked here, because a negative id would silently take a row from the end.
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.rows:
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            raise KPruneError(
                f"token {bad} has no embedding in the ranker, which has {self.rows} rows; encode "
                "with the ranker's own tokenizer, and leave image tokens out"
            )

    def _base_rows(self, ids: torch.Tensor) -> torch.Tensor:
        kept = self._weights.kept_rows
        # An id of a pruned tokenizer is not a row of the base's embedding; `kept` maps it.
        return ids if kept is None else kept[ids]

    def _heads_of_tokens(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys of embedding rows, block by block, so that few rows are in memory."""
        config = self.config
        queries = torch.empty(config.num_heads, len(rows), config.head_dim)
        keys = torch.empty(config.num_kv_heads, len(rows), config.head_dim)
        for start in range(0, len(rows), _ROWS_PER_BLOCK):
            part = slice(start, start + _ROWS_PER_BLOCK)
            # Indexing copies these rows, so the scaling below does not write into the mapped file.
            states = self._weights.embedding[rows[part]].float()
            found = self._heads_of(states.mul_(config.embedding_scale))
            queries[:, part], keys[:, part] = found
        return queries, keys

    def _heads_of(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled queries, and keys, [heads, rows, dim], of the layer's input [rows, hidden]."""
        weights, config = self._weights, self.config
        normed = _normalised(states, weights.norm, config)
        queries = torch.nn.functional.linear(normed, weights.queries)
        keys = torch.nn.functional.linear(normed, weights.keys)
        if weights.query_bias is not None and weights.key_bias is not None:
            queries += weights.query_bias
            keys += weights.key_bias
        queries = queries.view(len(states), config.num_heads, config.head_dim)
        keys = keys.view(len(states), config.num_kv_heads, config.head_dim)
        # Each head is normalised by itself, and before rotation.
        if weights.query_norm is not None and weights.key_norm is not None:
            queries = _normalised(queries, weights.query_norm, config)
            keys = _normalised(keys, weights.key_norm, config)
        # After the norm, which would undo a factor. A rotation commutes with it.
        queries *= config.logit_scale * LOG2_E
        return queries.transpose(0, 1), keys.transpose(0, 1)


def _normalised(x: torch.Tensor, weight: torch.Tensor, config: LayerConfig) -> torch.Tensor:
    """The family's norm over the last dimension."""
    if config.norm == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    # There is no bias to add: see `Norm`.
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + config.norm_eps) * weight


def _checked_range(queries: range | None, length: int) -> range:
    if queries is None:
        return range(length)
    if queries.step != 1 or not 0 <= queries.start < queries.stop <= length:
        raise KPruneError(f"queries are {queries}; expected a range within {length} tokens")
    return queries
