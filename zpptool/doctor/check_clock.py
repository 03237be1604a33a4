# SPDX-License-Identifier: Apache-2.0
"""Check that the clock is synchronised: logs of several hosts are compared, and TLS and Hub tokens need correct time.

The kernel reports it (adjtimex(2)): an NTP client that disciplines the clock clears STA_UNSYNC. No link of zpptool
depends on the clock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from zpptool.doctor.finding import Finding, ok, warning
from zpptool.doctor.target import Target

STA_UNSYNC = 0x0040
"""Status bit of an unsynchronised clock, from <sys/timex.h>."""


class _Timex(ctypes.Structure):
    """The first fields of struct timex of <sys/timex.h>, and space for the rest (the kernel writes up to 208 bytes)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def check_clock(_target: Target) -> Iterator[Finding]:
    """Report the kernel's clock status; nothing if it is not available."""
    status = clock_status()
    if status is not None:
        yield clock_finding(*status)


def clock_status() -> tuple[int, int] | None:
    """Return the kernel's clock status bits and its maximum error in microseconds; None if there is no adjtimex."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (AttributeError, OSError):
        return None
    return None if state < 0 else (int(timex.status), int(timex.maxerror))


def clock_finding(status: int, error_us: int) -> Finding:
    """Judge the clock's status bits and its maximum error in microseconds."""
    if status & STA_UNSYNC:
        return warning("clock", "not synchronised", "Run an NTP client (chrony, systemd-timesyncd) on every host.")
    return ok("clock", f"synchronised, within {error_us / 1e6:.1f} s")
