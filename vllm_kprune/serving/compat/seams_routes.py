"""The HTTP routes of a server: how a plugin adds some, and who may ask them.

Rows of the table in `seams`.
"""

from vllm_kprune.serving.compat.features import ROUTES, reads, seam
from vllm_kprune.serving.compat.seam import Use

__all__ = [
    "API_KEY",
    "ATTACH_ROUTER",
    "AUTHENTICATION",
    "ENDPOINT",
    "INIT_STATE",
    "LOAD_ENDPOINTS",
    "VERIFY_TOKEN",
]

LOAD_ENDPOINTS = seam(
    ROUTES, "vllm.plugins:load_endpoint_plugins", Use.WRAPS, lost="`--plugin kprune`"
)
_ENDPOINT = "vllm.plugins.endpoint_plugins.interface:EndpointPlugin"
ATTACH_ROUTER = seam(
    ROUTES,
    f"{_ENDPOINT}.attach_router",
    Use.OVERRIDES,
    "self, app",
    lost="kprune's HTTP routes",
)
INIT_STATE = seam(
    ROUTES,
    f"{_ENDPOINT}.init_state",
    Use.OVERRIDES,
    "self, engine_client, state, args",
    binding="async",
    lost="kprune's HTTP routes",
)
ENDPOINT = reads(ROUTES, _ENDPOINT, *("name", "required_tasks"), lost="kprune's HTTP routes")
_KEY_LOST = "the API key of `POST /kprune/prune` and `GET /kprune/usage`"
AUTHENTICATION = seam(
    ROUTES,
    "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware",
    Use.CALLS,
    "app, tokens",
    lost=_KEY_LOST,
)
VERIFY_TOKEN = seam(
    ROUTES,
    "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware.verify_token",
    Use.CALLS,
    "self, headers",
    lost=_KEY_LOST,
)
API_KEY = reads(
    ROUTES,
    "vllm.envs:VLLM_API_KEY",
    lost=_KEY_LOST,
)
