# SPDX-License-Identifier: Apache-2.0
"""The health routes, which need no key and no particular host name, so that probes and load balancers can use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROBES = frozenset({"/health", "/livez", "/readyz"})
READING = frozenset({"GET", "HEAD"})


def is_probe(scope: Mapping[str, Any]) -> bool:
    """Whether a request reads a health route.

    Args:
        scope: of the ASGI call.
    """
    return scope["path"] in PROBES and scope["method"] in READING
