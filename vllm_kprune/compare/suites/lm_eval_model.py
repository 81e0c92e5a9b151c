"""Both endpoints as a model of lm-eval. Importing this module does not need lm-eval.

lm-eval's own `local-completions` splits texts with one tokenizer and sends token ids. If the
vocabularies differ, that silently gives wrong results on both sides. This model sends text and lets
each endpoint count tokens (`likelihood.py`). It uses the clients of the run, with their retries,
the journal, and both sides in turn. lm-eval evaluates one model at a time: the evaluation of the
first side asks both endpoints, and that of the second side finds its answers in the journal.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_kprune.compare.asking import Task, ask_both
from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.run import Context
from vllm_kprune.compare.suites.likelihood import (
    context_request,
    likelihood,
    split_space,
    whole_request,
)
from vllm_kprune.compare.suites.spoken import without_reasoning

__all__ = ["EndpointModel", "PairOfModels", "request_name"]

_MAX_TOKENS = 256
_MOST_STOPS = 4  # the limit of the OpenAI API


@dataclass
class PairOfModels:
    """Asks both endpoints what lm-eval asks one model.

    `failed` maps requests without an answer to the reason. `most_tokens` limits answers where a
    server's context is shorter than a task expects.
    """

    context: Context
    suite: str
    chat: bool
    most_tokens: int | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def ask(self, requests: Mapping[str, Request]) -> dict[str, tuple[Answer, Answer]]:
        """Both answers by name."""
        tasks = [Task(key, request) for key, request in requests.items()]
        pairs = ask_both(self.context, self.suite, tasks)
        return {task.key: pair for task, pair in zip(tasks, pairs, strict=True)}


class EndpointModel:
    """One side of the pair, with the methods of `lm_eval.api.model.LM` that lm-eval calls.

    It does not inherit from that class, so that importing it does not need lm-eval.
    """

    # One process: lm-eval would divide the items among several.
    rank = 0
    world_size = 1

    def __init__(self, pair: PairOfModels, side: int) -> None:
        self._pair, self._side = pair, side

    @property
    def tokenizer_name(self) -> str:
        """A name for lm-eval's cache of chat templates, which is not used."""
        return "endpoint"

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as JSON, since the endpoint applies the template."""
        # `_generation` reads it back.
        return json.dumps(list(chat_history), ensure_ascii=False)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probabilities of continuations; whether they are greedy is unknown (False)."""
        seed = self._pair.context.options.seed
        wanted: dict[str, Request] = {}
        for request in requests:
            before, after = split_space(*request.args)
            wanted[f"{request_name(request.task_name, request.args)}/whole"] = whole_request(
                before, after, seed
            )
            if before:
                wanted[_context_name(request.task_name, before)] = context_request(before, seed)
        answers = self._pair.ask(wanted)
        return [(self._total(request, answers), False) for request in requests]

    def _total(self, request: Any, answers: Mapping[str, tuple[Answer, Answer]]) -> float:
        name = request_name(request.task_name, request.args)
        before, _ = split_space(*request.args)
        whole = answers[f"{name}/whole"]
        context = answers[_context_name(request.task_name, before)] if before else None
        # An error on either side drops the item from both (`lm_eval_tasks._paired`). The score is
        # 0.0 only because lm-eval needs a number.
        errors = [answer.error for answer in (*whole, *(context or ())) if answer.error]
        if errors:
            self._pair.failed[name] = errors[0]
            return 0.0
        found = likelihood(context[self._side] if context else None, whole[self._side])
        if found is None:
            self._pair.failed[name] = "an endpoint did not report all log-probabilities"
        return found.total if found else 0.0

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Not supported, and not needed by any task of the presets."""
        raise NotImplementedError("the perplexity of whole documents is not measured")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, or sampled ones if the task says so, up to a stop string of the task."""
        names = [request_name(request.task_name, request.args) for request in requests]
        wanted = {
            name: self._generation(*request.args)
            for name, request in zip(names, requests, strict=True)
        }
        answers = self._pair.ask(wanted)
        texts = []
        for name, request in zip(names, requests, strict=True):
            errors = [answer.error for answer in answers[name] if answer.error]
            if errors:
                self._pair.failed[name] = errors[0]
            said = without_reasoning(answers[name][self._side]).text
            texts.append(until(said, _stops(request.args[1])))
        return texts

    def _generation(self, context: str, settings: Mapping[str, Any]) -> Request:
        options = self._pair.context.options
        # The server stops at the first four; `until` cuts at the others afterwards.
        stops = _stops(settings)[:_MOST_STOPS]
        wanted = int(settings.get("max_gen_toks", options.tokens(_MAX_TOKENS)))
        common: dict[str, Any] = {
            "max_tokens": min(wanted, self._pair.most_tokens or wanted),
            "temperature": float(settings.get("temperature", 0)) if _samples(settings) else 0.0,
            "seed": options.seed,
            "extra": {"stop": stops} if stops else {},
        }
        if self._pair.chat:
            return Request("chat", messages=tuple(json.loads(context)), **common)
        return Request("completion", prompt=context, **common)


def request_name(task: str, arguments: Sequence[Any]) -> str:
    """The key under which a request is kept, unique to its text."""
    text = json.dumps(arguments, ensure_ascii=False, sort_keys=True, default=str)
    return f"{task}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def until(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string.

    >>> until("18\\n\\nQuestion", ["\\n"])
    '18'
    """
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _context_name(task: str, context: str) -> str:
    return f"{request_name(task, [context])}/context"


def _stops(settings: Mapping[str, Any]) -> list[str]:
    found = settings.get("until") or []
    return [found] if isinstance(found, str) else [stop for stop in found if stop]


def _samples(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("do_sample")) and float(settings.get("temperature", 0)) > 0
