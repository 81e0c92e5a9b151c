"""Find out what an endpoint can do, with a few requests of one token.

Servers refuse fields that they do not know, or ignore them. The first request has every optional
field. If the server refuses, the field that its message names is dropped, otherwise the least
common one. A field that was accepted but has no effect on the answer counts as missing too.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import Abilities, Answer, Request
from vllm_kprune.compare.endpoint.refusals import Refused, TooLong, Trouble, page_in
from vllm_kprune.errors import KPruneError, nearest

__all__ = ["find_model", "probe"]

# Optional abilities and the words that name them in a refusal, the least common first. The order
# matters twice: a refusal that names `prompt_logprobs` also contains `logprobs`.
_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "token_ids": ("return_token_ids", "token_ids"),
    "prompt_logprobs": ("prompt_logprobs",),
    "logprobs": ("logprobs",),
    "seed": ("seed",),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
}
_STREAM = {"stream_usage": ("stream_options", "include_usage"), **_OPTIONAL}
_LIST_SECONDS = 20.0
_TOKEN_SECONDS = 60.0  # the first request may trigger compilation
_SILENT = "not in its answers"


async def find_model(client: Client, wanted: str | None) -> str:
    """The name of the model: the wanted one, or the only one that is served.

    A wanted name is checked if the server lists its models.
    """
    listed, refusal = await _listed(client)
    rows = listed.get("data") if isinstance(listed, dict) else None
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    names = [str(row["id"]) for row in rows if isinstance(row.get("id"), str)]
    # vLLM lists LoRA adapters as further models, with their base as `parent`.
    adapters = {row.get("id") for row in rows if row.get("parent")}
    bases = [name for name in names if name not in adapters]
    side, option = client.endpoint.name, f"{client.endpoint.option}-model"
    if wanted is not None:
        if names and wanted not in names:
            raise KPruneError(f"{option}: {wanted!r} is not served; {nearest(wanted, names)}")
        return wanted
    if len(bases) != 1:
        page = page_in(listed.encode()) if isinstance(listed, str) else None
        found = refusal or page
        nothing = f"lists no model ({found})" if found else "lists no model"
        what = f"serves {len(bases)} models ({', '.join(bases[:8])})" if bases else nothing
        raise KPruneError(
            f"the {side} endpoint ({client.endpoint.url}) {what}; name one with {option}"
        )
    # `parse` replaced what was not text, so sending the name back would ask for another model.
    if "\ufffd" in bases[0]:
        raise KPruneError(
            f"the {side} endpoint ({client.endpoint.url}) lists a model whose name is not valid "
            f"text ({bases[0][:64]!r}); serve it under another name"
        )
    return bases[0]


async def _listed(client: Client) -> tuple[Any, str | None]:
    """The list of models, or why the server provides none."""
    try:
        with client.within(_LIST_SECONDS):
            return await client.fetch("/v1/models"), None
    except (Refused, TooLong) as error:
        return None, str(error)
    except Trouble as trouble:
        raise KPruneError(
            f"the {client.endpoint.name} endpoint ({client.endpoint.url}) is not ready: {trouble}; "
            "try again once the server has started"
        ) from None


async def probe(client: Client) -> Abilities:
    """Find out what the endpoint can do; a `KPruneError` if it can neither chat nor complete."""
    with client.within(_TOKEN_SECONDS):
        return await _probe(client)


async def _probe(client: Client) -> Abilities:
    missing: dict[str, str] = {}
    for kind, request in _REQUESTS.items():
        missing |= await _probe_kind(client, kind, request)
    if {"chat", "completion"} <= missing.keys():
        raise KPruneError(
            f"the {client.endpoint.name} endpoint ({client.endpoint.url}) answers neither chats "
            f"({missing['chat']}) nor completions ({missing['completion']})"
        )
    kind = "completion" if "chat" in missing else "chat"
    missing |= await _probe_stream(client, replace(_REQUESTS[kind], stream=True), missing)
    for name in ("kprune", "metrics"):
        if not _has(await client.get(f"/{name}"), name):
            missing[name] = f"the endpoint has no /{name}"
    return Abilities(missing)


_REQUESTS: dict[Literal["chat", "completion"], Request] = {
    "chat": Request(
        "chat",
        messages=({"role": "user", "content": "Hi"},),
        max_tokens=1,
        seed=0,
        logprobs=2,
        prompt_logprobs=0,
    ),
    "completion": Request(
        "completion", prompt="Once upon", max_tokens=1, seed=0, logprobs=2, prompt_logprobs=0
    ),
}


async def _probe_kind(client: Client, kind: str, request: Request) -> dict[str, str]:
    """The abilities that one kind of request lacks; the kind itself if every variant is refused."""
    found, answer = await _without_refused(client, request, {}, _OPTIONAL)
    if answer is None:
        return {kind: found["refusal"]}
    reported = {
        "logprobs": answer.logprobs,
        "prompt_logprobs": answer.prompt_logprobs,
        "token_ids": answer.ids,
        "usage": answer.completion_tokens,
    }
    # `found` last: the server's own refusal says more than "not in its answers".
    return {name: _SILENT for name, value in reported.items() if value is None} | found


async def _probe_stream(
    client: Client, request: Request, missing: Mapping[str, str]
) -> dict[str, str]:
    found, answer = await _without_refused(client, request, missing, _STREAM)
    if answer is None:
        return {"stream": found["refusal"], "stream_usage": found["refusal"]}
    silent = {"stream_usage": _SILENT} if answer.completion_tokens is None else {}
    # Only what streaming adds: the other fields were probed without a stream.
    return silent | {k: v for k, v in found.items() if k == "stream_usage"}


async def _without_refused(
    client: Client,
    request: Request,
    missing: Mapping[str, str],
    optional: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, str], Answer | None]:
    """The abilities that the server refused until it answered, and its answer.

    Without an answer, only the first `refusal` is returned: a server that does not support the kind
    of request refuses every variant, which says nothing about the fields.
    """
    refused: dict[str, str] = {}
    first = ""
    # Ends, because each refusal drops one ability.
    while True:
        client.abilities = Abilities({**missing, **refused})
        try:
            answer = await client.try_again(lambda: client.ask_once(request))
            return refused, answer
        except Trouble as trouble:
            if trouble.kind in ("timeout", "busy"):  # says nothing about its abilities
                raise KPruneError(
                    f"the {client.endpoint.name} endpoint ({client.endpoint.url}) is not ready: a "
                    f"request for one token failed: {trouble}; try again later"
                ) from None
            # A server error or a lost connection counts as a refusal of this kind of request.
            return {"refusal": str(trouble)}, None
        except Refused as error:
            first = first or str(error)
            left = [name for name in optional if client.abilities.can(name)]
            if not left:
                return {"refusal": first}, None
            named = [n for n in left if any(word in error.words for word in optional[n])]
            refused[(named or left)[0]] = f"refused ({error})"


def _has(value: object, name: str) -> bool:
    """Whether this is the expected content, and not a page that a server sends for any path."""
    if name == "kprune":
        return isinstance(value, dict) and "active" in value
    return isinstance(value, str) and "# TYPE" in value
