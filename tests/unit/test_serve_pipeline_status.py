# SPDX-License-Identifier: Apache-2.0
"""What a pipeline's status says of a stage: its ring's word, its own word before there is one, or its pipeline's."""

from __future__ import annotations

import os
from dataclasses import replace

import msgspec
import pytest

from tests.rings import LINK, ring, stage
from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.places import HEAD
from zpptool.ring.status import (
    COMPUTING,
    LOADING,
    READY,
    RECOVERING,
    WAITING,
    WARMING_UP,
    RingStatus,
    StageStatus,
    unheard,
)
from zpptool.serve.backends import standing_of
from zpptool.serve.display import rows_of
from zpptool.serve.pipeline_status import describe_pipeline, stage_phase
from zpptool.supervisor.lifecycle import Phase, State
from zpptool.supervisor.pipeline_view import PipelineView, ProcessView

SPECS = tuple(
    StageSpec(Engine.TRANSFORMERS, "/m", ((0, 2), (2, 4)), number, "ipc:///b", "ipc:///c", served_name="tiny")
    for number in range(2)
)


def view(phase: Phase, said: str, told: RingStatus | None = None, *, running: bool = True) -> PipelineView:
    """A pipeline of which stage 1, a process of this test, says so."""
    processes = tuple(
        ProcessView(name, os.getpid(), said, running if name == "stage 1" else True)
        for name in ("stage 0", "head", "stage 1")
    )
    state = State(phase, generation=2, ever_ready=True, places=(HEAD, 0, 1))
    return PipelineView(state, SPECS, processes, 1, told)


def told(phase: str) -> RingStatus:
    return ring(stage(0), stage(1, phase))


UNHEARD = ring(stage(0), unheard(1, 1, 0.1))


@pytest.mark.parametrize(
    ("where", "said", "ring_says", "shown"),
    [
        (Phase.STARTING, "starting", None, "starting"),
        (Phase.STARTING, "starting", UNHEARD, "starting"),
        (Phase.STARTING, "waiting for the other stages", told(WAITING), "waiting for the other stages"),
        (Phase.STARTING, "loading 43%", told(LOADING), "loading 43%"),
        (Phase.STARTING, "waiting for the other stages", told(LOADING), "loading"),
        (Phase.STARTING, "loading 100%", told(WARMING_UP), "warming up"),
        (Phase.STARTING, "loading 100%", told(READY), "loaded"),
        (Phase.STARTING, "loading 100%", told(COMPUTING), "loaded"),
        (Phase.READY, "loading 100%", told(READY), "ready"),
        (Phase.READY, "loading 100%", told(COMPUTING), "computing"),
        (Phase.READY, "loading 100%", None, "ready"),
        (Phase.DRAINING, "loading 100%", told(COMPUTING), "draining"),
        (Phase.RESTING, "loading 100%", told(READY), "waiting to restart"),
    ],
)
def test_the_one_who_knows_best_says_the_phase(
    where: Phase, said: str, ring_says: RingStatus | None, shown: str
) -> None:
    assert stage_phase(view(where, said, ring_says), 1) == shown


@pytest.mark.parametrize("where", [Phase.CLEARING, Phase.RESTING])
def test_one_that_stays_waits_for_those_that_are_started_again(where: Phase) -> None:
    known = view(where, "loaded", told(WAITING))
    mend = replace(known, state=replace(known.state, places=(0,)))
    assert [stage_phase(mend, number) for number in (0, 1)] == [str(where), "waiting for the other stages"]


@pytest.mark.parametrize("where", list(Phase))
def test_a_stage_that_does_not_run_is_said_not_to_run(where: Phase) -> None:
    assert stage_phase(view(where, "ready", told(READY), running=False), 1) == "not running"
    unborn = stage_phase(PipelineView(State(where), SPECS, (), 0), 1)
    assert unborn == ("starting" if where is Phase.STARTING else "not running")


def test_the_status_holds_what_the_ring_tells() -> None:
    link = msgspec.structs.replace(LINK, last_error="a word was lost")
    last = stage(1, COMPUTING, link=link, steps=9, beat_age_s=0.25)
    described = describe_pipeline(view(Phase.READY, "loading 100%", ring(stage(0), last)))
    first, second = described["stages"]
    assert (second["phase"], second["steps"], second["still_s"], second["rtt_ms"]) == ("computing", 9, 0.25, 1.5)
    assert (second["layers"], second["pid"]) == ([2, 4], os.getpid())
    assert (second["generation"], second["epoch"]) == (2, 2)
    assert second["memory"] > 1 << 20
    for name, value in {
        "peer": "stage 2", "state": "connected", "epoch": 3, "rtt_ms": 1.5, "queue": 4, "bytes_sent": 1000,
        "bytes_received": 900, "messages_sent": 10, "last_error": "a word was lost",
    }.items():  # fmt: skip
        assert second["link"][name] == value
    assert first["link"]["last_error"] == ""
    assert described["head"]["link"]["peer"] == "stage 0"
    assert (described["run"], described["model"], described["restarts"]) == ("run", "tiny", 1)


def test_before_a_ring_is_heard_of_there_are_no_links() -> None:
    for stage_ in describe_pipeline(view(Phase.STARTING, "starting"))["stages"]:
        assert (stage_["link"], stage_["rtt_ms"], stage_["steps"]) == (None, None, None)


def test_a_standing_says_what_each_stage_does() -> None:
    known = view(Phase.STARTING, "loading 43%", ring(stage(0, WARMING_UP), stage(1, LOADING)))
    assert standing_of(known).phase == "starting: stage 0 warming up, stage 1 loading 43%"
    assert standing_of(view(Phase.READY, "x", told(COMPUTING))).phase == "ready"


def test_computing_is_no_news_on_the_display() -> None:
    def shown(last: StageStatus) -> list[str]:
        return [row.phase for row in rows_of("p", view(Phase.READY, "x", ring(stage(0), last)))]

    assert shown(stage(1, COMPUTING)) == shown(stage(1, READY)) == ["ready", "ready"]


def test_a_ring_that_has_lost_something_takes_no_request_though_every_process_runs() -> None:
    ring_ = msgspec.structs.replace(told(COMPUTING), phase=RECOVERING, recoveries=2, stall_s=1.5, recomputed_tokens=7)
    known = view(Phase.READY, "loaded", ring_)
    assert (standing_of(known).ready, standing_of(known).phase) == (False, "recovering")
    described = describe_pipeline(known)
    assert [described[key] for key in ("recoveries", "stall_s", "recomputed_tokens")] == [2, 1.5, 7]
