"""Random requests on the V2 runner, and what a judge that knows no tables says of their answers.

Requests come and go and are preempted, prompts arrive in chunks and end anywhere in a character or
inside reasoning, batches are shuffled, drafts are right and wrong. Logits are random, with a
liking for parts of characters, drafts, and the tokens that begin and end reasoning.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from vllm import SamplingParams

from support.guard_oracle import foreign
from support.v2_judge import Judge, Place
from support.v2_runner import Committed, Scheduled, V2Runner

__all__ = ["Kind", "Traffic"]

_TEXTS = ("the cat sat", "나는 오늘 학교에", "中国人民", "これは", "😀 é", "a\\", "서울의 날씨는")
_WARM_UP = "_warmup"


@dataclass(frozen=True)
class Kind:
    """Requests that ask for the same: their `extra_args`, and who judges them.

    They are counted as `label`, and so are their rows, but as `reasoning_label` while the model
    thinks. None: not counted. `is_json`: they like backslashes.
    """

    extra_args: dict[str, Any] | None
    judge: Judge
    label: str | None
    reasoning_label: str | None = None
    is_json: bool = False


@dataclass
class _Request:
    name: str
    kind: Kind
    prompt: list[int]
    params: Any
    place: Place
    most_tokens: int
    is_constrained: bool
    answer: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    to_prefill: int = 0
    computed: int = 0
    has_ended: bool = False

    @property
    def has_prefilled(self) -> bool:
        return self.computed >= self.to_prefill


class Traffic:
    """Requests of these kinds, step by step; `figures` and `counts` are what came of them."""

    def __init__(
        self,
        runner: V2Runner,
        kinds: Sequence[Kind],
        tokenizer: Tokenizer,
        *,
        admit: Callable[[Any], None],
        eos: int,
        think_ids: tuple[int, int] | None,
        seed: int,
    ) -> None:
        self.figures: Counter[str] = Counter()
        # Label -> what is counted -> how often, as `read_totals` gives it.
        self.counts: dict[str, Counter[str]] = {}
        self._runner = runner
        self._kinds = kinds
        self._tokenizer = tokenizer
        self._admit = admit
        self._eos = eos
        self._think_ids = think_ids
        self._draw = random.Random(seed)
        self._live: dict[str, _Request] = {}
        texts = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
        self._fragments = torch.tensor([i for i, t in enumerate(texts) if "\ufffd" in t])
        self._slashes = torch.tensor([i for i, t in enumerate(texts) if t[:1] in ("\\", "u")])

    def warm_up(self) -> None:
        """What vLLM does before it takes requests: none of it is to be counted."""
        runner = self._runner
        slots = len(runner.states.free_indices)
        runner.profile(slots)
        names = [f"{_WARM_UP}{n}" for n in range(slots)]
        for name in names:
            runner.enter(name, [0, 1], [], SamplingParams.for_sampler_warmup())
        prompts = [Scheduled(name, 2) for name in names]
        drafts = tuple(range(runner.num_drafts))
        steps = [Scheduled(name, 1 + len(drafts), drafts) for name in names]
        for batch in (prompts, steps):
            runner.step(batch, lambda one: torch.randn(1 + len(one.drafts), runner.num_rows))
        for name in names:
            runner.leave(name)

    def run(self, steps: int) -> None:
        """So many steps, and then some more of a request without a guard."""
        for _ in range(steps):
            self._come_and_go()
            if batch := self._schedule():
                for got in self._runner.step(batch, self._logits):
                    self._take(self._live[got.name], got)
        for name in list(self._live):
            self._end(name)
        self._settle()

    def _come_and_go(self) -> None:
        for name, request in list(self._live.items()):
            if request.has_ended or len(request.answer) >= request.most_tokens:
                self._end(name)
            elif request.answer and self._draw.random() < 0.06:
                self.figures["preemptions"] += 1
                self._runner.leave(name)
                self._enter(request)
        while self._runner.has_free_slot and self._draw.random() < 0.7:
            request = self._new_request()
            self._live[request.name] = request
            self._enter(request)

    def _new_request(self) -> _Request:
        draw = self._draw
        kind = draw.choice(self._kinds)
        prompt = self._new_prompt()
        is_constrained = draw.random() < 0.15
        extra: dict[str, Any] = {}
        if is_constrained:  # what a grammar leaves need not be what the guard leaves
            extra["allowed_token_ids"] = sorted(draw.sample(range(self._runner.num_rows), 12))
        params = SamplingParams(
            temperature=draw.choice([0.0, 1.0, 1.3]),
            top_p=draw.choice([1.0, 1.0, 0.95]),
            frequency_penalty=draw.choice([0.0, 0.3]),
            min_tokens=draw.choice([0, 0, 2]),
            seed=draw.choice([None, 5]),
            extra_args=kind.extra_args,
            **extra,
        )
        params.update_from_generation_config({}, self._eos)
        self._admit(params)
        self.figures["requests"] += 1
        self._count(kind.label, "requests")
        name = f"r{self.figures['requests']}"
        place = kind.judge.after_prompt(prompt)
        return _Request(name, kind, prompt, params, place, draw.randrange(3, 24), is_constrained)

    def _new_prompt(self) -> list[int]:
        """A text, cut off anywhere at its end, sometimes inside the model's reasoning."""
        ids = self._tokenizer.encode(self._draw.choice(_TEXTS)).ids
        ids = ids[: max(1, len(ids) - self._draw.randrange(3))]
        if self._think_ids and self._draw.random() < 0.5:
            start, end = self._think_ids
            ids = self._draw.choice([[*ids, start], [start, *ids], [start, *ids, end], [end, *ids]])
        return ids

    def _enter(self, request: _Request) -> None:
        self._runner.enter(request.name, request.prompt, request.answer, request.params)
        request.to_prefill, request.computed = len(request.prompt) + len(request.answer), 0
        request.drafts = []

    def _end(self, name: str) -> None:
        self._runner.leave(name)
        request = self._live.pop(name)
        for policy, ids in request.kind.judge.pieces(request.prompt, request.answer):
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            self.figures["foreign_characters"] += len(foreign(text, policy))

    def _schedule(self) -> list[Scheduled]:
        draw = self._draw
        chosen = [one for one in self._live.values() if draw.random() < 0.9]
        draw.shuffle(chosen)
        batch = []
        for request in chosen:
            if request.has_prefilled:
                drafts = tuple(request.drafts)
                batch.append(Scheduled(request.name, 1 + len(drafts), drafts))
                continue
            left = request.to_prefill - request.computed
            chunk = left if draw.random() < 0.7 else draw.randint(1, left)
            self.figures["chunks"] += chunk < left
            batch.append(Scheduled(request.name, chunk))
        return batch

    def _logits(self, one: Scheduled) -> torch.Tensor:
        logits = torch.randn(1 + len(one.drafts), self._runner.num_rows) * 3
        logits[:, self._fragments] += 1.5
        for n, draft in enumerate(one.drafts):
            if self._draw.random() < 0.7:
                logits[n, draft] += 12
        for token in self._think_ids or ():
            if self._draw.random() < 0.1:
                logits[self._draw.randrange(len(logits)), token] += 12
        if one.name in self._live and self._live[one.name].kind.is_json:
            logits[:, self._slashes] += 9
        return logits

    def _take(self, request: _Request, got: Committed) -> None:
        self.figures["drafts"] += len(request.drafts)
        self.figures["accepted"] += max(0, len(got.tokens) - 1)
        request.computed += got.num_computed
        for n, token in enumerate(got.tokens):
            # vLLM's scheduler drops what comes after the end.
            if not request.has_ended:
                self._judge(request, token, got, n)
        request.drafts = []
        if got.tokens and request.has_prefilled and not request.has_ended:
            request.drafts = self._new_drafts(request)
            self._runner.set_drafts(request.name, request.drafts)

    def _judge(self, request: _Request, token: int, got: Committed, n: int) -> None:
        judge, place = request.kind.judge, request.place
        allowed = judge.allowed(place)
        self.figures["tokens"] += 1
        self.figures["inside_a_character"] += bool(place.pending)
        self.figures["while_reasoning"] += place.is_reasoning
        self.figures["after_a_backslash"] += place.is_escaped
        is_dead = False
        if not judge.guards_nothing:
            is_dead = self._judge_row(request, allowed, got, n)
        request.has_ended = token == self._eos
        if is_dead:  # the end token, wherever the text has come to
            self.figures["other_ends"] += not request.has_ended
            return
        self.figures["refused"] += not allowed[token]
        request.answer.append(token)
        request.place = judge.after(place, token)

    def _judge_row(self, request: _Request, allowed: np.ndarray, got: Committed, n: int) -> bool:
        """Compare what the guard did to a row with what it had to do. True for a dead end."""
        if got.before is None or got.after is None:
            self.figures["unguarded_rows"] += 1
            return False
        before, after = got.before[n].numpy(), got.after[n].numpy()
        left = np.where(allowed, before, -np.inf)
        is_dead = request.is_constrained and bool((left == -np.inf).all())
        if is_dead:
            self.figures["dead_ends"] += 1
        else:
            self.figures["wrong_rows"] += not np.array_equal(left, after)
        reasons = request.place.is_reasoning
        label = request.kind.reasoning_label if reasons else request.kind.label
        if left.max() < before.max():
            self._count(label, "changed_steps")
        if is_dead:  # free reasoning has no label of its own
            self._count(label or request.kind.label, "dead_ends")
        return is_dead

    def _new_drafts(self, request: _Request) -> list[int]:
        """Drafts that are mostly allowed; the models that make them know no guard."""
        judge, place, drafts = request.kind.judge, request.place, []
        for _ in range(self._draw.randrange(self._runner.num_drafts + 1)):
            allowed = np.flatnonzero(judge.allowed(place))
            token = self._draw.randrange(self._runner.num_rows)
            if len(allowed) and self._draw.random() < 0.8:
                token = int(self._draw.choice(allowed))
            drafts.append(token)
            place = judge.after(place, token)
        return drafts

    def _settle(self) -> None:
        """Some steps more, for counters that only learn in the next step what was committed."""
        name = f"{_WARM_UP}-settle"
        off = {"kprune_languages": "off"}
        self._runner.enter(name, [0], [], SamplingParams(temperature=0.9, extra_args=off))
        for _ in range(2):
            self._runner.step([Scheduled(name, 1)], self._logits)

    def _count(self, label: str | None, counter: str) -> None:
        if label is not None:
            self.counts.setdefault(label, Counter())[counter] += 1
