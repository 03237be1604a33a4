# SPDX-License-Identifier: Apache-2.0
"""Messages between stages over ZeroMQ: typed, bounded, and never without a deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zpptool.wire.communicator import ZeroMQCommunicator

__all__ = ["ZeroMQCommunicator"]


def __getattr__(name: str) -> Any:
    """Load the communicator, and pyzmq with it, only when it is used."""
    if name == "ZeroMQCommunicator":
        from zpptool.wire.communicator import ZeroMQCommunicator

        return ZeroMQCommunicator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
