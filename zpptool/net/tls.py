# SPDX-License-Identifier: Apache-2.0
"""TLS of a server: version 1.2 or later, forward secrecy, authenticated encryption."""

from __future__ import annotations

import ssl
from pathlib import Path

from zpptool.errors import usage_error
from zpptool.regular_file import open_regular

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; all those of TLS 1.3 have these properties."""


def server_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """The context of a server with that certificate; None without one.

    Args:
        certificate: a PEM file with the server's certificate and those that lead to its authority.
        key: the PEM file of its key, without a passphrase.

    Raises:
        ZppError: (USAGE) one of the two is missing or cannot be used.
    """
    if (certificate is None) != (key is None):
        raise usage_error("TLS needs both a certificate and its key", "Give --ssl-certfile and --ssl-keyfile.")
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load a certificate and its key into a context, for connections from then on; raises ZppError (USAGE) if they
    cannot be used."""
    try:
        for file in (certificate, key):
            open_regular(file).close()
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as cause:
        raise usage_error(f"{certificate} and {key} cannot be used: {cause}", "Both are PEM files.") from cause
