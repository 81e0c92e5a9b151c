"""The suite `accuracy`: lm-eval's tasks over endpoints, on small files without a hub."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mock_endpoint import MockClient, comparing, run_suite, scoring

from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.suites import lm_eval_loading
from vllm_kprune.compare.suites.accuracy import Accuracy
from vllm_kprune.compare.suites.accuracy_tasks import (
    GROUPS,
    chosen_tasks,
    local_files,
    own_config,
)
from vllm_kprune.errors import KPruneError

# Of lm-eval's tasks: an index of all of them takes seconds.
FOLDERS = (
    *("arc", "click", "global_mmlu/default/ko", "haerae", "ifeval", "kmmlu/default", "kobest"),
    *("mgsm/direct", "mmlu/default"),
)
NUMBERS = [{"prompt": f"{n} + {n} =", "number": 2 * n} for n in range(500, 512)]
CHOICES = [
    {"prompt": f"{n}번 문제. 답:", "choices": ["예", "아니요", "모른다"], "answer": n % 3}
    for n in range(12)
]
TEXTS = [{"prompt": f"Capital {n}?", "answer": f"City {n}"} for n in range(4)]


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


class TestChoosingTasks:
    """This needs no lm-eval."""

    def test_groups_and_single_tasks_keep_their_order(self, tmp_path: Path) -> None:
        write(tmp_path, "mine", TEXTS)
        assert chosen_tasks(["culture", "arc_easy", "boolq"], None) == {
            "culture": GROUPS["culture"],
            "": ("arc_easy", "boolq"),
        }
        assert chosen_tasks([], tmp_path) == {"local": ("mine",)}
        assert list(chosen_tasks([], None)) == list(GROUPS)

    def test_local_tasks_need_a_folder_with_files(self, tmp_path: Path) -> None:
        with pytest.raises(KPruneError, match="--accuracy-data FOLDER"):
            chosen_tasks(["local"], None)
        with pytest.raises(KPruneError, match=r"no file NAME\.jsonl"):
            local_files(tmp_path)
        with pytest.raises(KPruneError, match="no folder"):
            local_files(tmp_path / "none")

    @pytest.mark.parametrize(
        ("rows", "output"),
        [(NUMBERS, "generate_until"), (CHOICES, "multiple_choice"), (TEXTS, "generate_until")],
    )
    def test_the_columns_tell_the_kind(
        self, tmp_path: Path, rows: Sequence[Mapping[str, Any]], output: str
    ) -> None:
        write(tmp_path, "mine", rows)
        config = own_config("mine", tmp_path / "mine.jsonl", tmp_path)
        assert config is not None
        assert config["output_type"] == output and config["task"] == "mine"

    def test_other_columns_are_left_to_lm_eval(self, tmp_path: Path) -> None:
        write(tmp_path, "ifeval", [{"prompt": "Write!", "instruction_id_list": [], "kwargs": []}])
        assert own_config("ifeval", tmp_path / "ifeval.jsonl", tmp_path) is None

    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            ([], "has no rows"),
            ([*TEXTS, {"prompt": "?"}], "mine.jsonl:5 does not fit prompt"),
            ([{"prompt": "?", "choices": ["a", "b"], "answer": 2}], "does not fit"),
            ([{"prompt": "?", "choices": ["a"], "answer": 0}], "does not fit"),
            ([{"prompt": "?", "choices": ["a", 1], "answer": 0}], "does not fit"),
        ],
    )
    def test_files_that_do_not_fit_say_where(
        self, tmp_path: Path, rows: Sequence[Mapping[str, Any]], says: str
    ) -> None:
        write(tmp_path, "mine", rows)
        with pytest.raises(KPruneError, match=says):
            own_config("mine", tmp_path / "mine.jsonl", tmp_path)


def test_without_lm_eval_the_suite_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_kprune.compare.suites.accuracy.find_spec", lambda name: None)
    clients = [MockClient(name, calculates) for name in ("original", "pruned")]
    with comparing(tmp_path, *clients) as context:
        found = Accuracy().run(context)
    assert "pip install 'vllm-kprune[accuracy]'" in found.unavailable["*"]


def calculates(request: Request) -> Answer:
    """Correct sums, and certain about the choice `n % 3`."""
    if request.prompt_logprobs is None and request.max_tokens > 1:
        text = request.messages[-1]["content"] if request.messages else request.prompt
        if text.startswith("Capital"):
            return Answer(text=f" city {text.split()[1].rstrip('?')}.\nor so")
        return Answer(text=f" The sum is 1,000 - no, {2 * int(text.split()[0]):,}.")
    answer = scoring(request)
    number, _, rest = request.prompt.partition("번")
    if answer.prompt_logprobs and rest.endswith(CHOICES[int(number)]["choices"][int(number) % 3]):
        return Answer(
            prompt_tokens=answer.prompt_tokens, prompt_logprobs=(0.0,) * len(request.prompt)
        )
    return answer


def one_wrong(request: Request) -> Answer:
    """The same, except that 500 + 500 is 1."""
    text = request.messages[-1]["content"] if request.messages else request.prompt
    return Answer(text="1") if text.startswith("500 ") else calculates(request)


class TestMeasuring:
    """With lm-eval itself, on local files."""

    @pytest.fixture(autouse=True)
    def _lm_eval(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("lm_eval", reason="lm-eval is not installed")
        from lm_eval.tasks import TaskManager

        tasks = Path(sys.modules["lm_eval.tasks"].__file__ or "").parent
        folders = [tasks / name for name in FOLDERS]
        index = TaskManager(include_defaults=False, include_path=folders)
        monkeypatch.setattr(lm_eval_loading, "_manager", lambda with_index: index)

    def run(
        self, folder: Path, data: Path, original: Any, pruned: Any, **options: Any
    ) -> SuiteResult:
        clients = MockClient("original", original), MockClient("pruned", pruned)
        return run_suite(Accuracy(), folder, *clients, data=data, **options)

    def test_no_bars_of_lm_eval_are_shown(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(tmp_path / "data", "choices", CHOICES)
        self.run(tmp_path / "run", tmp_path / "data", calculates, calculates)
        assert "it/s]" not in capsys.readouterr().err

    def test_each_item_is_judged_on_both_sides(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        for name, rows in (("sums", NUMBERS), ("choices", CHOICES), ("texts", TEXTS)):
            write(data, name, rows)
        found = self.run(tmp_path / "run", data, calculates, one_wrong)
        by_name = {m.metric.name: m for m in found.measurements}
        assert list(by_name) == ["all", "choices", "sums", "texts"]
        for name, items in (("all", 28), ("choices", 12), ("texts", 4)):
            assert by_name[name].original.shape == (items, 1)
        assert by_name["choices"].original.mean() == by_name["texts"].original.mean() == 1
        wrong = by_name["sums"].original - by_name["sums"].pruned
        assert wrong.sum() == 1
        assert by_name["sums"].items[int(np.argmax(wrong))] == "sums/0"
        worse = [e for e in found.examples if e.labels["verdict"] == "worse"]
        assert [(e.prompt.endswith('500 + 500 ="}]'), e.reference) for e in worse] == [
            (True, "1000")
        ]

    def test_sides_that_cut_text_differently_are_counted_each_by_itself(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "data", "choices", CHOICES)

        def in_pairs(request: Request) -> Answer:
            """As `calculates`, with tokens of two characters."""
            found = calculates(request)
            logprobs = found.prompt_logprobs and (None, *found.prompt_logprobs[2::2])
            tokens = (len(request.prompt) + 1) // 2
            return replace(found, prompt_tokens=tokens, prompt_logprobs=logprobs)

        for name, sides in (("one", (calculates, in_pairs)), ("two", (in_pairs, calculates))):
            found = self.run(tmp_path / name, tmp_path / "data", *sides).measurements[0]
            assert found.original.shape == (12, 1)
            assert found.original.mean() == found.pruned.mean() == 1

    def test_a_resumed_run_asks_nothing_again_and_gives_the_same(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        write(data, "choices", CHOICES)

        def nobody(request: Request) -> Answer:
            raise AssertionError("asked again")

        first = self.run(tmp_path / "run", data, scoring, calculates, limit=5)
        again = self.run(tmp_path / "run", data, nobody, nobody, limit=5)
        for a, b in zip(first.measurements, again.measurements, strict=True):
            assert a.items == b.items and len(a.items) == 5
            assert np.array_equal(a.original, b.original) and np.array_equal(a.pruned, b.pruned)

    def test_answers_are_no_longer_than_a_server_has_room_for(self, tmp_path: Path) -> None:
        write(tmp_path / "data", "sums", NUMBERS)
        models = {"/v1/models": {"data": [{"id": "model", "max_model_len": 64}, 7]}}
        clients = [
            MockClient("original", calculates),
            MockClient("pruned", calculates, paths=models),
        ]
        options = {"data": tmp_path / "data", "limit": 3}
        assert run_suite(Accuracy(), tmp_path / "run", *clients, **options).measurements
        assert {request.max_tokens for client in clients for request in client.asked} == {32}

    def test_failed_items_are_left_out_and_a_task_of_them_says_why(self, tmp_path: Path) -> None:
        write(tmp_path / "data", "sums", NUMBERS)
        write(tmp_path / "data", "texts", TEXTS)

        def refuses(request: Request) -> Answer:
            text = request.messages[-1]["content"]
            failed = text.startswith(("Capital", "500 "))
            return Answer(error="HTTP 400: too long") if failed else calculates(request)

        found = self.run(tmp_path / "run", tmp_path / "data", calculates, refuses)
        assert [len(m.items) for m in found.measurements] == [11]
        assert found.unavailable["texts"].endswith("by both sides: HTTP 400: too long")
        assert found.notes == ("sums: 11 items over chat, 1 left out",)

    def test_choices_need_log_probabilities_of_prompts(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        write(data, "choices", CHOICES)
        write(data, "sums", NUMBERS)
        missing = {"prompt_logprobs": "not in its answers"}
        clients = [
            MockClient("original", calculates),
            MockClient("pruned", calculates, missing=missing),
        ]
        found = run_suite(Accuracy(), tmp_path / "run", *clients, data=data)
        assert [m.metric.name for m in found.measurements] == ["sums"]
        assert found.main == "all" in found.unavailable
        assert "prompt_logprobs of the pruned endpoint" in found.unavailable["choices"]

    def test_a_task_of_the_hub_is_unavailable_without_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets
        from huggingface_hub import constants

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        clients = [MockClient(name, calculates) for name in ("original", "pruned")]
        found = run_suite(Accuracy(), tmp_path / "run", *clients, tasks=("kobest_boolq",))
        assert found.measurements == ()
        assert found.unavailable["kobest_boolq"].startswith("kobest_boolq could not be run")
        assert found.unavailable["*"] == "no task could be measured"

    def test_a_file_named_like_a_task_stands_for_its_data(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        rows = [
            {"paragraph": f"{n}번 가방은 파랗다.", "question": f"{n}번 가방은 파란가?", "label": 1}
            for n in range(6)
        ]
        write(data, "kobest_boolq", rows)

        def says_yes(request: Request) -> Answer:
            found = scoring(request)
            sure = request.prompt.endswith("예") and found.prompt_logprobs
            return (
                Answer(
                    prompt_tokens=found.prompt_tokens, prompt_logprobs=(0.0,) * len(request.prompt)
                )
                if sure
                else found
            )

        found = self.run(tmp_path / "run", data, says_yes, says_yes)
        assert found.measurements[0].metric.name == "kobest_boolq"
        assert found.measurements[0].original.mean() == 1

    def test_an_unknown_task_is_the_users_mistake(self, tmp_path: Path) -> None:
        clients = [MockClient(name, calculates) for name in ("original", "pruned")]
        with pytest.raises(KPruneError, match=r"no task 'kobset'; did you mean 'kobest'"):
            run_suite(Accuracy(), tmp_path / "run", *clients, tasks=("kobset",))

    def test_every_task_of_the_groups_is_known_to_lm_eval(self) -> None:
        known = set(lm_eval_loading._manager(True).all_tasks)
        assert {task for tasks in GROUPS.values() for task in tasks} <= known
