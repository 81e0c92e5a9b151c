"""The options of `kprune sparsify`."""

from dataclasses import dataclass
from typing import Literal

from vllm_kprune.errors import KPruneError
from vllm_kprune.options import option
from vllm_kprune.sparsify.pattern import SparsityPattern, make_pattern

__all__ = ["DeviceOptions", "SparsifyOptions"]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where a model is run."""

    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where to calculate; auto takes a GPU if there is one."
    )


@dataclass(frozen=True, kw_only=True)
class _PruningOptions:
    method: Literal["magnitude", "sparsegpt", "wanda"] = option(
        "wanda",
        "wanda: weight times norm of its input, compared within each row. sparsegpt: also changes "
        "the weights that it keeps, to make up for the others. magnitude: without calibration.",
    )
    sparsity: float | None = option(
        None,
        "Share of the weights that become zero.",
        above=0,
        most=0.99,
        default_text="0.5",
    )
    pattern: Literal["2:4", "4:8"] | None = option(
        None, "Instead of a share: of every 4 (8) neighbouring inputs of a row, keep 2 (4)."
    )
    calibration: tuple[str, ...] = option(
        (),
        "Text that shows which weights matter (.txt, .jsonl, also .gz or .zst): FILE, or ko=FILE, "
        "which also checks that it is Korean; repeat for several. They share the samples equally.",
        metavar="[LANGUAGE=]FILE",
    )
    samples: int = option(128, "Samples of the calibration text.", least=1)
    length: int = option(2048, "Tokens of each sample.", least=8)
    seed: int = option(0, "Seed of the choice of samples.", least=0)
    memory: float | None = option(
        None,
        "Memory to use, in GB, besides up to 1 GB for libraries and tokenizer. Activations that do "
        "not fit go to a file beside the output.",
        above=0,
        default_text="80 % of what is available",
    )


# Options of the last base come first.
@dataclass(frozen=True, kw_only=True)
class SparsifyOptions(DeviceOptions, _PruningOptions):
    """How a model is sparsified: what the options of `kprune sparsify` of these names say.

    `calibration` has `FILE` or `ko=FILE` for each text.
    """

    def checked_pattern(self) -> SparsityPattern:
        """The pattern, with `calibration` checked to be there if the method needs it."""
        if self.method == "magnitude" and self.calibration:
            raise KPruneError("--method magnitude looks at no text; drop --calibration")
        if self.method != "magnitude" and not self.calibration:
            raise KPruneError(
                f"--method {self.method} needs a text: --calibration FILE, or ko=FILE"
            )
        return make_pattern(self.sparsity, self.pattern)
