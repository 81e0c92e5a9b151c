"""Connections that no later attempt can make: certificates, TLS, proxies."""

import os
import re
import ssl

from vllm_kprune.compare.endpoint.messages import Endpoint
from vllm_kprune.errors import KPruneError

__all__ = ["certificates", "check_lasting"]


# Of OpenSSL's errors, those of two sides that do not fit; others are lost connections.
_NO_TLS = (
    *("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNSUPPORTED_PROTOCOL"),
    *("HANDSHAKE_FAILURE", "CERTIFICATE_REQUIRED"),
)
_REFUSED_BY_PROXY = re.compile(r"\b4\d\d\b")


def certificates(side: str) -> ssl.SSLContext:
    """The authorities that are trusted: those of the environment, else those of the system."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        if file or folder:
            return ssl.create_default_context(cafile=file or None, capath=folder or None)
        import certifi

        return ssl.create_default_context(cafile=certifi.where())
    except (OSError, ssl.SSLError) as error:
        raise KPruneError(
            f"the certificates for the {side} endpoint cannot be read: {error}; check "
            "SSL_CERT_FILE and SSL_CERT_DIR"
        ) from None


def _reason_of(text: str) -> str:
    """The words of OpenSSL's error after its codes: "self-signed certificate"."""
    return text.rpartition("verify failed: ")[2].partition(" (_ssl")[0]


def check_lasting(error: Exception, endpoint: Endpoint) -> None:
    """Raise a `KPruneError` for an error that no later attempt will change."""
    text, name = str(error), endpoint.name
    if "CERTIFICATE_VERIFY_FAILED" in text:
        raise KPruneError(
            f"the certificate of the {name} endpoint ({endpoint.url}) cannot be verified: "
            f"{_reason_of(text)}; set SSL_CERT_FILE to a file with its certificate or that of "
            "its authority"
        ) from None
    if any(word in text for word in _NO_TLS):
        raise KPruneError(
            f"no TLS connection to the {name} endpoint ({endpoint.url}): {text}; if it is a "
            "plain server, write http:// instead of https://"
        ) from None
    # A proxy that cannot reach the server says 502 or 504, which may pass.
    if type(error).__name__ == "ProxyError" and _REFUSED_BY_PROXY.search(text):
        raise KPruneError(
            f"the proxy for the {name} endpoint refused the connection: {text}; check "
            "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY"
        ) from None
