# SPDX-License-Identifier: Apache-2.0
"""Statuses of rings, made up for tests."""

from __future__ import annotations

import msgspec

from zpptool.ring.status import READY, LinkStatus, RingStatus, StageStatus, unheard

LINK = LinkStatus(
    peer="stage 2", endpoint="ipc:///x", state="connected", epoch=3, rtt_ms=1.5, queue=4, bytes_sent=1000,
    bytes_received=900, messages_sent=10, messages_received=6, refused=2, last_error="", sessions=3, wait_s=0.5,
    send_s=0.25, rtt_counts=(0, 0, 5, *[0] * 10, 1), rtt_sum_s=9.0,
)  # fmt: skip


def stage(place: int, phase: str = READY, **fields: object) -> StageStatus:
    """A healthy stage, apart from these fields."""
    known = msgspec.structs.replace(
        unheard(place, 3, 0.1),
        phase=phase,
        host="here",
        pid=7,
        layers=(0, 2),
        link=LINK,
        steps=5,
        receive_s=2.5,
        compute_s=4.5,
    )
    return msgspec.structs.replace(known, **fields)


def ring(*stages: StageStatus) -> RingStatus:
    """The status of a ring of these stages."""
    return RingStatus("run", 3, READY, "", stages, stage(-1, link=msgspec.structs.replace(LINK, peer="stage 0")))
