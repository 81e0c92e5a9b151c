"""`register()`: harmless for all who did not ask, idempotent, with one switch to turn it off."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_kprune.serving import command, plugin
from vllm_kprune.serving.compat.imports import wrap
from vllm_kprune.serving.environment import NAMED

# Prints the resolved configuration of a model, field by field, as vLLM's own code makes it.
_RESOLVE = """
import json, sys
imported = []
if len(sys.argv) > 2:
    from vllm_kprune.serving.plugin import register
    register(); register()
    imported = sorted({"torch", "vllm"} & {*sys.modules})
    imported += ["hook"] * sum(type(one).__name__ == "_ImportHook" for one in sys.meta_path)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor import model_loader
config = EngineArgs(model=sys.argv[1], enforce_eager=True).create_engine_config()
fields = {
    f"{part}.{name}": repr(value)
    for part, section in vars(config).items()
    for name, value in (vars(section) if hasattr(section, "__dict__") else {"": section}).items()
}
fields.pop("instance_id.", None)
print(json.dumps({
    "fields": fields,
    "hash": config.compute_hash(),
    "kprune": hasattr(EngineArgs.create_model_config, "__kprune_wraps__"),
    "formats": sorted(model_loader._LOAD_FORMAT_TO_MODEL_LOADER),
    "imported": imported,
}))
"""


def python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.slow
def test_a_model_that_did_not_ask_has_the_configuration_it_has_without_kprune(
    tied_model: Path, tokenizer_beside: None
) -> None:
    """Also where it is registered before anything of vLLM is imported, and twice."""

    def resolve(off: str, *register: str) -> dict[str, Any]:
        text = python(_RESOLVE, str(tied_model), *register, VLLM_KPRUNE_DISABLE=off)
        resolved: dict[str, Any] = json.loads(text.splitlines()[-1])
        return resolved

    with ThreadPoolExecutor() as pool:  # both at once: each imports vLLM
        both = [pool.submit(resolve, "0", "register"), pool.submit(resolve, "1")]
        with_kprune, without = (one.result() for one in both)
    # Registering imports nothing, and leaves one hook.
    assert (with_kprune.pop("imported"), without.pop("imported")) == (["hook"], [])
    assert (with_kprune.pop("kprune"), without.pop("kprune")) == (True, False)
    assert set(with_kprune.pop("formats")) - set(without.pop("formats")) == {"kprune"}
    assert with_kprune == without


@pytest.fixture
def tokenizer_beside(tied_model: Path) -> None:
    """vLLM configures a tokenizer too: give the model a small one."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(
        str(tied_model / "tokenizer.json")
    )
    (tied_model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )


@pytest.mark.slow
def test_importing_the_plugin_does_not_import_vllm_or_torch() -> None:
    code = "import sys, vllm_kprune.serving.plugin as p; print({'vllm', 'torch'} & {*sys.modules})"
    assert python(code).strip() == "set()"


def test_registering_again_wraps_nothing_twice(vllm_ready: None) -> None:
    from vllm.engine.arg_utils import EngineArgs

    before = {name: vars(EngineArgs)[name] for name in ("create_model_config", "from_cli_args")}
    plugin.register()
    assert {name: vars(EngineArgs)[name] for name in before} == before


def test_wrapping_keeps_static_and_class_methods_and_names() -> None:
    class Owner:
        @staticmethod
        def static(x: int) -> int:
            """Doubles."""
            return 2 * x

        @classmethod
        def of(cls, x: int) -> tuple[str, int]:
            return cls.__name__, x

        def method(self, x: int) -> int:
            return x

    def plus_one(original: Any, *args: Any) -> Any:
        return original(*args[:-1], args[-1] + 1)

    for name in ("static", "of", "method"):
        wrap(Owner, name, plus_one)
        wrap(Owner, name, plus_one)
    assert (Owner.static(1), Owner.of(1), Owner().method(1)) == (4, ("Owner", 2), 2)
    assert Owner.static.__doc__ == "Doubles."


@pytest.mark.parametrize("before", [None, "other", ""])
def test_naming_a_plugin_filters_no_other(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if before is not None:
        monkeypatch.setenv("VLLM_PLUGINS", before)
    monkeypatch.setenv(NAMED, "kprune")
    allowed = plugin._load_endpoint_plugins(lambda: os.environ["VLLM_PLUGINS"].split(","))
    assert allowed == [*([before] if before else []), "kprune"]
    assert os.environ.get("VLLM_PLUGINS") == before


def test_endpoint_plugins_stay_off_when_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.delenv(NAMED, raising=False)
    assert plugin._load_endpoint_plugins(lambda: "VLLM_PLUGINS" in os.environ) is False


def test_a_port_in_use_is_not_ours_to_explain_without_kprune(tied_model: Path) -> None:
    error = OSError(98, "Address already in use")

    def serve(args: Any) -> None:
        raise error

    args = SimpleNamespace(model_tag=str(tied_model), model=None, plugin=None, port=1)
    with pytest.raises(OSError, match="already in use") as raised:
        command._serve(serve, args)
    assert raised.value is error


def test_flags_reach_processes_that_get_the_parsed_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(NAMED, "")
    args = SimpleNamespace(
        plugin=["kprune"],
        kprune_profile="enko",
        kprune_target_size=9000,
        additional_config={"other": 1, "kprune": {"profile": "original"}},
    )
    for _ in range(2):
        command._settle(args)
        assert args.additional_config == {
            "other": 1,
            "kprune": {"profile": "enko", "target_size": 9000},
        }
        assert os.environ[NAMED] == "kprune"


def test_arguments_without_our_flags_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAMED, raising=False)
    args = SimpleNamespace(plugin=None, additional_config=None)
    command._settle(args)
    assert vars(args) == {"plugin": None, "additional_config": None}
    assert NAMED not in os.environ
