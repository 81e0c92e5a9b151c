"""The features of kprune in vLLM, and how a row of the seam table is written."""

from vllm_kprune.serving.compat.seam import Feature, Place, Seam, Use, Without

__all__ = [
    "COMMAND_LINE",
    "FAILURES",
    "FEATURES",
    "FROM_32",
    "GUARD",
    "HEAD",
    "LORA",
    "METRICS",
    "OFFLINE",
    "ONLINE",
    "REQUESTS",
    "ROUTES",
    "USAGE",
    "VERSIONS",
    "VOCABULARY",
    "at",
    "reads",
    "seam",
]

VERSIONS = ("0.31.0", "0.32.0", "0.33.0")
FROM_32 = VERSIONS[1:]

COMMAND_LINE = Feature("command line", "pass the options as additional_config instead")
VOCABULARY = Feature("pruned vocabulary", "serve the base model without --kprune-profile")
LORA = Feature("LoRA checks", "serve without LoRA adapters (--enable-lora)")
HEAD = Feature("pruned LM head", "leave --kprune-head out")
GUARD = Feature("language guard", "leave --kprune-languages and --kprune-scripts out")
REQUESTS = Feature("request checks", "leave --plugin kprune and the --kprune-* options out")
FAILURES = Feature("failure messages", essential=False)
METRICS = Feature("guard metrics", essential=False)
ONLINE = Feature("input pruning", "leave --kprune-input-pruner out")
OFFLINE = Feature("offline input pruning", "leave input_pruner out of additional_config")
ROUTES = Feature("HTTP routes", "leave --plugin kprune out")
USAGE = Feature("token usage", "leave --kprune-usage out")
FEATURES = (
    *(COMMAND_LINE, VOCABULARY, LORA, HEAD, GUARD, REQUESTS),
    *(FAILURES, METRICS, ONLINE, OFFLINE, ROUTES, USAGE),
)


def at(place: str, versions: tuple[str, ...] = VERSIONS) -> Place:
    """A place, written `module:Owner.name`, and the releases in which it was seen there."""
    module, _, path = place.partition(":")
    return Place(module, path, versions)


def seam(
    features: Feature | tuple[Feature, ...],
    place: str | tuple[Place, ...],
    use: Use,
    signature: str = "",
    *,
    lost: str,
    binding: str = "",
    attributes: tuple[str, ...] = (),
    without: Without = Without.OFF,
) -> Seam:
    """A row of the table; one place of all releases can be given as text."""
    return Seam(
        features if isinstance(features, tuple) else (features,),
        place if isinstance(place, tuple) else (at(place),),
        use,
        signature,
        lost,
        binding,
        attributes,
        without,
    )


def reads(features: Feature | tuple[Feature, ...], place: str, *attributes: str, lost: str) -> Seam:
    """A row for a class or name whose attributes are read."""
    return seam(features, place, Use.READS, attributes=attributes, lost=lost)
