"""The settings of a run as JSON: what a resumed run must share, and what a run can be rebuilt from.

Options of suites have keys such as `latency.rounds`, and those of a side begin with its key:
`original`, `pruned`, `pruned2`, ... A side's name is another thing: a user may choose it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vllm_kprune.compare.endpoint.extras import Extras
from vllm_kprune.compare.endpoint.messages import ORIGINAL, PRUNED, Endpoint
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.run import Suite
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError

__all__ = ["endpoints_of", "options_in", "side_keys", "suites_in", "with_options_of"]

T = TypeVar("T")
_SIDES = "sides"
_USUAL = [ORIGINAL, PRUNED]


def side_keys(sides: int) -> list[str]:
    """How keys of each side begin.

    >>> side_keys(3)
    ['original', 'pruned', 'pruned2']
    """
    return [ORIGINAL, PRUNED, *(f"{PRUNED}{number}" for number in range(2, sides))][:sides]


def with_options_of(
    endpoints: Sequence[Endpoint],
    urls: Sequence[str],
    options: CommonOptions,
    suites: Sequence[Suite] = (),
) -> dict[str, Any]:
    """The settings; `urls` stand for those of the endpoints.

    All built-in suites are included, so that a resumed run may choose other suites.
    """
    settings = _as_json(options)
    configured: Mapping[str, Suite] = {**SUITES, **{suite.name: suite for suite in suites}}
    for name, suite in configured.items():
        # The point keeps an option of a suite apart from a common one of the same name.
        settings |= {f"{name}.{key}": value for key, value in _as_json(suite.options).items()}
    for key, one, url in zip(side_keys(len(endpoints)), endpoints, urls, strict=True):
        settings |= {key: url, f"{key}_model": one.model}
        settings |= {f"{key}_{name}": value for name, value in one.extras.settings.items()}
    names = [one.name for one in endpoints]
    return settings | ({_SIDES: names} if names != _USUAL else {})


def endpoints_of(settings: Mapping[str, Any]) -> list[Endpoint]:
    """The endpoints of a kept run, without keys, headers and queries, which are not kept."""
    names = settings.get(_SIDES, _USUAL)
    if not isinstance(names, list) or len(names) < len(_USUAL):
        raise _damaged(_SIDES)
    found = []
    for key, name in zip(side_keys(len(names)), names, strict=True):
        url, model = settings.get(key), settings.get(f"{key}_model")
        body = settings.get(f"{key}_extra_body", {})
        if not isinstance(url, str) or not isinstance(model, str) or not isinstance(body, dict):
            raise _damaged(key)
        found.append(Endpoint(str(name), url, model, extras=Extras(body)))
    return found


def options_in(settings: Mapping[str, Any]) -> CommonOptions:
    """The common options of a kept run."""
    return _from_json(CommonOptions(), settings, "")


def suites_in(settings: Mapping[str, Any], configured: Mapping[str, Suite]) -> list[Suite]:
    """The suites with the options that a kept run gave them."""
    return [
        suite.configured(_from_json(suite.options, settings, f"{name}."))
        for name, suite in configured.items()
    ]


def _as_json(options: Any) -> dict[str, Any]:
    values: dict[str, Any] = TypeAdapter(type(options)).dump_python(options, mode="json")
    return values


def _from_json(default: T, settings: Mapping[str, Any], prefix: str) -> T:
    adapter = TypeAdapter(type(default))
    known = adapter.dump_python(default, mode="json")
    try:
        # What an older run did not have keeps its default.
        return adapter.validate_python(
            {name: settings.get(prefix + name, value) for name, value in known.items()}
        )
    except ValidationError as error:
        raise _damaged(prefix + ".".join(map(str, error.errors()[0]["loc"]))) from None


def _damaged(name: str) -> KPruneError:
    return KPruneError(f"the settings of the saved run are damaged: {name}")
