"""Endpoints that are not what they should be: each is told as what it is, quickly, with code 2."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint

from vllm_kprune.cli import main
from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.suites.memory import Memory

pytest.importorskip("py3langid", reason="names languages; pip install 'vllm-kprune[compare]'")
PAGE = b"<!DOCTYPE html><html><head><title>Sign in to GridFlow</title></head><body>x</body></html>"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Compare with these options; gives the exit code and standard error, and is never slow."""

    def compare(original: str, pruned: str, *options: object) -> tuple[int, str]:
        code, started = 0, time.monotonic()
        words = ("--suite", "stability", "--limit", "4", "-o", str(tmp_path / "run"))
        sides = ("--original", original, "--pruned", pruned)
        try:
            main(["compare", *sides, *words, *map(str, options)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert time.monotonic() - started < 15
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return code, err

    return compare


@pytest.mark.parametrize(
    ("habits", "told"),
    [
        (Habits(body=PAGE), "an HTML page instead of an answer: 'Sign in to GridFlow'"),
        (
            Habits(body=json.dumps({"error": {"message": "no quota left"}}).encode()),
            "HTTP 200: no quota left",
        ),
        (Habits(body=b'{"detail": "Not for you"}'), "HTTP 200: Not for you"),
        (
            Habits(body=json.dumps({"error": {"code": 401, "message": "who are you"}}).encode()),
            "an API key is needed by the pruned endpoint (code 401: who are you)",
        ),
        (Habits(paths={"/v1/models": PAGE.decode()}), "lists no model (an HTML page instead of"),
        (
            Habits(location="https://u:p@else.where/v1/x?key=1"),
            "redirects to https://else.where/v1",
        ),
        (Habits(key="right"), "an API key is needed by the pruned endpoint (HTTP 401: wrong key"),
    ],
    ids=["page", "error", "detail", "error with a code", "page of models", "redirect", "key"],
)
def test_what_no_attempt_will_change_is_told_at_once(habits: Habits, told: str, run: Run) -> None:
    with MockEndpoint() as original, MockEndpoint(habits) as pruned:
        code, err = run(original.url, pruned.url, "--fail-on", "worse")
    assert code == 2, err
    assert told in err
    assert "key=1" not in err and "u:p" not in err


def test_a_key_that_was_sent_was_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KPRUNE_PRUNED_API_KEY", "sk-secret-secret")
    with MockEndpoint() as original, MockEndpoint(Habits(key="right")) as pruned:
        code, err = run(original.url, pruned.url)
    assert code == 2
    assert "the API key was refused by the pruned endpoint" in err and "sk-secret" not in err


def test_a_key_that_is_revoked_midway_leaves_a_report(run: Run, tmp_path: Path) -> None:
    with MockEndpoint() as original, MockEndpoint(Habits(revoked_after=9)) as pruned:
        code, err = run(original.url, pruned.url)
    assert code == 3, err
    assert "the key was revoked" in err and "the same command resumes" in err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "the key was revoked" in report["incomplete"]


def test_closed_paths_beside_the_api_are_only_missing(run: Run, tmp_path: Path) -> None:
    closed = Habits(closed=("/kprune", "/metrics", "/version"))
    with MockEndpoint(closed) as original, MockEndpoint(closed) as pruned:
        code, err = run(original.url, pruned.url)
    assert code == 0, err


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key in one file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1")
    names = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.crt")
    subprocess.run(["openssl", *made, *names], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.mark.slow
def test_a_certificate_of_ones_own_is_told_and_can_be_trusted(
    certificate: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with MockEndpoint(tls=context) as original, MockEndpoint() as pruned:
        code, err = run(original.url, pruned.url)
        assert code == 2
        assert "cannot be verified: self" in err and "set SSL_CERT_FILE" in err
        # On this machine too, where proxies of the environment are not used.
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        code, err = run(original.url, pruned.url)
        assert code == 0, err
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.missing")
        code, err = run(original.url, pruned.url)
        assert code == 2 and "check SSL_CERT_FILE" in err


def test_a_plain_server_behind_https_is_told(run: Run) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        code, err = run(original.url.replace("http:", "https:"), pruned.url)
    assert code == 2
    assert "write http:// instead of https://" in err


def test_a_proxy_that_cannot_be_used_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("socks9://127.0.0.1:1", "socks5://127.0.0.1:1"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        with MockEndpoint() as pruned:
            code, err = run("http://elsewhere.invalid", pruned.url)
        assert code == 2
        assert "the proxy for the original endpoint cannot be used" in err


def test_a_proxy_that_refuses_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with MockEndpoint() as pruned, MockEndpoint() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        code, err = run("https://elsewhere.invalid", pruned.url)
    assert code == 2
    assert "the proxy for the original endpoint refused the connection: 407" in err


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def started(request: pytest.FixtureRequest) -> Iterator[None]:
    """As a shell starts a command, and as it starts one that ends with `&`: Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("started")
@pytest.mark.slow
def test_sigterm_stops_like_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, asked = Client.ask, []

    async def ask_and_be_stopped(self: Client, request: Request) -> Answer:
        asked.append(request)
        if len(asked) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return await ask(self, request)

    before = signal.getsignal(signal.SIGTERM)
    with MockEndpoint() as original, MockEndpoint() as pruned:
        monkeypatch.setattr(Client, "ask", ask_and_be_stopped)
        code, err = run(original.url, pruned.url)
        assert code == 143 and "the same command resumes" in err
        assert signal.getsignal(signal.SIGTERM) == before
        monkeypatch.setattr(Client, "ask", ask)
        assert run(original.url, pruned.url)[0] == 0


def test_a_bug_of_ours_is_not_taken_for_a_failed_gate(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(self: Client, request: Request) -> Answer:
        raise RuntimeError("something odd")

    monkeypatch.setattr(Client, "ask", break_down)
    with MockEndpoint() as original, MockEndpoint() as pruned:
        code, err = run(original.url, pruned.url)
    assert code == 2
    assert "please report it: RuntimeError: something odd (test_endpoint_faults.py, line" in err


def test_a_run_and_a_fresh_start_do_not_share_a_folder(run: Run, tmp_path: Path) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        with Journal(tmp_path / "run", {}) as journal:
            journal.put("stability", "a", {"text": "b"})
            code, err = run(original.url, pruned.url, "--fresh")
            assert code == 2
            assert "another comparison is writing to" in err
            assert not (tmp_path / "run.1").exists()
        assert run(original.url, pruned.url, "--fresh")[0] == 0
    assert (tmp_path / "run.1" / "answers" / "stability.jsonl").exists()


def test_a_language_without_prompts_is_told_before_and_after(run: Run, tmp_path: Path) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        code, err = run(original.url, pruned.url, "--language", "en", "--language", "ja")
    assert code == 0
    assert "warning: stability: there are no prompts for ja" in err
    (suite,) = json.loads((tmp_path / "run" / "report.json").read_text())["suites"]
    assert suite["notes"][0].startswith("WARNING: there are no prompts for ja")


def test_one_process_behind_both_urls_has_no_memory_of_each_side(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="psutil measures processes")
    metrics = '# TYPE x gauge\nvllm:cache_config_info{block_size="16",num_gpu_blocks="9"} 1.0\n'
    habits: dict[str, Any] = {"paths": {"/metrics": metrics}}
    with MockEndpoint(Habits(**habits)) as one, MockEndpoint(Habits(model="b", **habits)) as two:
        run(one.url, two.url, "--suite", Memory.name)
    memory = json.loads((tmp_path / "run" / "report.json").read_text())["suites"][-1]
    assert memory["name"] == "memory"
    for name in ("processes", "kv_cache"):
        assert "one process serves both sides" in memory["unavailable"][name]
