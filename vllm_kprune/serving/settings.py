"""What a process of a server knows of kprune: its options, resolved once into one frozen value.

The value is attached to vLLM's configuration, where every process finds it: it travels to engine
core processes with the configuration, and a copy that lost it resolves it again, once. Nothing is
attached to the configuration of a server that did not ask for kprune.

It is attached to `additional_config`, not to the configuration itself: vLLM copies a configuration
for a draft model and for parts of multimodal models (`vllm.config.utils.replace`), and refuses one
that has attributes which are no fields.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vllm_kprune.checkpoint.head import HeadRows
from vllm_kprune.checkpoint.manifest import is_overlay
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import make, options_of
from vllm_kprune.serving.environment import NAMED
from vllm_kprune.serving.guard.settings import GuardSettings, guard_settings
from vllm_kprune.serving.options import (
    FLAG_PREFIX,
    FORM,
    KEY,
    UsageOptions,
    VocabularyOptions,
    read_values,
)
from vllm_kprune.serving.pruning.settings import PrunerSettings, pruner_settings

__all__ = [
    "GUARD_CLASS_PATH",
    "ServerSettings",
    "attach_settings",
    "resolve_settings",
    "settings_of",
    "share_settings",
]

T = TypeVar("T")
# The guard, as vLLM's `logits_processors` names it.
GUARD_CLASS_PATH = "vllm_kprune.serving.guard.processor:LanguageGuard"


@dataclass(frozen=True)
class ServerSettings:
    """`given`: an option was. `named`: the plugin was (`--plugin kprune`). `overlay`: the model is.

    `head_rows` and `draft_rows`: what is computed of the LM heads of the model and of its drafter,
    where these are pruned and an engine is configured.
    An engine that `asks_for_kprune` by none of them is left as it is.
    """

    vocabulary: VocabularyOptions = field(default_factory=VocabularyOptions)
    guard: GuardSettings = field(default_factory=GuardSettings)
    pruner: PrunerSettings | None = None
    usage: UsageOptions = field(default_factory=UsageOptions)
    given: bool = False
    named: bool = False
    overlay: bool = False
    head_rows: HeadRows | None = None
    draft_rows: HeadRows | None = None

    @property
    def asks_for_kprune(self) -> bool:
        """Did the user ask for kprune: with the plugin, an option, or a pruned model?"""
        return self.named or self.given or self.overlay

    @property
    def prunes(self) -> bool:
        """True if an option is about the vocabulary, not about heads, prompts or answers."""
        return self.vocabulary.profile is not None or self.vocabulary.base is not None


class _Resolved(dict[str, Any]):
    """An `additional_config` with what was resolved from it; equal to the plain dictionary.

    Its content decides whether vLLM compiles a model again, so the settings are no part of it.
    """

    def __init__(self, content: Mapping[str, Any], settings: ServerSettings) -> None:
        super().__init__(content)
        self.settings = settings

    def __reduce__(self) -> tuple[Any, ...]:
        return _Resolved, (dict(self), self.settings)


def resolve_settings(additional_config: Any, model: str = "") -> ServerSettings:
    """The settings of a model served with `additional_config["kprune"]`.

    Raises `KPruneError` for whatever is wrong with them, in the words of the command line.
    """
    values = read_values(additional_config)
    usage = _table(UsageOptions, values)
    named = _plugin_is_named(NAMED)
    # vLLM's own variable names the plugin, too.
    if usage.counted and not (named or _plugin_is_named("VLLM_PLUGINS")):
        raise KPruneError(
            "--kprune-usage: nobody could read the counts; add --plugin kprune, which has GET "
            "/kprune/usage (only servers have it, not LLM)"
        )
    return ServerSettings(
        vocabulary=_table(VocabularyOptions, values),
        guard=guard_settings(values),
        pruner=pruner_settings(values),
        usage=usage,
        given=bool(values),
        named=named,
        overlay=bool(model) and is_overlay(model),
    )


def _plugin_is_named(variable: str) -> bool:
    return KEY in os.environ.get(variable, "").split(",")


def _table(table: type[T], values: Mapping[str, Any]) -> T:
    """A table's value from the options of all tables, of which `make` would refuse the others."""
    own = {one.name_in(FORM) for one in options_of(table, FORM)}
    given = {name: value for name, value in values.items() if name in own}
    return make(table, given, form=FORM, prefix=FLAG_PREFIX)


def settings_of(config: Any) -> ServerSettings:
    """The settings attached to a `VllmConfig`, or to `EngineArgs`; resolved if there are none."""
    extra = config.additional_config
    if isinstance(extra, _Resolved):
        return extra.settings
    return attach_settings(config, _resolve_for(config))


def share_settings(engine_args: Any, config: Any) -> ServerSettings:
    """Attach what was resolved for `EngineArgs` to the `VllmConfig` made of them."""
    return attach_settings(config, _with_guard_of(config, settings_of(engine_args)))


def attach_settings(config: Any, settings: ServerSettings) -> ServerSettings:
    """Attach the settings, in the place of others; returns them.

    What did not ask for kprune is left exactly as it is; its settings are quickly resolved again.
    """
    extra = config.additional_config
    # vLLM also takes an object of another class, which has no options of ours.
    if settings.asks_for_kprune and (extra is None or isinstance(extra, dict)):
        object.__setattr__(config, "additional_config", _Resolved(extra or {}, settings))
    return settings


def _resolve_for(config: Any) -> ServerSettings:
    model_config = getattr(config, "model_config", None)
    if model_config is None:  # EngineArgs
        return resolve_settings(config.additional_config, config.model)
    settings = resolve_settings(config.additional_config, model_config.model)
    return _with_guard_of(config, settings)


def _with_guard_of(config: Any, settings: ServerSettings) -> ServerSettings:
    # No option says so. The class path among the processors stays in every copy of a configuration,
    # also in one that lost our attribute.
    attached = GUARD_CLASS_PATH in (config.model_config.logits_processors or ())
    return replace(settings, guard=replace(settings.guard, attached=attached))
