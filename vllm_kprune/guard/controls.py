"""Which added tokens are control tokens, though `tokenizer.json` does not flag them as special.

Chat templates and the parsers of reasoning and tool calls work with tokens such as `<think>` and
`<tool_call>`, which many models do not flag: decoders are to show them. A guard that took them for
text would refuse them with `scripts: Hangul`, and reasoning could not end. But vocabularies also
add plain text: line ends, runs of spaces, HTML tags (Gemma). So an added token is a control token
only on one of these grounds:

1. It is flagged as special.
2. The tokenizer's configuration names it (`eos_token`, `additional_special_tokens`, …).
3. It has a form that no text uses: `<|…|>`, `<｜…｜>`, and the names that parsers know.
4. It is in brackets, is no HTML element, and a chat template contains it.

A template given to the server is not in the model's folder: its tokens count by 1 to 3 alone.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from vllm_kprune.checkpoint.token_ids import token_texts
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.bounded import MODEL_FILE, read_object
from vllm_kprune.tokenizer.bpe import BpeTokenizer

__all__ = ["NO_EVIDENCE", "ControlEvidence", "control_ids", "read_evidence"]

_log = logging.getLogger(__name__)
# A form that no text uses. The bars may be full-width (DeepSeek), or on one side (Gemma 4).
_FORM = regex.compile(
    r"<[|｜].+>|<.+[|｜]>"
    r"|</?(\w+:)?(think|thinking|thought|reasoning|tools?_calls?|tool_responses?|tool_outputs?"
    r"|function_calls?|function_responses?|arg_key|arg_value)>",
    regex.DOTALL,
)
_IN_BRACKETS = regex.compile(r"[<\[{].+[>\]}]", regex.DOTALL)
_HTML = regex.compile(
    r"</?(a|abbr|acronym|address|applet|area|article|aside|audio|b|base|bdi|bdo|big|blockquote|body"
    r"|br|button|canvas|caption|center|cite|code|col|colgroup|data|datalist|dd|del|details|dfn"
    r"|dialog|dir|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|frame|frameset"
    r"|h[1-6]|head|header|hgroup|hr|html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|map"
    r"|mark|math|menu|meta|meter|nav|noframes|noscript|object|ol|optgroup|option|output|p|param"
    r"|picture|pre|progress|q|rp|rt|ruby|s|samp|script|search|section|select|slot|small|source"
    r"|span|strike|strong|style|sub|summary|sup|svg|table|tbody|td|template|textarea|tfoot|th"
    r"|thead|time|title|tr|track|tt|u|ul|var|video|wbr)\s*/?>",
    regex.IGNORECASE,
)
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.json")
_MOST_TEMPLATES = 32
_MOST_BYTES = 1 << 20
# Characters that a search of all templates for all tokens may read. A large model needs 10 million.
_MOST_WORK = 1 << 31


@dataclass(frozen=True)
class ControlEvidence:
    """What a model's folder says of its tokens: those that it names, and its chat templates."""

    named: frozenset[str] = frozenset()
    templates: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 in hex. Equal evidence has an equal digest."""
        parts = (*sorted(self.named), self.templates)
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


NO_EVIDENCE = ControlEvidence()


def read_evidence(folder: Path) -> ControlEvidence:
    """Read the configuration and the templates beside a `tokenizer.json`.

    A file that is missing, damaged or too large is left out; all but the first are logged.
    """
    configs = [_config(folder / name) for name in _CONFIGS]
    paths = [folder / "chat_template.jinja"]
    paths += sorted((folder / "additional_chat_templates").glob("*.jinja"))[:_MOST_TEMPLATES]
    templates = [template for config in configs for template in _templates(config)]
    templates += [_text(path) for path in paths if path.is_file()]
    named = (text for config in configs for text in _named(config))
    return ControlEvidence(frozenset(named), "\0".join(templates))


def control_ids(tokenizer: BpeTokenizer, evidence: ControlEvidence) -> list[int]:
    """Ids of the added tokens that are control tokens, special ones included."""
    bracketed = sum(_IN_BRACKETS.fullmatch(token.content) is not None for token in tokenizer.added)
    templates = evidence.templates
    if bracketed * len(templates) > _MOST_WORK:
        _log.warning("kprune guard: the chat templates are too large to search for control tokens")
        templates = ""

    def is_control(text: str) -> bool:
        if not text.strip():
            return False
        if text in evidence.named or _FORM.fullmatch(text):
            return True
        # The search comes last, because it reads all templates.
        return bool(
            _IN_BRACKETS.fullmatch(text) and not _HTML.fullmatch(text) and text in templates
        )

    return [token.id for token in tokenizer.added if token.special or is_control(token.content)]


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_object(path, MODEL_FILE)
    except KPruneError as error:
        _log.warning("kprune guard: control tokens are looked for without a file: %s", error)
        return {}


def _named(config: dict[str, Any]) -> list[str]:
    try:
        return [*token_texts(config)]
    except RecursionError:  # JSON can be nested more deeply than Python can follow
        return []


def _templates(config: dict[str, Any]) -> Iterator[str]:
    """The chat templates of a configuration: one, or a list of named ones."""
    found = config.get("chat_template")
    for entry in found[:_MOST_TEMPLATES] if isinstance(found, list) else [found]:
        template = entry.get("template") if isinstance(entry, dict) else entry
        if isinstance(template, str):
            yield template[:_MOST_BYTES]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_MOST_BYTES).decode(errors="replace")
    except OSError as error:
        _log.warning(
            "kprune guard: control tokens are looked for without %s: %s", path, error.strerror
        )
        return ""
