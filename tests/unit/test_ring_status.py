# SPDX-License-Identifier: Apache-2.0
"""A ring's status: who hangs, what the whole does, how it is told on a socket, and as metrics."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.rings import ring, stage
from zpptool.admin.prometheus import metrics_text
from zpptool.admin.status_client import read_status, the_status_path
from zpptool.admin.status_server import StatusServer
from zpptool.errors import ExitCode, ZppError
from zpptool.ring.heartbeat import Pulse
from zpptool.ring.status import (
    COMPUTING,
    LOADING,
    READY,
    UNHEARD,
    WAITING,
    WARMING_UP,
    StageStatus,
    aged,
    hung,
    phase_of,
    status_path,
    unheard,
)
from zpptool.wire.link.counters import ROUND_TRIP_BOUNDS_S, Tally


@pytest.mark.parametrize(
    ("stages", "who"),
    [
        ([stage(0), stage(1)], None),
        ([stage(0, COMPUTING, beat_age_s=9.0), stage(1)], None),
        ([stage(0), stage(1, COMPUTING, beat_age_s=11.0)], 1),
        ([stage(0), stage(1, heard_age_s=11.0), stage(2, heard_age_s=12.0)], 1),
        ([stage(0), stage(1, heard_age_s=9.7), stage(2, heard_age_s=10.2)], 1),
        ([stage(0, heard_age_s=2.0), stage(1), stage(2, heard_age_s=10.2)], 2),
        ([stage(0), stage(1, LOADING, beat_age_s=500.0), stage(2, WARMING_UP, heard_age_s=500.0)], None),
        ([stage(0), stage(1, LOADING, heard_age_s=500.0), stage(2, COMPUTING, beat_age_s=11.0)], 2),
        ([unheard(0, 0, 9.0)], None),
        ([stage(0), unheard(1, 0, 11.0)], 1),
    ],
)
def test_the_first_that_gives_no_sign_of_life_is_named(stages: list[StageStatus], who: int | None) -> None:
    found = hung(stages, 10.0)
    assert (found.stage if found else None) == who


def test_what_stood_still_when_it_was_written_is_taken_to_stand_still() -> None:
    assert aged(stage(0, COMPUTING, beat_age_s=2.0), 3.0).beat_age_s == 5.0
    assert aged(stage(0, READY), 3.0).beat_age_s == 0.0
    assert aged(stage(0, READY), 3.0).heard_age_s == pytest.approx(3.1)


@pytest.mark.parametrize(
    ("phases", "gathered", "busy", "whole"),
    [
        ((READY, READY), False, True, WAITING),
        ((READY, LOADING), True, True, LOADING),
        ((WARMING_UP, LOADING), True, True, LOADING),
        ((WARMING_UP, READY), True, True, WARMING_UP),
        ((COMPUTING, READY), True, True, COMPUTING),
        ((READY, UNHEARD), True, False, READY),
    ],
)
def test_the_whole_is_as_far_as_the_last_of_its_stages(phases, gathered, busy, whole) -> None:
    assert phase_of([stage(0, phase) for phase in phases], gathered=gathered, busy=busy) == whole


class TestPulse:
    def test_a_main_loop_ages_only_at_work(self) -> None:
        pulse = Pulse()
        assert (pulse.phase, pulse.age_s) == (WAITING, 0.0)
        with pulse.at_work(COMPUTING):
            time.sleep(0.02)
            aged_s = pulse.age_s
            assert aged_s >= 0.02
            with pulse.at_rest():
                assert pulse.age_s == 0.0
            assert pulse.age_s < aged_s
            pulse.progress()
            assert pulse.phase == COMPUTING
        assert (pulse.phase, pulse.age_s, pulse.steps) == (READY, 0.0, 1)

    def test_a_call_that_fails_is_over_too(self) -> None:
        pulse = Pulse()
        with pytest.raises(ValueError, match="no"), pulse.at_work(COMPUTING):
            raise ValueError("no")
        assert (pulse.phase, pulse.age_s) == (READY, 0.0)


class TestSocket:
    @pytest.fixture
    def told(self, tmp_path: Path):
        path = tmp_path / "head.status"
        telling = StatusServer(path, lambda: ring(stage(0), stage(1)))
        yield path
        telling.close()

    def test_what_is_told_is_what_is_read(self, told: Path) -> None:
        assert read_status(told) == ring(stage(0), stage(1))
        assert the_status_path(told.parent) == the_status_path(told) == told

    def test_only_its_owner_may_ask(self, told: Path) -> None:
        assert stat.S_IMODE(os.stat(told).st_mode) == 0o600

    def test_one_who_does_not_read_holds_up_nobody_for_long(self, told: Path) -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(told))
            assert read_status(told, 5.0).run_id == "run"

    def test_a_socket_that_a_killed_head_left_is_taken_over(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "head.status"))
        telling = StatusServer(tmp_path / "head.status", lambda: ring())
        assert read_status(tmp_path / "head.status").stages == ()
        telling.close()
        with pytest.raises(ZppError, match="no head tells its status") as gone:
            read_status(tmp_path / "head.status")
        assert gone.value.exit_code is ExitCode.ADDRESS

    def test_silence_and_noise_are_faults_in_time(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "s"))
            listening.listen()
            with pytest.raises(ZppError, match=r"nothing whole in 0\.2 s") as late:
                read_status(tmp_path / "s", 0.2)
            assert late.value.exit_code is ExitCode.STAGE

            def babble() -> None:
                listening.accept()[0].close()  # the one that gave up
                with listening.accept()[0] as asking:
                    asking.sendall(b"{}")

            thread = threading.Thread(target=babble)
            thread.start()
            with pytest.raises(ZppError, match="is no status"):
                read_status(tmp_path / "s", 5.0)
            thread.join()

    def test_several_heads_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        with pytest.raises(ZppError) as none:
            the_status_path(tmp_path)
        assert none.value.exit_code is ExitCode.ADDRESS
        opened = []
        for name in ("zpp-a", "zpp-b"):
            (tmp_path / name).mkdir()
            opened.append(StatusServer(status_path(f"ipc://{tmp_path}/{name}/head"), lambda: ring()))
        with pytest.raises(ZppError, match="zpp-a") as several:
            the_status_path(None)
        assert several.value.exit_code is ExitCode.USAGE
        for telling in opened:
            telling.close()

    def test_what_a_killed_head_has_left_is_no_head(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others may run on this machine
        for name in ("zpp-killed", "zpp-runs"):
            (tmp_path / name).mkdir()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(status_path(f"ipc://{tmp_path}/zpp-killed/head")))
        telling = StatusServer(status_path(f"ipc://{tmp_path}/zpp-runs/head"), lambda: ring())
        try:
            assert the_status_path(None).parent.name == "zpp-runs"
            assert read_status(the_status_path(None)) == ring()
        finally:
            telling.close()


class TestMetrics:
    def test_every_link_and_stage_is_there_under_its_names(self) -> None:
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(metrics_text({"one": ring(stage(1))}))
            for sample in family.samples
        }
        link = (("peer", "stage 2"), ("replica", "one"), ("stage", "1"))
        assert samples["zpp:link_sent_bytes_total", link] == 1000
        assert samples["zpp:link_received_messages_total", link] == 6
        assert samples["zpp:link_queue_messages", link] == 4
        assert samples["zpp:link_reconnects_total", link] == 2
        assert samples["zpp:link_refused_peers_total", link] == 2
        assert samples["zpp:link_wait_seconds_total", link] == 0.5
        assert samples["zpp:link_round_trip_seconds_count", link] == 6
        assert samples["zpp:link_round_trip_seconds_bucket", (("le", "0.001"), *link)] == 5
        assert samples["zpp:link_state", (*link, ("state", "connected"))] == 1
        assert samples["zpp:link_state", (*link, ("state", "lost"))] == 0
        assert samples["zpp:stage_steps_total", (("replica", "one"), ("stage", "1"))] == 5
        assert samples["zpp:stage_receive_seconds_total", (("replica", "one"), ("stage", "1"))] == 2.5
        of_head = (("peer", "stage 0"), ("replica", "one"), ("stage", "head"))
        assert samples["zpp:link_sent_bytes_total", of_head] == 1000

    def test_a_stage_that_was_never_heard_has_no_link(self) -> None:
        text = metrics_text({"one": ring(unheard(0, 0, 1.0))})
        assert 'zpp:stage_phase{phase="unheard",replica="one",stage="0"} 1.0' in text

    @given(st.lists(st.floats(0, 20), max_size=50))
    def test_round_trips_are_counted_in_their_class(self, trips: list[float]) -> None:
        tally = Tally()
        for trip in trips:
            tally.round_trip(trip)
        assert sum(tally.rtt_counts) == len(trips)
        for place, bound in enumerate(ROUND_TRIP_BOUNDS_S):
            assert sum(tally.rtt_counts[: place + 1]) == sum(trip <= bound for trip in trips)
