"""What a pruned head computes: logits of the kept rows, put in the places of their token ids.

The rows of all profiles are in one order, and the rows of a profile are among the first of them, up
to its end. So a batch is computed up to the largest end that one of its requests needs, from one
copy of the rows. Each request then sees the tokens of its own profile only: its log-probabilities,
too, are the same whoever is in the batch with it.

The layer that a model passes to vLLM's `LogitsProcessor` leads to its `KeptHead`. So a drafter that
shares the target's head (EAGLE, MTP) proposes kept tokens, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vllm_kprune.checkpoint.head import HeadRows
from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.head.expand import expand, expand_each, inverse_order
from vllm_kprune.serving.head.shards import Shards
from vllm_kprune.serving.head.state import take_profiles

__all__ = ["KeptHead"]


class KeptHead:
    """The kept rows as a layer of vLLM's, and how its logits become those of the vocabulary.

    `layer` has the `rows`, dealt out as `shards` say. `whole` is the head of a server that also has
    a profile of all tokens, and whose head is the embedding: the layer lacks that profile's rows.
    """

    def __init__(
        self, layer: Any, rows: HeadRows, shards: Shards, vocabulary: int, whole: Any = None
    ) -> None:
        self.layer, self.rows, self._shards, self._vocabulary = layer, rows, shards, vocabulary
        self._whole = whole
        device = layer.weight.device
        # The token id of each row of vLLM's layer, for drafters that ask for its best rows.
        self.ids = torch.from_numpy(rows.ids[shards.order]).to(device).long()
        members = np.zeros(vocabulary, np.uint8)
        members[: len(rows.members)] = rows.members
        # Of each profile that does not keep all tokens, those that it refuses.
        self._refused = {
            profile: torch.from_numpy((members >> profile & 1) == 0).to(device)
            for profile, tokens in enumerate(rows.tokens)
            if whole is not None and tokens < vocabulary
        }
        self._largest = max(rows.ends)
        self._prefixes = {end: self._prefix(end) for end in set(rows.ends) if end <= self._stored}
        self._inverses: dict[tuple[int, int | None], torch.Tensor] = {}

    @property
    def _stored(self) -> int:
        return len(self._shards.rank)

    def logits(
        self, forward: Callable[..., Any], processor: Any, hidden: torch.Tensor, *rest: Any
    ) -> torch.Tensor | None:
        """Logits [n, vocabulary] for hidden states [n, hidden]; -inf for ids that are not kept.

        `forward` is that of vLLM's `LogitsProcessor`. None on a rank to which logits are not sent.
        """
        # vLLM's wrapper for LoRA would add an adapter's part of the full head; adapters that have
        # one are refused.
        processor = getattr(processor, "base_layer", processor)
        profiles = take_profiles(len(hidden))
        present = set(profiles or ())
        end = max((self.rows.ends[p] for p in present), default=self._largest)
        if end > self._stored:
            return self._whole_logits(forward, processor, hidden, profiles, *rest)
        layer, columns, unused = self._prefixes[end]
        # vLLM cuts the logits to as many columns as the original has tokens.
        processor.org_vocab_size = max(columns, self._vocabulary)
        logits = forward(processor, layer, hidden, layer.bias, *rest)
        if logits is None:
            return None
        logits = logits[:, :columns]
        # This column serves for all ids that are not kept. It becomes -inf only here: soft capping
        # would have made a finite number of it.
        logits[:, unused] = -torch.inf
        if profiles is None or len(present) == 1:
            return expand(logits, self._inverse(end, None if profiles is None else profiles[0]))
        return expand_each(logits, {p: self._inverse(end, p) for p in present}, profiles)

    def top(self, find: Callable[..., Any], processor: Any, hidden: Any, *rest: Any) -> Any:
        """What vLLM finds in the logits without gathering them: rows, which become token ids."""
        found = find(processor, self._whole or self.layer, hidden, *rest)
        if self._whole is not None:
            return found
        rows, *values = found if isinstance(found, tuple) else (found,)
        return (self.ids[rows], *values) if values else self.ids[rows]

    def _whole_logits(
        self,
        forward: Callable[..., Any],
        processor: Any,
        hidden: torch.Tensor,
        profiles: Sequence[int] | None,
        *rest: Any,
    ) -> torch.Tensor | None:
        """Logits of the unpruned head, of which requests with other profiles see their part."""
        processor.org_vocab_size = self._vocabulary
        logits: torch.Tensor | None = forward(processor, self._whole, hidden, None, *rest)
        if logits is not None and profiles is not None:
            for profile in self._refused.keys() & set(profiles):
                mine = torch.tensor([p == profile for p in profiles], device=logits.device)
                logits.masked_fill_(mine[:, None] & self._refused[profile][None], -torch.inf)
        return logits

    def _prefix(self, end: int) -> tuple[Any, int, int]:
        """The layer of the first rows, its gathered columns, and the one that none of them has.

        It shares the memory of the whole layer.
        """
        width = self._shards.width(end)
        layer = self.layer if width == self._shards.size else _Prefix(self.layer, width)
        return layer, self._shards.ranks * width, self._shards.unused(end)

    def _inverse(self, end: int, profile: int | None) -> torch.Tensor:
        """For each token id its column in the logits of the first `end` rows.

        Ids that are not among these, or not in the profile, have the unused column.
        """
        found = self._inverses.get((end, profile))
        if found is None:
            ids, columns = self.rows.ids[:end], self._shards.columns(end)
            if profile is not None:
                mine = (self.rows.members[ids] >> profile & 1).astype(np.bool_)
                ids, columns = ids[mine], columns[mine]
            found = inverse_order(ids, columns, self._vocabulary, self._shards.unused(end))
            found = found.to(self.layer.weight.device)
            self._inverses[end, profile] = found
        return found


class _Prefix:
    """The first rows of a rank's part of a head, as `LogitsProcessor` uses a layer."""

    def __init__(self, layer: Any, rows: int) -> None:
        if len(layer.weight) < rows:
            raise KPruneError(
                "--kprune-head: several profiles need the rows of the LM head as they were loaded, "
                "and this CPU computes with a copy in another order; name one profile"
            )
        self.weight = layer.weight[:rows]
        self.bias = None if layer.bias is None else layer.bias[:rows]
        self.quant_method, self.tp_size = layer.quant_method, layer.tp_size
        if self.weight.device.type == "cpu":
            # Some CPUs compute with a copy in an order of their own.
            self.quant_method.process_weights_after_loading(self)
