"""The client against a server that misbehaves: real HTTP, but without real waiting."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from support.mock_answers import Habits, reply
from support.mock_endpoint import MockEndpoint

from vllm_kprune.compare.endpoint import probe as probing
from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import (
    Endpoint,
    EndpointDied,
    Request,
    answer_as_json,
    answer_from_json,
    api_key,
    clean_url,
    shared_key,
)
from vllm_kprune.compare.endpoint.probe import find_model, probe
from vllm_kprune.errors import KPruneError

T = TypeVar("T")
CHAT = Request("chat", messages=({"role": "user", "content": "바다는 왜 짠가요?"},), seed=1)
SECRET = "sk-not-to-be-told"


def with_client(
    mock: MockEndpoint, work: Callable[[Client], Coroutine[Any, Any, T]], **settings: Any
) -> T:
    """Run work with a client that waits a millisecond where it would wait half a second."""
    endpoint = Endpoint("pruned", f"{mock.url}/v1", mock.habits.model, SECRET)

    async def run() -> T:
        client = Client(endpoint, **{"first_wait": 0.001, "timeout": 20, **settings})
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def test_an_answer_has_all_that_was_asked_for() -> None:
    request = replace(CHAT, logprobs=2, prompt_logprobs=0)
    with MockEndpoint() as mock:
        answer = with_client(mock, lambda client: client.ask(request))
        said = reply(mock.habits, mock.asked[0])
    assert answer.text == said["choices"][0]["message"]["content"]
    assert answer.completion_tokens == len(answer.text.split())
    assert answer.token_texts is not None and "".join(answer.token_texts) == answer.text
    assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_texts)
    assert answer.top is not None and answer.ids is not None
    assert answer.prompt_logprobs is not None and answer.prompt_logprobs[0] is None
    assert answer_from_json(answer_as_json(answer)) == answer


def test_a_streamed_answer_says_the_same_and_when_each_token_came() -> None:
    with MockEndpoint() as mock:
        whole = with_client(mock, lambda client: client.ask(CHAT))
        streamed = with_client(mock, lambda client: client.ask(replace(CHAT, stream=True)))
    assert streamed.text == whole.text
    assert streamed.completion_tokens == whole.completion_tokens
    assert streamed.ttft_ms is not None
    assert len(streamed.itl_ms) == len(whole.text.split()) - 1


@pytest.mark.parametrize(
    ("habits", "told"),
    [
        (Habits(words_per_chunk=3), "streams several tokens per chunk"),
        (
            Habits(words_per_chunk=3, silent=("usage",)),
            "reports neither token ids nor token counts",
        ),
    ],
    ids=["counted", "uncounted"],
)
def test_pieces_of_several_tokens_are_not_taken_for_tokens(habits: Habits, told: str) -> None:
    with MockEndpoint(habits) as mock:
        streamed = with_client(mock, lambda client: client.ask(replace(CHAT, stream=True)))
    assert streamed.text and streamed.ttft_ms is not None
    assert streamed.itl_ms == ()
    assert streamed.untimed is not None and told in streamed.untimed


def test_attempts_before_the_answer_are_told() -> None:
    with MockEndpoint(Habits(rate_limited=2)) as mock:
        assert with_client(mock, lambda client: client.ask(CHAT)).retries == 2
        assert with_client(mock, lambda client: client.ask(CHAT)).retries == 0


def test_retry_after_nothing_is_no_leave_to_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with MockEndpoint(Habits(rate_limited=3, retry_after="0")) as mock:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        with_client(mock, lambda client: client.ask(CHAT), first_wait=10.0)
    longer = [wait for wait in waits if wait > 1]
    assert len(longer) == 3
    assert all(wait >= 0.99 * 5 * 2**number for number, wait in enumerate(longer))


def test_requests_that_waited_for_one_limit_do_not_begin_at_one_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def ask(client: Client) -> None:
        client._not_before = time.monotonic() + 100
        await asyncio.gather(*(client.ask(CHAT) for _ in range(4)))

    with MockEndpoint() as mock:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        with_client(mock, ask)
    late = [wait for wait in waits if wait > 90]
    assert len(late) == 4
    assert max(late) - min(late) > 0.1


@pytest.mark.parametrize("status", [402, 404])
def test_an_endpoint_without_the_model_or_the_money_is_as_good_as_dead(status: int) -> None:
    with (
        MockEndpoint(Habits(status=status)) as mock,
        pytest.raises(EndpointDied, match=f"HTTP {status}"),
    ):
        with_client(mock, lambda client: client.ask(CHAT))


@pytest.mark.parametrize(("status", "final"), [(400, True), (413, True), (422, True), (501, False)])
def test_only_refusals_of_the_request_itself_are_final(status: int, final: bool) -> None:
    with MockEndpoint(Habits(status=status)) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT))
    assert answer.error is not None and answer.final is final


@pytest.mark.parametrize(
    "habits",
    [Habits(rate_limited=4), Habits(failing=3), Habits(hanging_up=3)],
    ids=["rate limit", "server error", "lost connection"],
)
def test_what_is_over_at_the_next_attempt_costs_no_answer(habits: Habits) -> None:
    with MockEndpoint(habits) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT))
    assert answer.error is None
    assert answer.text


@pytest.mark.parametrize("retry_after", ["0", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-5", "²"])
def test_a_server_may_say_when_to_ask_again_in_seconds_or_as_a_date(retry_after: str) -> None:
    with MockEndpoint(Habits(rate_limited=2, retry_after=retry_after)) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT))
        asked = len(mock.asked)
    assert answer.error is None
    assert asked == 3


def test_a_server_that_wants_to_be_asked_tomorrow_is_not_waited_for() -> None:
    with MockEndpoint(Habits(rate_limited=2, retry_after="86400")) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT))
        asked = len(mock.asked)
    assert answer.error == "HTTP 429: slow down"
    assert asked == 1


def test_a_server_that_hangs_is_left_after_two_attempts() -> None:
    with MockEndpoint(Habits(delay_seconds=0.4)) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT), timeout=0.05)
        asked = len(mock.asked)
    assert answer.error == "no answer in 0.05 s"
    assert asked == 2


def test_a_refusal_is_not_asked_again() -> None:
    with MockEndpoint(Habits(refusing=("seed",))) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT))
        asked = len(mock.asked)
    assert answer.error == "HTTP 400: unknown parameter: seed"
    assert asked == 1


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{not json", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"choices": []}', "without choices"),
        (b'{"choices": [{"text": 7}]}', "invalid choices.0.text"),
        (b'{"choices": [{"text": "' + b"x" * (17 << 20) + b'"}]}', "more than"),
    ],
    ids=["no json", "deep", "empty", "wrong type", "huge"],
)
def test_a_hostile_answer_is_an_error_and_no_answer(body: bytes, error: str) -> None:
    with MockEndpoint(Habits(body=body)) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT), attempts=2)
    assert answer.text == ""
    assert answer.error is not None and error in answer.error


def test_half_a_character_cannot_leave_an_answer() -> None:
    body = b'{"choices": [{"message": {"content": "a\\ud800b"}}]}'
    with MockEndpoint(Habits(body=body)) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT))
    assert answer.text == "a\ufffdb"


def test_an_endpoint_that_no_attempt_reaches_is_dead() -> None:
    with MockEndpoint() as mock:
        mock.die()
        with pytest.raises(EndpointDied, match=r"the pruned endpoint .* no longer answers"):
            with_client(mock, lambda client: client.ask(CHAT))


def test_one_prompt_that_breaks_connections_does_not_make_the_endpoint_dead() -> None:
    async def ask(client: Client) -> tuple[str | None, str | None]:
        poison = replace(CHAT, messages=({"role": "user", "content": "poison"},))
        return (await client.ask(poison)).error, (await client.ask(CHAT)).error

    with MockEndpoint(Habits(poison="poison")) as mock:
        bad, good = with_client(mock, ask)
    assert bad is not None and "disconnected" in bad
    assert good is None


def test_requests_given_up_in_a_row_make_the_endpoint_dead() -> None:
    async def ask(client: Client) -> None:
        for _ in range(5):
            await client.ask(CHAT)

    with MockEndpoint(Habits(failing=10**6)) as mock, pytest.raises(EndpointDied, match="oops"):
        with_client(mock, ask, attempts=2)


def test_no_more_requests_are_under_way_than_allowed() -> None:
    async def ask(client: Client) -> None:
        await asyncio.gather(*(client.ask(CHAT) for _ in range(12)))

    with MockEndpoint(Habits(delay_seconds=0.01)) as mock:
        with_client(mock, ask, concurrency=3)
    assert mock.most_at_once == 3


def test_a_wrong_key_is_the_users_mistake_and_is_not_told() -> None:
    with (
        MockEndpoint(Habits(key="another")) as mock,
        pytest.raises(KPruneError, match="KPRUNE_PRUNED_API_KEY") as caught,
    ):
        with_client(mock, lambda client: client.ask(CHAT))
    assert "wrong key" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(Endpoint("pruned", mock.url, "mock", SECRET))


def test_keys_come_from_the_environment() -> None:
    environment = {"KPRUNE_PRUNED_API_KEY": "own", "OPENAI_API_KEY": "common"}
    assert api_key("pruned", environment) == "own"
    assert api_key("original", environment) == "common"
    assert api_key("original", {}) == ""


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://host/api/v1", "https://host/api/v1"),
        ("https://host/v1beta/openai", "https://host/v1beta/openai"),
    ],
)
def test_urls_are_given_with_or_without_their_version(given: str, clean: str) -> None:
    assert clean_url("--pruned", given) == clean


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host", "http://", "http://u:p@host", "http://h:x", "http://h?k"],
)
def test_other_urls_are_mistakes(url: str) -> None:
    with pytest.raises(KPruneError, match="--pruned"):
        clean_url("--pruned", url)


@pytest.mark.parametrize(
    ("url", "local"),
    [("http://localhost/v1", True), ("http://[::1]:1/v1", True), ("http://10.0.0.1/v1", False)],
)
def test_only_this_machine_is_reached_without_proxies(url: str, local: bool) -> None:
    assert Endpoint("pruned", url, "").is_local is local


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with MockEndpoint() as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT), attempts=1)
    assert answer.error is None


def test_the_only_model_is_found_by_itself() -> None:
    with MockEndpoint(Habits(model="enko")) as mock:
        assert with_client(mock, lambda client: find_model(client, None)) == "enko"


def test_adapters_beside_a_model_are_not_taken_for_models() -> None:
    served = {"data": [{"id": "base"}, {"id": "lora", "parent": "base"}]}
    with MockEndpoint(Habits(paths={"/v1/models": served})) as mock:
        assert with_client(mock, lambda client: find_model(client, None)) == "base"


def test_of_several_models_one_must_be_named() -> None:
    served = {"data": [{"id": "small"}, {"id": "large"}]}
    with MockEndpoint(Habits(paths={"/v1/models": served})) as mock:
        assert with_client(mock, lambda client: find_model(client, "large")) == "large"
        with pytest.raises(KPruneError, match=r"2 models .*--pruned-model"):
            with_client(mock, lambda client: find_model(client, None))
        with pytest.raises(KPruneError, match="did you mean 'large'"):
            with_client(mock, lambda client: find_model(client, "larg"))


def test_an_endpoint_that_can_do_everything_lacks_nothing() -> None:
    paths = {"/kprune": {"active": True}, "/metrics": "# TYPE vllm gauge\n"}
    with MockEndpoint(Habits(paths=paths)) as mock:
        assert with_client(mock, probe).missing == {}


def test_what_an_endpoint_ignores_is_missing() -> None:
    silent = ("logprobs", "prompt_logprobs", "return_token_ids", "usage")
    with MockEndpoint(Habits(silent=silent)) as mock:
        missing = with_client(mock, probe).missing
    lacking = {"logprobs", "prompt_logprobs", "token_ids", "usage", "stream_usage"}
    assert lacking | {"kprune", "metrics"} == missing.keys()
    assert missing["usage"] == "not in its answers"


def test_what_an_endpoint_refuses_is_missing_and_never_sent_again() -> None:
    refusing = ("return_token_ids", "prompt_logprobs", "seed", "max_tokens")
    with MockEndpoint(Habits(refusing=refusing)) as mock:

        async def work(client: Client) -> tuple[set[str], str | None]:
            client.abilities = await probe(client)
            before = len(mock.asked)
            error = (await client.ask(replace(CHAT, logprobs=2, prompt_logprobs=0))).error
            return {name for body in mock.asked[before:] for name in body}, error

        sent, error = with_client(mock, work)
    assert error is None
    assert sent.isdisjoint(refusing)
    assert {"logprobs", "max_completion_tokens"} <= sent


def test_a_model_without_a_chat_template_completes() -> None:
    with MockEndpoint(Habits(chats=False)) as mock:
        missing = with_client(mock, probe).missing
    assert "no chat template" in missing["chat"]
    assert {"completion", "logprobs", "token_ids"}.isdisjoint(missing)


def test_paths_that_a_server_lacks_are_none() -> None:
    with MockEndpoint(Habits(paths={"/metrics": "# TYPE x gauge\nx 1\n"})) as mock:
        assert with_client(mock, lambda client: client.get("/kprune")) is None
        assert "x 1" in with_client(mock, lambda client: client.get("/metrics"))


def test_a_server_that_loads_is_not_said_to_have_no_model() -> None:
    with (
        MockEndpoint(Habits(get_status=503)) as mock,
        pytest.raises(KPruneError, match="not ready: HTTP 503: still loading"),
    ):
        with_client(mock, lambda client: find_model(client, None), attempts=2)


def test_a_server_that_hangs_before_anything_is_measured_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probing, "_LIST_SECONDS", 0.05)
    with (
        MockEndpoint(Habits(get_seconds=0.3)) as mock,
        pytest.raises(KPruneError, match=r"not ready: no answer in 0\.05 s"),
    ):
        with_client(mock, lambda client: find_model(client, None))


def test_a_server_that_is_busy_is_not_said_to_lack_anything() -> None:
    with (
        MockEndpoint(Habits(rate_limited=10**6)) as mock,
        pytest.raises(KPruneError, match=r"not ready: .* HTTP 429"),
    ):
        with_client(mock, probe, attempts=2)


def test_a_server_without_a_list_of_models_says_why() -> None:
    with (
        MockEndpoint(Habits(get_status=405)) as mock,
        pytest.raises(KPruneError, match=r"lists no model \(HTTP 405: still loading\)"),
    ):
        with_client(mock, lambda client: find_model(client, None))


def test_a_model_whose_name_is_no_text_is_refused() -> None:
    with (
        MockEndpoint(Habits(model="a\ud800b")) as mock,
        pytest.raises(KPruneError, match="whose name is not valid text"),
    ):
        with_client(mock, lambda client: find_model(client, None))


def test_half_a_character_cannot_come_in_a_token() -> None:
    body = (
        b'{"choices": [{"text": "\\ud83d\\ude00", "logprobs": '
        b'{"tokens": ["a\\udc00"], "token_logprobs": [-1], "top_logprobs": [{"\\ud800": -1}]}}]}'
    )
    with MockEndpoint(Habits(body=body)) as mock:
        answer = with_client(mock, lambda client: client.ask(CHAT))
    assert answer.text == "\N{GRINNING FACE}"
    assert answer.token_texts == ("a\ufffd",)
    assert answer.top == ({"\ufffd": -1},)


def test_a_second_client_of_an_endpoint_has_the_same_time_limit() -> None:
    async def ask(client: Client) -> str | None:
        other = client.again(concurrency=1)
        try:
            return (await other.ask(CHAT)).error
        finally:
            await other.close()

    with MockEndpoint(Habits(delay_seconds=0.4)) as mock:
        assert with_client(mock, ask, timeout=0.05) == "no answer in 0.05 s"


@pytest.mark.parametrize("key", ["sk-열쇠", "sk-1\nX-Header: 2", "sk\u200b"])
def test_a_key_that_no_header_can_have_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(KPruneError, match="KPRUNE_PRUNED_API_KEY has characters") as caught:
        api_key("pruned", {"KPRUNE_PRUNED_API_KEY": key})
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("pruned", "keys", "warned"),
    [
        ("https://two/v1", {"OPENAI_API_KEY": "k"}, True),
        ("https://one/v1", {"OPENAI_API_KEY": "k"}, False),
        ("https://two/v1", {"OPENAI_API_KEY": "k", "KPRUNE_PRUNED_API_KEY": "own"}, False),
        ("https://two/v1", {}, False),
    ],
    ids=["both hosts", "one host", "own key", "no key"],
)
def test_one_key_for_two_hosts_is_warned_of(
    pruned: str, keys: dict[str, str], warned: bool
) -> None:
    warning = shared_key("https://one/v1", pruned, keys)
    assert (warning is not None) is warned
