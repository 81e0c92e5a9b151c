"""The tokens that structure a server's answers: those of reasoning, and other control tokens.

vLLM's parsers know them. The tokens between which a model reasons come from the class of
`--reasoning-parser`. Control tokens that the model's own folder does not show (`guard/controls.py`)
are those of both parsers and of the server's own chat template. A parser whose markers are not
single tokens cannot be followed: the guard then takes the whole output for the answer.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.phases import ReasoningTokens

__all__ = ["SERVED_WITH", "Markers", "end_of_answer", "find_markers", "remember_serving"]

# What only the command line knows of a server, in the environment of its processes.
SERVED_WITH = "KPRUNE_SERVED_WITH"
_REMEMBERED = ("tool_call_parser", "chat_template")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Markers:
    """`reasoning` None: the whole output is the answer, for the reason in `no_reasoning`.

    `stop_ids` end a text of this model, `control_ids` are the parsers' and the template's tokens.
    """

    reasoning: ReasoningTokens | None = None
    stop_ids: tuple[int, ...] = field(default=(), repr=False)
    no_reasoning: str = "this server has no reasoning parser; serve with --reasoning-parser NAME"
    control_ids: tuple[int, ...] = field(default=(), repr=False)


def remember_serving(args: Any) -> None:
    """Keep what vLLM's engine arguments do not have, for this server's processes."""
    given = {name: getattr(args, name, None) for name in _REMEMBERED}
    if any(given.values()):
        os.environ[SERVED_WITH] = json.dumps({name: str(v) for name, v in given.items() if v})


def find_markers(config: Any, folder: Path) -> Markers:
    """The markers of the engine of a `VllmConfig`; `folder` has its `tokenizer.json`."""
    from vllm_kprune.serving.compat.parsers import reasoning_parser, tool_parser

    served = json.loads(os.environ.get(SERVED_WITH, "{}"))
    markers = Markers(stop_ids=_stop_ids(config.model_config))
    calls = tool_parser(config, served.get("tool_call_parser"))
    try:
        thinks = reasoning_parser(config)
    except KPruneError as error:
        thinks, markers = None, replace(markers, no_reasoning=str(error))
    if thinks is None and calls is None and "chat_template" not in served:
        return markers
    texts = {*_texts(thinks), *_texts(calls)}
    control_ids = _control_ids(folder, texts, _template(served.get("chat_template")))
    markers = replace(markers, control_ids=control_ids)
    return markers if thinks is None else _with_reasoning(markers, config, thinks)


def end_of_answer(params: Any, markers: Markers, num_rows: int) -> int:
    """The token that ends an answer for which no other token is left."""
    # The request's own end first. Sorted, because all ranks must choose the same one and a set has
    # no order. 0 is always a row, so that `next` finds something.
    ids = (params.eos_token_id, *sorted(params.all_stop_token_ids), *markers.stop_ids, 0)
    return next(i for i in ids if i is not None and 0 <= i < num_rows)


def _stop_ids(model_config: Any) -> tuple[int, ...]:
    """End-of-text ids of a `ModelConfig`, from its two files, each once."""
    # A dict as an ordered set. `eos_token_id` may be an id, a list of ids or absent in either file.
    found: dict[int, None] = {}
    hf_config = model_config.hf_text_config
    for ids in (
        getattr(hf_config, "eos_token_id", None),
        model_config.try_get_generation_config().get("eos_token_id"),
    ):
        found |= dict.fromkeys(
            i for i in (ids if isinstance(ids, list) else [ids]) if i is not None
        )
    return tuple(found)


def _with_reasoning(markers: Markers, config: Any, parser: Any) -> Markers:
    from vllm_kprune.serving.compat.parsers import token_id

    name = config.structured_outputs_config.reasoning_parser
    start, end = parser.reasoning_start_str, parser.reasoning_end_str
    start_id, end_id = (token_id(config, text) if text else None for text in (start, end))
    # A parser without a start is one whose prompts open the reasoning.
    if end_id is None or (start and start_id is None):
        reason = (
            f"reasoning parser {name} marks reasoning by {start!r} and {end!r}, which are not "
            "single tokens of this model, so the guard cannot tell reasoning from the answer"
        )
        return replace(markers, no_reasoning=reason)
    tokens = ReasoningTokens(start=start_id, end=end_id)
    return replace(markers, reasoning=tokens, no_reasoning="")


def _texts(parser: Any) -> Iterable[str]:
    """The texts that a parser, or its class, has as attributes: its markers are among them."""
    if parser is None:
        return
    for owner in (parser, *type(parser).__mro__):
        for value in vars(owner).values():
            yield from [value] if isinstance(value, str) else ()
    yield from (t for t in (getattr(parser, "reasoning_start_str", None),
                            getattr(parser, "reasoning_end_str", None)) if t)  # fmt: skip


def _control_ids(folder: Path, texts: Iterable[str], template: str) -> tuple[int, ...]:
    from vllm_kprune.guard.controls import ControlEvidence, control_ids
    from vllm_kprune.tokenizer.bpe import read_tokenizer

    return tuple(control_ids(read_tokenizer(folder), ControlEvidence(frozenset(texts), template)))


def _template(given: str | None) -> str:
    """The server's chat template, given as a file or as text."""
    if not given:
        return ""
    try:
        path = Path(given)
        if not path.is_file():
            return given[:_MOST_BYTES]
        with path.open("rb") as stream:
            return stream.read(_MOST_BYTES).decode(errors="replace")
    except (OSError, ValueError):  # a template as text can be too long for a file name
        return given[:_MOST_BYTES]
