"""Where vLLM's prompts are caught: with stand-ins for its renderer and its `LLM`."""

import asyncio
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.prune_cases import LONG, LengthScores, pruning_of

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving import compat
from vllm_kprune.serving.compat import prompts as compat_prompt
from vllm_kprune.serving.options import NAMED
from vllm_kprune.serving.pruning import hooks as prune_hooks
from vllm_kprune.serving.pruning.metrics import RequestReport, current_report
from vllm_kprune.serving.pruning.service import PromptPruning

pytestmark = pytest.mark.usefixtures("vllm_ready")

HALF = {"kprune_keep": 0.5}
PAST = {"role": "user", "content": LONG}
LAST = {"role": "user", "content": "Where?"}


class OnlineRenderer:
    """Renders to one token for each character, and notes what it was given."""

    def __init__(self) -> None:
        self.renderer = SimpleNamespace()
        self.given: list[Any] = []

    def warmup(self) -> str:
        return "warm"

    async def preprocess_chat(self, request: Any, messages: Any, default_template: Any) -> Any:
        documents = getattr(request, "documents", None)
        kwargs = getattr(request, "chat_template_kwargs", None)
        self.given.append((messages, documents, kwargs, default_template))
        return messages, [{"prompt_token_ids": [0] * len(str(messages))}]

    async def preprocess_cmpl(self, request: Any, prompts: Any, *, skip: bool = False) -> Any:
        self.given.append(list(prompts))
        return [{"prompt_token_ids": [0] * len(prompt)} for prompt in prompts]


def online(pruning: PromptPruning | None) -> OnlineRenderer:
    """A renderer whose class was hooked; each its own."""
    module = ModuleType("online_renderer")
    module.OnlineRenderer = type("Hooked", (OnlineRenderer,), dict(vars(OnlineRenderer)))  # type: ignore[attr-defined]
    compat_prompt.prune_online(module, lambda renderer: pruning)
    made: OnlineRenderer = module.OnlineRenderer()
    return made


def request(**values: Any) -> Any:
    return SimpleNamespace(**{"vllm_xargs": HALF, **values})


def chat(pruning: PromptPruning | None, asked: Any, messages: Any) -> Any:
    renderer = online(pruning)
    asyncio.run(renderer.preprocess_chat(asked, messages, "template"))
    return renderer.given[0]


def complete(pruning: PromptPruning | None, asked: Any, prompts: Any) -> Any:
    renderer = online(pruning)
    asyncio.run(renderer.preprocess_cmpl(asked, prompts))
    return renderer.given[0]


def test_without_kprune_everything_passes_as_it_is() -> None:
    messages, prompts = [PAST, LAST], ["<kprune>a</kprune>"]
    given = chat(None, request(), messages)
    assert given[0] is messages
    assert complete(None, request(), prompts) == prompts
    assert online(None).warmup() == "warm"


def test_a_chat_is_pruned_and_the_senders_messages_are_not_touched() -> None:
    messages = [dict(PAST), dict(LAST)]
    given, _, _, template = chat(pruning_of(LengthScores()), request(), messages)
    assert given[1] == LAST
    assert 0 < len(given[0]["content"]) < len(LONG)
    assert messages == [PAST, LAST]
    assert template == "template"


def test_parts_that_can_be_read_only_once_are_read_once() -> None:
    parts = iter([{"type": "text", "text": LONG}, {"type": "image_url", "image_url": {}}])
    messages = [{"role": "user", "content": parts}, LAST]
    given = chat(pruning_of(LengthScores()), request(), messages)[0]
    assert 0 < len(given[0]["content"][0]["text"]) < len(LONG)
    assert given[0]["content"][1] == {"type": "image_url", "image_url": {}}


@pytest.mark.parametrize("place", ["documents", "chat_template_kwargs"])
def test_documents_are_pruned_for_the_template_and_put_back(place: str) -> None:
    documents = [{"title": "t", "text": LONG}]
    sent = documents if place == "documents" else {"documents": documents, "more": 1}
    asked = request(**{place: sent})
    _, as_field, kwargs, _ = chat(pruning_of(LengthScores()), asked, [LAST])
    (found,) = as_field or kwargs["documents"]
    assert found["title"] == "t"
    assert 0 < len(found["text"]) < len(LONG)
    assert getattr(asked, place) is sent
    assert kwargs is None or kwargs["more"] == 1


def test_texts_are_pruned_and_token_ids_left_alone() -> None:
    given = complete(pruning_of(LengthScores()), request(), [LONG, [1, 2, 3], b"embeds", LONG])
    assert given[1:3] == [[1, 2, 3], b"embeds"]
    assert given[0] == given[3]
    assert 0 < len(given[0]) < len(LONG)


@pytest.mark.parametrize("asked", [SimpleNamespace(), request(suffix="}")])
def test_what_only_counts_tokens_or_fills_a_gap_loses_marks_alone(asked: Any) -> None:
    pruning = pruning_of(LengthScores(), keep=0.5)
    assert complete(pruning, asked, [f"<kprune>{LONG}</kprune>"]) == [LONG]


def test_bad_wishes_and_marks_are_the_clients_error() -> None:
    from vllm.exceptions import VLLMValidationError

    pruning = pruning_of(LengthScores())
    with pytest.raises(VLLMValidationError, match="keep: got 7") as error:
        complete(pruning, request(vllm_xargs={"kprune_keep": 7}), ["a"])
    assert isinstance(error.value, KPruneError)
    with pytest.raises(VLLMValidationError, match="not closed"):
        chat(pruning, request(), [{"role": "user", "content": "<kprune>a"}])


def test_the_headers_are_told_what_the_model_saw() -> None:
    renderer, report = online(pruning_of(LengthScores())), RequestReport()

    async def run() -> None:
        current_report.set(report)
        await renderer.preprocess_cmpl(request(), [LONG, [1, 2]])

    asyncio.run(run())
    text, ids = renderer.given[0]
    assert report.kept == len(text) + len(ids)
    assert report.original > report.kept
    assert report.segments == 1


class OfflineInferenceMixin:
    """Notes what `LLM` would render."""

    renderer = SimpleNamespace()

    def _add_completion_requests(self, prompts: Any, params: Any, **how: Any) -> Any:
        return prompts

    def _add_chat_requests(self, messages: Any, params: Any, **how: Any) -> Any:
        return messages


class BeamSearchOfflineMixin:
    renderer = SimpleNamespace()

    def beam_search(self, prompts: Any, params: Any) -> Any:
        return prompts


@pytest.fixture
def llm() -> Any:
    from vllm.renderers.inputs.preprocess import conversation_to_seq, prompt_to_seq

    pruning = pruning_of(LengthScores())
    classes = (OfflineInferenceMixin, BeamSearchOfflineMixin)
    hooked = [type(c.__name__, (c,), dict(vars(c))) for c in classes]
    module: Any = SimpleNamespace(
        **{c.__name__: c for c in hooked},
        prompt_to_seq=prompt_to_seq,
        conversation_to_seq=conversation_to_seq,
    )
    compat_prompt.prune_offline(module, lambda renderer: pruning)
    compat_prompt.prune_offline_beams(module, lambda renderer: pruning)
    return type("LLM", tuple(hooked), {})()


def params(extra_args: Any) -> Any:
    return SimpleNamespace(extra_args=extra_args, temperature=0)


def test_every_prompt_of_an_llm_has_the_options_of_its_own_parameters(llm: Any) -> None:
    given = [LONG, {"prompt": LONG, "more": 1}, {"prompt_token_ids": [1]}, LONG]
    each = [params(HALF), params(HALF), params(HALF), params(None)]
    text, tagged, ids, whole = llm._add_completion_requests(given, each)
    assert 0 < len(text) < len(LONG)
    assert tagged == {"prompt": text, "more": 1}
    assert ids == {"prompt_token_ids": [1]}
    assert whole == LONG
    assert llm._add_completion_requests(LONG, params(HALF)) == [text]


def test_chats_of_an_llm_are_pruned(llm: Any) -> None:
    ((past, last),) = llm._add_chat_requests([PAST, LAST], params(HALF))
    assert 0 < len(past["content"]) < len(LONG)
    assert last == LAST


def test_a_pooling_model_gets_its_texts_as_they_are(llm: Any) -> None:
    assert llm._add_completion_requests(LONG, SimpleNamespace(task="embed")) == LONG


def test_beams_of_an_llm_lose_their_marks(llm: Any) -> None:
    found = llm.beam_search([{"prompt": f"<kprune>{LONG}</kprune>"}], SimpleNamespace(beam_width=2))
    assert found == [{"prompt": LONG}]


def test_more_parameters_than_prompts_are_vllms_to_refuse(llm: Any) -> None:
    assert len(llm._add_completion_requests([LONG], [params(HALF)] * 2)) == 1
    assert len(llm._add_completion_requests([LONG] * 2, [params(HALF)])) == 2


def test_what_prunes_is_made_once_for_a_renderer() -> None:
    renderer, made = SimpleNamespace(), []

    def make(one: Any) -> Any:
        made.append(one)
        return None

    for _ in range(3):
        assert compat_prompt.attached(renderer, make) is None
    assert made == [renderer]


@pytest.mark.parametrize("hook", ["_hook_server", "_hook_offline", "_hook_beams"])
def test_a_vllm_without_these_names_is_a_warning_and_no_error(
    hook: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat.logger, "propagate", True)
    getattr(prune_hooks, hook)(ModuleType("later"))
    assert "input pruning is off" in caplog.text


def test_a_server_that_did_not_ask_for_kprune_has_no_pruning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(NAMED, raising=False)
    model = SimpleNamespace(model="some/model")
    config = SimpleNamespace(additional_config={}, model_config=model)
    assert prune_hooks.pruning_of(SimpleNamespace(config=config)) is None
