"""Load tasks of lm-eval with their data.

Whatever stops a task becomes the reason that the report gives for it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

from vllm_kprune.compare.suites.accuracy_tasks import GROUPS, local_files, on_file, own_config
from vllm_kprune.errors import KPruneError, nearest

__all__ = ["TaskUnavailable", "load_task", "reasons_of", "without_bars"]


class TaskUnavailable(Exception):
    """Why a task was not measured."""


def load_task(task: str, folder: Path | None, cache_folder: Path) -> dict[str, Any]:
    """lm-eval's task objects by name, with their data."""
    path = local_files(folder).get(task) if folder else None
    with reasons_of(task), without_bars():
        spec = own_config(task, path, cache_folder) if path else None
        if spec is not None:
            return dict(_manager(False).load([spec])["tasks"])
        manager = _manager(True)
        if task not in manager.all_tasks:
            # Thousands of names: the list of all would be no help.
            near = get_close_matches(task, manager.all_tasks, n=5) or list(GROUPS)
            raise KPruneError(f"--tasks: there is no task {task!r}; {nearest(task, near)}")
        named = on_file(task, path, cache_folder) if path else task
        return dict(manager.load([named])["tasks"])


@cache
def _manager(with_index: bool) -> Any:
    """lm-eval's loader of tasks; building its own index of thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_index)


@contextmanager
def reasons_of(task: str) -> Iterator[None]:
    """Turn whatever stops a task into a `TaskUnavailable`.

    Anything printed meanwhile goes to stderr, as stdout belongs to the command.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (KPruneError, TaskUnavailable):
        raise
    except ConnectionError as error:
        _stay_offline()
        raise TaskUnavailable(f"{task} could not be run: {error}") from None
    # lm-eval, datasets, the hub's client and the code of a task raise any kind of exception. It
    # must end this task only, and is reported.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        first = next((line for line in lines if any(map(str.isalnum, line))), "no message")
        raise TaskUnavailable(
            f"{task} could not be run: {type(error).__name__}: {first[:300]}"
        ) from None


@contextmanager
def without_bars() -> Iterator[None]:
    """Switch off the progress bars of lm-eval and datasets, as the run has its own.

    lm-eval has no switch for the bar that it shows while it builds requests.
    """
    import datasets
    from lm_eval.api import task as building

    usual = building.tqdm
    building.tqdm = partial(usual, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        building.tqdm = usual
        datasets.enable_progress_bars()


def _stay_offline() -> None:
    """From now on, use only data that is cached here.

    If the hub is out of reach, each data set would try it for half a minute. The variable
    `HF_HUB_OFFLINE` has been read already, so its effects are set directly.
    """
    import datasets
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True
