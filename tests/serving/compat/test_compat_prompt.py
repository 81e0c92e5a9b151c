"""Where vLLM's prompts are caught: in its own renderers, with a tiny tokenizer and no engine.

The class `Passing` stands for vLLM's function where a test needs what a text model does not take.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from support.prune_cases import LONG, LengthScores, pruning_of
from support.real_renderer import make_config, offline_llm, online_renderer, text_of
from support.tiny_models import CHAT_TEMPLATE

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat import prompts as compat_prompt
from vllm_kprune.serving.compat import seams_prompts
from vllm_kprune.serving.environment import NAMED
from vllm_kprune.serving.pruning import hooks as prune_hooks
from vllm_kprune.serving.pruning.metrics import RequestReport, current_report
from vllm_kprune.serving.pruning.service import PromptPruning

pytestmark = pytest.mark.usefixtures("vllm_ready")

HALF = {"kprune_keep": 0.5}
PAST = {"role": "user", "content": LONG}
LAST = {"role": "user", "content": "Where?"}
SHORT = "cat sat the mat other cats there "  # what half of `LONG` is


@pytest.fixture(scope="module")
def config(vllm_ready: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The configuration of a tiny model."""
    return make_config(tmp_path_factory.mktemp("rendered"))


def rendered_chat(messages: list[dict[str, Any]], documents: str = "") -> str:
    """What the chat template makes of messages of plain text."""
    turns = "".join(f"{one['role']}: {one['content']}" for one in messages)
    return f"{documents}{turns}assistant:"


class Chats:
    """Renders chats as a server with this `pruning` does."""

    def __init__(self, config: Any, pruning: PromptPruning | None) -> None:
        self.online = online_renderer(config, pruning)

    def request(self, messages: Any, **values: Any) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        return ChatCompletionRequest(messages=messages, **{"vllm_xargs": HALF, **values})

    def render(self, request: Any, messages: Any = None) -> str:
        given = request.messages if messages is None else messages
        _, (prompt,) = asyncio.run(
            self.online.preprocess_chat(request, given, CHAT_TEMPLATE, "auto", None)
        )
        return text_of(prompt)


def complete(config: Any, pruning: PromptPruning | None, prompts: Any, **values: Any) -> list[str]:
    """Texts of a completion request's prompts."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    request = CompletionRequest(prompt="in the body", **{"vllm_xargs": HALF, **values})
    online = online_renderer(config, pruning)
    return [text_of(one) for one in asyncio.run(online.preprocess_cmpl(request, prompts))]


@pytest.mark.slow
def test_without_kprune_everything_passes_as_it_is(config: Any) -> None:
    marked = "<kprune>a</kprune>"
    chats = Chats(config, None)
    assert chats.render(chats.request([PAST, LAST])) == rendered_chat([PAST, LAST])
    assert complete(config, None, [marked]) == [marked]
    chats.online.warmup()


def test_a_chat_is_pruned_and_the_senders_messages_are_not_touched(config: Any) -> None:
    messages = [dict(PAST), dict(LAST)]
    chats = Chats(config, pruning_of(LengthScores()))
    request = chats.request([PAST, LAST])
    expected = rendered_chat([{**PAST, "content": SHORT}, LAST])
    assert chats.render(request, messages) == expected
    assert chats.render(request) == expected
    assert messages == [PAST, LAST]


def test_the_pruner_is_made_before_a_server_is_ready(config: Any) -> None:
    online, made = online_renderer(config, None), []
    del online.renderer.kprune_pruning
    wraps = compat_prompt.prune_online(made.append)
    assert wraps[seams_prompts.WARM_UP](lambda one: "warm", online) == "warm"
    assert made == [online.renderer]


def test_parts_of_a_message_are_pruned_each(config: Any) -> None:
    parts = [{"type": "text", "text": LONG}, {"type": "text", "text": "end"}]
    chats = Chats(config, pruning_of(LengthScores()))
    request = chats.request([{"role": "user", "content": parts}, LAST])
    assert chats.render(request).startswith(f"user: {SHORT}")


class Passing:
    """vLLM's function: notes the prompts or messages that it is given."""

    def __init__(self) -> None:
        self.given: Any = None

    async def __call__(self, online: Any, request: Any, given: Any, *rest: Any) -> Any:
        self.given = given
        tokens = [{"prompt_token_ids": [0] * len(one)} for one in given]
        return (given, tokens) if rest else tokens


def given_to_vllm(seam: Any, given: Any, *rest: Any) -> Any:
    """What passes on to vLLM of a request's prompts or messages."""
    original = Passing()
    around = compat_prompt.prune_online(lambda renderer: pruning_of(LengthScores()))[seam]
    request = SimpleNamespace(vllm_xargs=HALF)
    asyncio.run(around(original, SimpleNamespace(renderer=None), request, given, *rest))
    return original.given


def test_parts_that_can_be_read_only_once_are_read_once() -> None:
    parts = iter([{"type": "text", "text": LONG}, {"type": "image_url", "image_url": {}}])
    messages = [{"role": "user", "content": parts}, LAST]
    given = given_to_vllm(seams_prompts.PREPROCESS_CHAT, messages, "template")
    assert given[0]["content"][0]["text"] == SHORT
    assert given[0]["content"][1] == {"type": "image_url", "image_url": {}}


@pytest.mark.parametrize("place", ["documents", "chat_template_kwargs"])
def test_documents_are_pruned_for_the_template_and_put_back(config: Any, place: str) -> None:
    documents = [{"title": "t", "text": LONG}]
    sent = documents if place == "documents" else {"documents": documents, "more": 1}
    chats = Chats(config, pruning_of(LengthScores()))
    request = chats.request([LAST], **{place: sent})
    before = getattr(request, place)
    assert chats.render(request) == rendered_chat([LAST], f"[t] {SHORT}\n")
    assert getattr(request, place) is before
    assert before == sent


def test_texts_are_pruned_and_token_ids_left_alone(config: Any) -> None:
    ids = [31, 32, 33]
    pruned, same, again = complete(config, pruning_of(LengthScores()), [LONG, ids, LONG])
    assert same == text_of({"prompt_token_ids": ids})
    assert pruned == again == SHORT


def test_embeddings_are_left_alone() -> None:
    given = given_to_vllm(seams_prompts.PREPROCESS_COMPLETION, [LONG, b"embeds", [1, 2, 3]])
    assert given == [SHORT, b"embeds", [1, 2, 3]]


def test_what_fills_a_gap_loses_marks_alone(config: Any) -> None:
    pruning = pruning_of(LengthScores(), keep=0.5)
    assert complete(config, pruning, [f"<kprune>{LONG}</kprune>"], suffix="}") == [LONG]


def test_what_only_counts_tokens_loses_marks_alone(config: Any) -> None:
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeCompletionRequest

    online = online_renderer(config, pruning_of(LengthScores(), keep=0.5))
    request = TokenizeCompletionRequest(prompt="in the body")
    prompts = [f"<kprune>{LONG}</kprune>"]
    (prompt,) = asyncio.run(online.preprocess_cmpl(request, prompts))
    assert text_of(prompt) == LONG


def test_bad_options_and_marks_are_the_clients_error(config: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    pruning = pruning_of(LengthScores())
    with pytest.raises(VLLMValidationError, match="keep: got 7") as error:
        complete(config, pruning, ["a"], vllm_xargs={"kprune_keep": 7})
    assert isinstance(error.value, KPruneError)
    chats = Chats(config, pruning)
    with pytest.raises(VLLMValidationError, match="not closed"):
        chats.render(chats.request([{"role": "user", "content": "<kprune>a"}]))


def test_the_headers_are_told_what_the_model_saw(config: Any) -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    report = RequestReport()
    online = online_renderer(config, pruning_of(LengthScores()))

    async def run() -> Any:
        current_report.set(report)
        request = CompletionRequest(prompt="in the body", vllm_xargs=HALF)
        return await online.preprocess_cmpl(request, [LONG, [1, 2]])

    rendered = asyncio.run(run())
    assert report.kept == sum(len(one["prompt_token_ids"]) for one in rendered)
    assert report.original > report.kept
    assert report.segments == 1


@pytest.fixture
def llm(config: Any) -> Any:
    """An `LLM` without an engine: its methods give the texts that they would add to one."""
    return offline_llm(config, pruning_of(LengthScores()))


def params(extra_args: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, extra_args=extra_args)


def add(llm: Any, prompts: Any, each: Any) -> list[str]:
    texts: list[str] = llm._add_completion_requests(prompts, each, use_tqdm=False)
    return texts


def test_every_prompt_of_an_llm_has_the_options_of_its_own_parameters(llm: Any) -> None:
    ids = [31, 32]
    given = [LONG, {"prompt": LONG, "cache_salt": "s"}, {"prompt_token_ids": ids}, LONG]
    each = [params(HALF), params(HALF), params(HALF), params(None)]
    assert add(llm, given, each) == [SHORT, SHORT, text_of({"prompt_token_ids": ids}), LONG]
    assert add(llm, LONG, params(HALF)) == [SHORT]


def test_other_keys_of_a_prompt_are_kept() -> None:
    around = compat_prompt.prune_offline(lambda renderer: pruning_of(LengthScores()))
    given = around[seams_prompts.OFFLINE_PROMPTS](
        lambda llm, prompts, params: prompts,
        SimpleNamespace(renderer=None),
        [{"prompt": LONG, "more": 1}],
        params(HALF),
    )
    assert given == [{"prompt": SHORT, "more": 1}]


def test_chats_of_an_llm_are_pruned(llm: Any) -> None:
    (text,) = llm._add_chat_requests([PAST, LAST], params(HALF), use_tqdm=False)
    assert text == rendered_chat([{**PAST, "content": SHORT}, LAST])


def test_a_pooling_model_gets_its_texts_as_they_are(llm: Any) -> None:
    from vllm import PoolingParams

    assert add(llm, LONG, PoolingParams(task="embed")) == [LONG]


def test_beams_of_an_llm_lose_their_marks(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.sampling_params import BeamSearchParams

    class Rendered(Exception):
        """Ends the search, which would need an engine."""

    render = llm._preprocess_cmpl

    def stop(prompts: Any) -> Any:
        raise Rendered([text_of(one) for one in render(prompts)])

    monkeypatch.setattr(llm, "_preprocess_cmpl", stop)
    prompts = [{"prompt": f"<kprune>{LONG}</kprune>"}]
    with pytest.raises(Rendered) as ended:
        llm.beam_search(prompts, BeamSearchParams(beam_width=2, max_tokens=1))
    assert ended.value.args == ([LONG],)


@pytest.mark.parametrize(("prompts", "count"), [(1, 2), (2, 1)])
def test_more_parameters_than_prompts_are_vllms_to_refuse(
    llm: Any, prompts: int, count: int
) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="must be the same") as error:
        add(llm, [LONG] * prompts, [params(HALF)] * count)
    assert not isinstance(error.value, KPruneError)


def test_what_prunes_is_made_once_for_a_renderer() -> None:
    renderer, made = SimpleNamespace(), []

    def make(one: Any) -> Any:
        made.append(one)
        return None

    for _ in range(3):
        assert compat_prompt.attached(renderer, make) is None
    assert made == [renderer]


def test_a_server_that_did_not_ask_for_kprune_has_no_pruning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(NAMED, raising=False)
    model = SimpleNamespace(model="some/model", logits_processors=None)
    config = SimpleNamespace(additional_config={}, model_config=model)
    assert prune_hooks.pruning_of(SimpleNamespace(config=config)) is None
