"""Reference page of the names of vLLM that kprune uses, from the table in `serving/compat`."""

from vllm_kprune.serving import compat

INTRODUCTION = """\
# vLLM seams

kprune hooks into vLLM {tested}. Outside that range a server that asks for kprune is refused, unless
`VLLM_KPRUNE_ALLOW_UNTESTED_VLLM=1` is set. A server that does not ask for kprune starts with any
version.
"""


def seams_page() -> str:
    """The tested range, and the table where this version of kprune has one."""
    return INTRODUCTION.format(tested=compat.TESTED)
