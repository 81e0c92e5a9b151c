"""The ways of prompts through vLLM, online and offline.

Rows of the table in `seams`.
"""

from vllm_kprune.serving.compat.features import FROM_32, OFFLINE, ONLINE, VERSIONS, at, reads, seam
from vllm_kprune.serving.compat.seam import Seam, Use, Without

__all__ = [
    "CHAT_TO_SEQ",
    "GENERATE",
    "OFFLINE_BEAMS",
    "OFFLINE_CHATS",
    "OFFLINE_PROMPTS",
    "ONLINE_RENDERER",
    "PREPROCESS_CHAT",
    "PREPROCESS_COMPLETION",
    "PROMPT_TO_SEQ",
    "RENDERER",
    "TOKENS_INPUT",
    "WARM_UP",
]

_ONLINE = "vllm.renderers.online_renderer:OnlineRenderer"
WARM_UP = seam(
    ONLINE,
    f"{_ONLINE}.warmup",
    Use.WRAPS,
    "self",
    lost="loading the ranker before the first request",
)
PREPROCESS_CHAT = seam(
    ONLINE,
    f"{_ONLINE}.preprocess_chat",
    Use.WRAPS,
    "self, request, messages",
    binding="async",
    lost="pruning of chats",
)
PREPROCESS_COMPLETION = seam(
    ONLINE,
    f"{_ONLINE}.preprocess_cmpl",
    Use.WRAPS,
    "self, request, prompts",
    binding="async",
    lost="pruning of completions",
)
ONLINE_RENDERER = reads(ONLINE, _ONLINE, "renderer", lost="the settings of the server")
RENDERER = reads(
    (ONLINE, OFFLINE),
    "vllm.renderers.base:BaseRenderer",
    *("config", "model_config", "tokenizer"),
    lost="the settings of the server, and the target's tokenizer",
)
TOKENS_INPUT = seam(
    ONLINE,
    "vllm.inputs:tokens_input",
    Use.CALLS,
    "prompt_token_ids, *, cache_salt",
    without=Without.WARNS,
    lost="the measured break-even (`--kprune-min-tokens auto`)",
)
GENERATE = seam(
    ONLINE,
    "vllm.engine.protocol:EngineClient.generate",
    Use.CALLS,
    "self, prompt, sampling_params, request_id",
    without=Without.WARNS,
    lost="the measured break-even (`--kprune-min-tokens auto`)",
)


def _offline(name: str, signature: str, lost: str) -> Seam:
    owner = "OfflineInferenceMixin"
    places = (
        at(f"vllm.entrypoints.common.offline:{owner}.{name}", FROM_32),
        at(f"vllm.entrypoints.offline_utils:{owner}.{name}", VERSIONS[:1]),
    )
    return seam(OFFLINE, places, Use.WRAPS, signature, lost=lost)


OFFLINE_PROMPTS = _offline(
    "_add_completion_requests", "self, prompts, params", "pruning of `LLM.generate`"
)
OFFLINE_CHATS = _offline("_add_chat_requests", "self, messages, params", "pruning of `LLM.chat`")
OFFLINE_BEAMS = seam(
    OFFLINE,
    "vllm.entrypoints.generate.beam_search.offline:BeamSearchOfflineMixin.beam_search",
    Use.WRAPS,
    "self, prompts",
    lost="pruning of `LLM.beam_search`",
)
PROMPT_TO_SEQ = seam(
    OFFLINE,
    "vllm.renderers.inputs.preprocess:prompt_to_seq",
    Use.CALLS,
    "prompt_or_prompts",
    lost="pruning of `LLM.generate`",
)
CHAT_TO_SEQ = seam(
    OFFLINE,
    "vllm.renderers.inputs.preprocess:conversation_to_seq",
    Use.CALLS,
    "conversation_or_conversations",
    lost="pruning of `LLM.chat`",
)
