# SPDX-License-Identifier: Apache-2.0
"""The limits of the front of `zpptool serve`: its options, and the two objects that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zpptool.net.connection_limits import ConnectionLimits
    from zpptool.serve.proxy import ProxyLimits

# Of requests
MaxRequestBytesOption = Annotated[
    int, typer.Option("--max-request-bytes", metavar="N", min=1, help="The most bytes of a request's body.")
]
RequestTimeoutOption = Annotated[
    float, typer.Option("--request-timeout", metavar="S", min=0, help="Seconds a request may take; 0 for no limit.")
]
MaxBufferedBytesOption = Annotated[
    int, typer.Option("--max-buffered-bytes", metavar="N", min=1, help="The most bytes of all bodies in progress.")
]

RouteByPrefixOption = Annotated[
    bool, typer.Option("--route-by-prefix", help="Send prompts that begin alike to one pipeline, unless it is busy.")
]

# Of connections
MaxConnectionsOption = Annotated[
    int, typer.Option("--max-connections", metavar="N", min=1, help="The most connections to the front.")
]
MaxConnectionsPerAddressOption = Annotated[
    int,
    typer.Option("--max-connections-per-address", metavar="N", min=1, help="The most of them of one client address."),
]
HeaderTimeoutOption = Annotated[
    float, typer.Option("--header-timeout", metavar="S", min=0.1, help="Seconds a request's headers may take.")
]
BodyTimeoutOption = Annotated[
    float, typer.Option("--body-timeout", metavar="S", min=0.1, help="Seconds a request's body may take to arrive.")
]
KeepAliveTimeoutOption = Annotated[
    int, typer.Option("--keep-alive-timeout", metavar="S", min=1, help="Seconds a connection may be idle.")
]


def request_limits(ctx: typer.Context, *, keep_key: bool) -> ProxyLimits:
    """The limits of one request, from the parameters of a command that has the options above.

    Args:
        ctx: of the running command.
        keep_key: as in `ProxyLimits`.
    """
    from zpptool.serve.proxy import ProxyLimits

    given = ctx.params
    return ProxyLimits(
        body_bytes=given["max_request_bytes"],
        request_s=given["request_timeout"] or None,
        keep_key=keep_key,
        buffered_bytes=given["max_buffered_bytes"],
        by_prefix=given["route_by_prefix"],
    )


def connection_limits(ctx: typer.Context) -> ConnectionLimits:
    """The limits of connections, from the parameters of a command that has the options above."""
    from zpptool.net.connection_limits import ConnectionLimits

    given = ctx.params
    return ConnectionLimits(
        connections=given["max_connections"],
        per_address=given["max_connections_per_address"],
        header_s=given["header_timeout"],
        body_s=given["body_timeout"],
        keep_alive_s=given["keep_alive_timeout"],
    )
