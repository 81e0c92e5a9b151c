"""The `kprune` command."""

from vllm_kprune.cli.app import main

__all__ = ["main"]
