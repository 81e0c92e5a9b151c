"""How kprune's own routes answer a request that they refuse."""

import json

from fastapi import Response

__all__ = ["error_response"]


def error_response(status: int, message: str) -> Response:
    """An error in the form of vLLM's."""
    body = json.dumps({"error": {"message": message, "code": status}}, ensure_ascii=False)
    return Response(body, status_code=status, media_type="application/json")
