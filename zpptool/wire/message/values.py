# SPDX-License-Identifier: Apache-2.0
"""Values that are sent beside tensors: None, bool, int, float, str, bytes, and lists and dicts of them.

The invariant: values arrive equal to what was sent, with the same types. So only those exact types are accepted, on
both sides; a tuple or an enum, which would arrive as something else, is refused by name.
"""

from __future__ import annotations

from typing import Any

import msgspec

from zpptool.wire.link_errors import WireError

_LEAVES = frozenset({type(None), bool, int, float, str, bytes})
_MAX_DEPTH = 64
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, Any])

NO_VALUES = _encoder.encode({})


def encode_values(values: dict[str, Any]) -> bytes:
    """The values as one msgpack map.

    Raises:
        WireError: a value is of another type, too deep, or an integer of more than 64 bits.
    """
    for name, value in values.items():
        _check(name, value, 0)
    try:
        return _encoder.encode(values)
    except (OverflowError, UnicodeEncodeError) as error:
        raise WireError(f"a value in {sorted(values)} cannot be sent: {error}.") from error


def decode_values(data: bytes | memoryview | msgspec.Raw) -> dict[str, Any]:
    """The values in one msgpack map.

    Raises:
        WireError: it is not such a map.
    """
    try:
        values = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"its plain values cannot be read: {error}.") from error
    for name, value in values.items():
        _check(name, value, 0)
    return values


def _check(name: str, value: Any, depth: int) -> None:
    kind = type(value)
    if kind in _LEAVES:
        return
    if depth == _MAX_DEPTH:
        raise WireError(f"the value {name!r} is nested more than {_MAX_DEPTH} deep.")
    if kind is list:
        for item in value:
            _check(name, item, depth + 1)
    elif kind is dict:
        for key, item in value.items():
            if type(key) not in _LEAVES:
                raise WireError(f"the value {name!r} has a key of type {type(key).__name__}.")
            _check(name, item, depth + 1)
    else:
        raise WireError(
            f"the value {name!r} is or holds a {kind.__name__}.",
            "Supported are tensors, None, bool, int, float, str, bytes, and lists and dicts of these.",
        )
