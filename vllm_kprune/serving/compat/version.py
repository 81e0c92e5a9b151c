"""Which vLLM versions kprune was checked with, and what it says about the others."""

import os

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat.log import logger

__all__ = ["ALLOW_UNTESTED", "TESTED", "check_version", "vllm_version"]

TESTED = ">=0.31,<0.34"
ALLOW_UNTESTED = "VLLM_KPRUNE_ALLOW_UNTESTED_VLLM"
_OLD = "; before 0.31, vLLM's V2 model runner takes no logits processors, which the guard needs"


def vllm_version() -> str:
    """The running vLLM's version, such as `0.32.0+cpu`."""
    from vllm.version import __version__

    return str(__version__)


def check_version() -> None:
    """Raise `KPruneError` when this vLLM is outside the range that kprune was checked with."""
    from packaging.specifiers import SpecifierSet

    version = vllm_version()
    # Builds from source are `0.33.1.dev5+g…`. Without `prereleases` they would all be refused. By
    # PEP 440 `<0.34` leaves 0.34.0rc1 out all the same, and `+cpu` is ignored.
    if SpecifierSet(TESTED).contains(version, prereleases=True):
        return
    if os.environ.get(ALLOW_UNTESTED, "0") != "0":
        logger.warning("kprune is checked with vLLM %s; this is %s", TESTED, version)
        return
    old = _OLD if SpecifierSet("<0.31").contains(version, prereleases=True) else ""
    raise KPruneError(
        f"kprune is checked with vLLM {TESTED} and this is {version}{old}; install one of those, "
        f"or set {ALLOW_UNTESTED}=1 to try it"
    )
