"""SIGTERM, a closed terminal and Ctrl-C: one line, the shell's exit code, nothing left behind."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest
from support.command import Run

from vllm_kprune.checkpoint import plan
from vllm_kprune.cli import main
from vllm_kprune.signals import Terminated, ended_by_signals

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """As a process has them that a terminal started, not one in the background of a script."""
    before = {number: signal.getsignal(number) for number in CODES}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, how in before.items():
        signal.signal(number, how)


@contextmanager
def at_import(name: str, do: Callable[[], object]) -> Iterator[None]:
    """Do something when a module is looked for."""

    class Finder(MetaPathFinder):
        def find_spec(self, found: str, path: object, target: object = None) -> None:
            if found == name:
                do()

    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("module", ["vllm_kprune.cli.app", "vllm_kprune.cli.verify"])
def test_a_signal_while_starting_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    module: str,
) -> None:
    for name in ("vllm_kprune.cli.app", "vllm_kprune.cli.verify"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with at_import(module, lambda: os.kill(os.getpid(), number)), pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == CODES[number]
    assert capsys.readouterr().err == "error: stopped\n"


@pytest.mark.parametrize("number", CODES)
def test_a_signal_during_a_build_leaves_nothing(
    run: Run,
    model: Path,
    profile: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    before = sorted(tmp_path.iterdir())

    def select(*rest: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(plan, "select_tokens", select)
    code, out, err = run("build", model, "--profile", profile, "-o", tmp_path / "out")
    assert (code, out, err) == (CODES[number], "", "error: stopped\n")
    left = [path for path in tmp_path.iterdir() if path not in before]
    assert [path.name for path in left] in ([], [".out.lock"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_signal_does_not_interrupt_the_cleaning_up() -> None:
    cleaned = False
    with pytest.raises(Terminated), ended_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned = True
    assert cleaned


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ended_by_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_threads_leave_signals_alone() -> None:
    found: list[object] = []

    def elsewhere() -> None:
        with ended_by_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
