# SPDX-License-Identifier: Apache-2.0
"""All checks, in the order in which their findings are shown. A check that raises becomes a finding itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from zpptool.doctor.check_clock import check_clock
from zpptool.doctor.check_cpu import check_cpu
from zpptool.doctor.check_engine import check_engine_and_devices
from zpptool.doctor.check_keys import check_keys
from zpptool.doctor.check_memory import check_disk, check_files, check_memory, check_shared_memory
from zpptool.doctor.check_model import check_model
from zpptool.doctor.check_network import check_peers, check_ports
from zpptool.doctor.check_processor import check_processor
from zpptool.doctor.finding import Finding, warning
from zpptool.doctor.target import Target
from zpptool.doctor.versions import check_versions, check_zeromq

Check = Callable[[Target], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    check_versions,
    check_zeromq,
    check_engine_and_devices,
    check_memory,
    check_shared_memory,
    check_files,
    check_cpu,
    check_clock,
    check_disk,
    check_model,
    check_processor,
    check_ports,
    check_keys,
    check_peers,
)


def examine(target: Target, checks: tuple[Check, ...] = CHECKS) -> Iterator[Finding]:
    """Run the checks and yield their findings, in order."""
    for check in checks:
        try:
            yield from check(target)
        except Exception as cause:  # one broken check must not hide the findings of the others
            name = check.__name__.removeprefix("check_")
            yield warning(name, f"could not be checked: {type(cause).__name__}: {cause}", "Check it by hand.")
