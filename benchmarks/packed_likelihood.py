"""Log-probability of answers under a causal language model, many prompts in one forward pass.

Prompts share a common beginning: a passage is computed once for all questions on it. Variants of a
passage are packed side by side into one sequence, with a mask that lets each token see only its own
prompt. Results are stored on disk by a digest of the prompt, so an interrupted run resumes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

__all__ = ["Probe", "Target", "Variant"]


@dataclass(frozen=True)
class Probe:
    """A question after a passage, and the answer whose likelihood is measured."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Variant:
    """A passage, pruned or not, and the questions about it."""

    passage: str
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class _Node:
    """A run of tokens in a pack. It sees its parent's tokens and everything that they see."""

    parent: int
    ids: tuple[int, ...]
    answer_from: int = 0  # the first token of the answer; 0 if nothing is asked


class Target:
    """A causal model of transformers, its tokenizer, and its earlier results."""

    def __init__(
        self,
        folder: Path,
        cache: Path,
        dtype: torch.dtype,
        pack_tokens: int,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model = model.to(device).eval()
        self.pack_tokens = pack_tokens
        self._name = f"{folder.name} {dtype}"
        self._path = cache
        self._known = dict(_read(cache))

    def count(self, text: str) -> int:
        """The tokens of a text, without <bos>."""
        return len(self._ids(text))

    def known(self, passage: str, probe: Probe) -> tuple[float, int] | None:
        """Sum of the answer's log-probabilities in nats, and its number of tokens, if known."""
        return self._known.get(self._key(passage, probe))

    def compute(self, variants: Sequence[Variant]) -> int:
        """Compute what is not known of the variants; returns the number of tokens run."""
        missing = [
            Variant(v.passage, probes)
            for v in variants
            if (probes := tuple(p for p in v.probes if self.known(v.passage, p) is None))
        ]
        tokens = 0
        for pack in self._packs(missing):
            tokens += self._run(pack)
        return tokens

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _key(self, passage: str, probe: Probe) -> str:
        parts = json.dumps([self._name, passage, probe.prompt, probe.answer])
        return hashlib.sha256(parts.encode()).hexdigest()[:24]

    def _packs(self, variants: Sequence[Variant]) -> Iterator[list[Variant]]:
        pack: list[Variant] = []
        size = 0
        for variant in {v.passage: v for v in variants}.values():
            own = self.count(variant.passage)
            own += sum(self.count(p.prompt) + self.count(p.answer) for p in variant.probes)
            if pack and size + own > self.pack_tokens:
                yield pack
                pack, size = [], 0
            pack.append(variant)
            size += own
        if pack:
            yield pack

    def _run(self, pack: Sequence[Variant]) -> int:
        nodes, keys = [_Node(-1, (self._bos(),))], []
        for variant in pack:
            passage = len(nodes)
            nodes.append(_Node(0, self._ids(variant.passage)))
            for probe in variant.probes:
                prompt, answer = self._ids(probe.prompt), self._ids(probe.answer)
                nodes.append(_Node(passage, prompt + answer, len(prompt)))
                keys.append(self._key(variant.passage, probe))
        with self._path.open("a") as stream:
            for key, value in zip(keys, self._likelihoods(nodes), strict=True):
                self._known[key] = value
                stream.write(json.dumps([key, *value]) + "\n")
        return sum(len(node.ids) for node in nodes)

    def _bos(self) -> int:
        return int(self.model.config.bos_token_id)

    @torch.inference_mode()
    def _likelihoods(self, nodes: Sequence[_Node]) -> list[tuple[float, int]]:
        """For each node with an answer: the sum of its log-probabilities and its token count."""
        device = self.model.device
        ids = torch.tensor([i for node in nodes for i in node.ids]).to(device)
        mask, positions = (one.to(device) for one in _mask(nodes))
        hidden = self.model.model(
            input_ids=ids[None],
            attention_mask=self._masks(mask, positions),
            position_ids=positions[None],
            use_cache=False,
        ).last_hidden_state[0]
        rows, targets, sizes = _answers(nodes)
        logits = self.model.lm_head(hidden[rows]).float()
        logprobs = logits.log_softmax(-1).gather(1, targets[:, None].to(device))[:, 0]
        return [(float(part.sum()), len(part)) for part in logprobs.cpu().split(sizes)]

    def _masks(self, mask: torch.Tensor, positions: torch.Tensor) -> Any:
        """One mask for every type of layer: sliding windows count distances in the prompt."""
        config = self.model.config
        types = set(getattr(config, "layer_types", None) or ())
        if not types:
            return mask[None, None]
        near = positions[:, None] - positions[None, :] < (config.sliding_window or 1 << 30)
        return {t: (mask & near if "sliding" in t else mask)[None, None] for t in types}


def _mask(nodes: Sequence[_Node]) -> tuple[torch.Tensor, torch.Tensor]:
    """Which token sees which (bool [tokens, tokens]), and each token's position in its prompt."""
    sees = torch.eye(len(nodes), dtype=torch.bool)
    ends: list[int] = []
    positions = []
    for n, node in enumerate(nodes):
        start = ends[node.parent] if node.parent >= 0 else 0
        if node.parent >= 0:
            sees[n] |= sees[node.parent]
        ends.append(start + len(node.ids))
        positions.append(torch.arange(start, ends[n]))
    sizes = torch.tensor([len(node.ids) for node in nodes])
    of = torch.repeat_interleave(torch.arange(len(nodes)), sizes)
    return sees[of][:, of].tril(), torch.cat(positions)


def _answers(nodes: Sequence[_Node]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The rows that predict answer tokens, those tokens, and the token count of each answer."""
    rows, targets, sizes = [], [], []
    at = 0
    for node in nodes:
        if node.answer_from:
            rows += range(at + node.answer_from - 1, at + len(node.ids) - 1)
            targets += node.ids[node.answer_from :]
            sizes.append(len(node.ids) - node.answer_from)
        at += len(node.ids)
    return torch.tensor(rows), torch.tensor(targets), sizes


def _read(path: Path) -> Iterator[tuple[str, tuple[float, int]]]:
    if path.exists():
        for line in path.read_text().splitlines():
            key, total, tokens = json.loads(line)
            yield key, (total, tokens)
