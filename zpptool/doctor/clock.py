# SPDX-License-Identifier: Apache-2.0
"""Is the clock kept? Logs of several hosts are read side by side, and TLS and Hub tokens need the time of day.

The kernel knows (adjtimex(2)): an NTP client that keeps the clock clears STA_UNSYNC. No link of zpptool depends on it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from zpptool.doctor.finding import Finding, ok, warning
from zpptool.doctor.target import Target

STA_UNSYNC = 0x0040
"""<sys/timex.h>."""


class _Timex(ctypes.Structure):
    """struct timex of <sys/timex.h>, as far as it is read; the kernel writes up to 208 bytes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def check_clock(_patient: Target) -> Iterator[Finding]:
    """What the kernel says of its clock; nothing where it cannot be asked."""
    status = clock_status()
    if status is not None:
        yield clock_finding(*status)


def clock_status() -> tuple[int, int] | None:
    """The kernel's clock status bits and its largest error in microseconds; None where the system has no adjtimex."""
    told = _Timex()
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.byref(told))
    except (AttributeError, OSError):
        return None
    return None if answer < 0 else (int(told.status), int(told.maxerror))


def clock_finding(status: int, error_us: int) -> Finding:
    """The clock's status bits and largest error in microseconds."""
    if status & STA_UNSYNC:
        return warning("clock", "not synchronised", "Run an NTP client (chrony, systemd-timesyncd) on every host.")
    return ok("clock", f"synchronised, within {error_us / 1e6:.1f} s")
