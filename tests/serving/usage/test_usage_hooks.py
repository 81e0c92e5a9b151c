"""Which answers are counted, with vLLM's own `OutputProcessor`, and the options of a server."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny_folders import save_model

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat import features
from vllm_kprune.serving.compat.sources import installed_sources
from vllm_kprune.serving.environment import COUNTER_FOLDER, NAMED, USAGE_ROWS

pytestmark = pytest.mark.usefixtures("vllm_ready")

ROWS = 50


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that counts: its folder."""
    from vllm_kprune.serving.usage.counts import process_counts

    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    monkeypatch.setenv(USAGE_ROWS, str(ROWS))
    process_counts.cache_clear()
    yield tmp_path
    process_counts.cache_clear()


class FrontEnd:
    """vLLM's output processor, and the requests that it was given."""

    def __init__(self) -> None:
        from vllm.v1.engine.output_processor import OutputProcessor

        self.processor = OutputProcessor(tokenizer=None, log_stats=False)

    def ask(self, name: str, n: int = 1, pooling: bool = False) -> None:
        from vllm.pooling_params import PoolingParams
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.parallel_sampling import ParentRequest

        request = EngineCoreRequest(
            request_id=f"{name}-1",
            prompt_token_ids=[1, 2, 3],
            mm_features=None,
            sampling_params=None if pooling else SamplingParams(n=n),
            pooling_params=PoolingParams() if pooling else None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=name,
        )
        if n == 1:
            self.processor.add_request(request, None)
            return
        parent = ParentRequest(request)
        for index in range(n):
            child, params = parent.get_child_info(index)
            copy = EngineCoreRequest(**{**_fields(request), "request_id": child})
            copy.sampling_params = params
            self.processor.add_request(copy, None, parent, index)

    def give(self, request_id: str, ids: list[int], ends: bool = True, **more: Any) -> None:
        from vllm.v1.engine import EngineCoreOutput, FinishReason

        reason = FinishReason.LENGTH if ends else None
        output = EngineCoreOutput(request_id, ids, finish_reason=reason, **more)
        self.processor.process_outputs([output])


def _fields(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}


@pytest.fixture
def front_end() -> FrontEnd:
    return FrontEnd()


def counted(folder: Path) -> tuple[Counter[int], int]:
    """Requests by token id, and all requests."""
    from vllm_kprune.serving.usage.counts import released

    totals = released(folder, ROWS, 1)
    return Counter({i: n for i, n in enumerate(totals.in_requests.tolist()) if n}), totals.requests


def test_an_answer_counts_when_it_ends_and_its_prompt_never(
    counting: Path, front_end: FrontEnd
) -> None:
    front_end.ask("a")
    front_end.give("a-1", [7, 8], ends=False)
    assert counted(counting) == (Counter(), 0)
    front_end.give("a-1", [8])
    assert counted(counting) == (Counter({7: 1, 8: 1}), 1)


def test_several_answers_are_one_request_and_nothing_of_it_stays(
    counting: Path, front_end: FrontEnd
) -> None:
    front_end.ask("a", n=3)
    for index, ids in enumerate([[7, 8], [8, 9], [7]]):
        front_end.give(f"{index}_a-1", ids)
    front_end.ask("b")
    front_end.give("b-1", [7])
    assert counted(counting) == (Counter({7: 2, 8: 1, 9: 1}), 2)
    assert not front_end.processor.parent_requests
    assert not front_end.processor.request_states


def test_what_was_aborted_or_pooled_is_not_counted(counting: Path, front_end: FrontEnd) -> None:
    import torch

    front_end.ask("a")
    front_end.give("a-1", [7], ends=False)
    front_end.processor.abort_requests(["a-1"], internal=True)
    front_end.ask("b", pooling=True)
    front_end.give("b-1", [], pooling_output=torch.zeros(2))
    assert counted(counting) == (Counter(), 0)


def test_the_steps_of_a_beam_search_are_not_answers(counting: Path, front_end: FrontEnd) -> None:
    for name in ("cmpl-1-77-beam-0", "cmpl-1-77-beam-12"):
        front_end.ask(name)
        front_end.give(f"{name}-1", [7])
    assert counted(counting) == (Counter(), 0)
    # By the name that vLLM gives them.
    source = installed_sources()._read("vllm/entrypoints/generate/beam_search/online.py")
    assert '-beam-{i}"' in (source or "")


def test_a_server_that_did_not_ask_counts_nothing(
    tmp_path: Path, front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    monkeypatch.delenv(USAGE_ROWS, raising=False)
    front_end.ask("a")
    front_end.give("a-1", [7])
    assert list(tmp_path.iterdir()) == []


def test_counting_needs_a_route_that_tells_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_kprune.serving.asked import asked_features
    from vllm_kprune.serving.settings import resolve_settings

    monkeypatch.delenv(NAMED, raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    options = {"kprune": {"usage": True}}
    with pytest.raises(KPruneError, match=r"--kprune-usage: .*--plugin kprune"):
        resolve_settings(options)
    monkeypatch.setenv(NAMED, "kprune")
    settings = resolve_settings({"kprune": {"usage": True, "usage_floor": 30}})
    assert (settings.usage.counted, settings.usage.floor) == (True, 30)
    assert features.USAGE in asked_features(settings, front_end="server")
    assert features.USAGE not in asked_features(resolve_settings({}), front_end="server")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"usage_floor": 30}, "--kprune-usage-floor needs --kprune-usage"),
        ({"usage": True, "usage_floor": 5}, "--kprune-usage-floor: got 5, expected .*20 or more"),
        ({"usage": "yes"}, "--kprune-usage: got 'yes', expected true or false"),
        ({"usage_file": "a.json"}, "--kprune-usage-file needs --kprune-profile"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_kprune.serving.settings import resolve_settings

    monkeypatch.setenv(NAMED, "kprune")
    with pytest.raises(KPruneError, match=message):
        resolve_settings({"kprune": options})


def test_a_usage_file_is_evidence_of_a_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_kprune.profile import UsageFile
    from vllm_kprune.serving.settings import resolve_settings

    given = {"profile": "enko", "usage_file": ["a.json"]}
    assert resolve_settings({"kprune": given}).vocabulary.corpora == (UsageFile(Path("a.json")),)


def test_counting_starts_with_a_tokenizer_that_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_kprune.serving.usage.hooks import start_counting

    for name in (COUNTER_FOLDER, USAGE_ROWS):
        monkeypatch.setenv(name, str(tmp_path))
    folder = save_model(tmp_path / "model")
    model = SimpleNamespace(
        tokenizer=str(folder), tokenizer_revision=None, get_vocab_size=lambda: ROWS
    )
    start_counting(SimpleNamespace(model_config=model))
    assert os.environ[USAGE_ROWS] == str(ROWS)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(KPruneError, match=r"--kprune-usage: .* has no tokenizer\.json"):
        start_counting(SimpleNamespace(model_config=model))
