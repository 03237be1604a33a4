# SPDX-License-Identifier: Apache-2.0
"""`zpptool serve` as a user runs it, on a tiny model: its API, its status, lost processes, and that none is left."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("transformers")
pytest.importorskip("httpx")

import httpx

from tests.conftest import Ran
from tests.served import END_S, READY_S, Served, serving, wait_for
from tests.stages import free_base_port

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]

STREAMS = 50
LONG = {"prompt": "one two", "max_tokens": 6000, "temperature": 0, "ignore_eos": True}
SHORT = {"prompt": "one two", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=4, max_position_embeddings=8192, initializer_range=0.5)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*arguments: object) -> Served:
        started.append(Served(tmp_path, *arguments))
        return started[-1]

    yield start
    for served in started:
        served.close()


def full_disk(logs: Path) -> None:
    """Make every write to the logs in that directory fail, as on a full disk."""
    logs.mkdir(parents=True)
    for name in ("stage-0", "stage-1", "head"):
        (logs / f"{name}.log").symlink_to("/dev/full")


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A pipeline of two stages, shared by several tests, which also kill parts of it."""
    directory = tmp_path_factory.mktemp("serve")
    full_disk(directory / "logs" / "generation-2")
    options = (
        "--num-stages", 2, "--log-dir", directory / "logs", "--served-model-name", "tiny", "--recovery-deadline", 200,
        "--drain-timeout", 200,
    )  # fmt: skip
    with serving(directory, model, *options) as command:
        yield command


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=200, trust_env=False) as client:
        yield client


def text_of(answer: httpx.Response) -> str:
    """The completion in an answer, which must be a success."""
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_every_phase_is_printed(served: Served) -> None:
    for stage in (0, 1):
        served.find(rf"pipeline, stage {stage} .*: ready")
        phases = re.findall(rf"pipeline, stage {stage} \(layers \d-\d, pid \d+\): (.*)", served.text())
        assert (phases[0], phases[-1]) == ("starting", "ready")
    assert served.output.read_text() == f"serving tiny at {served.url}\n"
    assert {path.name for path in (served.errors.parent / "logs/generation-1").iterdir()} == {
        "head.log", "stage-0.log", "stage-1.log"
    }  # fmt: skip


def test_openais_client_works(served: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=200)
    assert [model.id for model in client.models.list()] == ["tiny"]
    request = {"model": "tiny", "prompt": "one two", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**request).choices[0].text
    chunks = [chunk.choices[0].text for chunk in client.completions.create(**request, stream=True)]
    assert "".join(chunks) == whole
    assert len(chunks) > 1
    with pytest.raises(openai.NotFoundError, match="there is no other here"):
        client.completions.create(**{**request, "model": "other"})


def _status_at_rest(served: Served, zpptool: Callable[..., Ran]) -> dict[str, Any]:
    """The status once each stage's last heartbeat was sent after its last step, and was answered."""
    while True:
        ran = zpptool("status", "--url", served.url, "--json")
        assert ran.code == 0, ran.err
        status: dict[str, Any] = ran.json
        if all(stage["rtt_ms"] is not None and stage["phase"] != "computing" for stage in status["stages"]):
            return status
        time.sleep(0.2)


def test_status_top_probes_and_metrics(served: Served, client: httpx.Client, zpptool: Callable[..., Ran]) -> None:
    processes = served.look()
    status = _status_at_rest(served, zpptool)
    assert (status["phase"], status["ready"], status["model"]) == ("ready", True, "tiny")
    for place, stage in enumerate(status["stages"]):
        assert stage["pid"] == processes[f"stage {place}"].pid
        assert (stage["stage"], stage["layers"], stage["phase"]) == (place, [2 * place, 2 * place + 2], "ready")
        assert stage["memory"] > 10 << 20
        assert stage["steps"] > 0
        assert stage["rtt_ms"] > 0
        assert {"host", "epoch", "requests"} <= stage.keys()
    links = [status["replicas"][0]["head"]["link"], *(stage["link"] for stage in status["stages"])]
    assert [link["peer"] for link in links] == ["stage 0", "stage 1", "the head"]
    for link in links:
        assert (link["state"], link["last_error"]) == ("connected", "")
        assert 0 < link["bytes_received"] <= link["bytes_sent"]
    shown = zpptool("top", "--url", served.url, "--count", 2, "--every", 0.1)
    assert shown.out.count("tiny: ready") == 2
    assert shown.out.count("stage 1 -> the head") == 2
    assert client.get("/livez").status_code == client.get("/health").status_code == 200
    assert client.get("/readyz").json()["ready"] is True
    text_of(client.post("/v1/completions", json=SHORT))
    metrics = client.get("/metrics").text
    assert 'zpp:pipeline_ready{replica="pipeline"} 1.0' in metrics
    assert 'zpp:stage_up{replica="pipeline",stage="1"} 1.0' in metrics
    assert 'zpp:link_state{peer="stage 1",replica="pipeline",stage="0",state="connected"} 1.0' in metrics
    families = [line for line in metrics.splitlines() if line.startswith("# TYPE ")]
    assert len(families) == len(set(families))
    assert float(re.findall(r"^zpp:generation_tokens_total (\S+)", metrics, re.MULTILINE)[0]) >= len("x" * 12)


def test_concurrent_streams_have_the_tokens_of_a_single_one(client: httpx.Client, served: Served) -> None:
    alone = text_of(client.post("/v1/completions", json=SHORT))

    def stream(_number: int) -> str:
        with client.stream("POST", "/v1/completions", json={**SHORT, "stream": True}) as got:
            events = [line[6:] for line in got.iter_lines() if line.startswith("data: {")]
        return "".join(json.loads(event)["choices"][0]["text"] for event in events)

    with ThreadPoolExecutor(STREAMS) as pool:
        assert set(pool.map(stream, range(STREAMS))) == {alone}


def in_background(function: Callable[[], object]) -> list[object]:
    """Call a function on another thread. The list gets its result, or the exception that it raised."""
    results: list[object] = []

    def work() -> None:
        try:
            results.append(function())
        except Exception as fault:
            results.append(fault)

    threading.Thread(target=work, daemon=True).start()
    return results


@pytest.mark.parametrize(("victim", "generation"), [("stage 1", 2), ("head", 3)])
def test_only_the_killed_process_is_started_again(
    victim: str, generation: int, served: Served, client: httpx.Client
) -> None:
    """The loss of a stage is a pause. After the loss of the head, a stream that has begun ends with OpenAI's error; a
    request of which no byte was sent, and one that arrives meanwhile, are answered. The logs of the second start cannot
    be written, as on a full disk."""
    expected = text_of(client.post("/v1/completions", json=SHORT))
    before = served.look()
    not_begun = in_background(lambda: client.post("/v1/completions", json={**LONG, "max_tokens": 800}))
    with client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 800, "stream": True}) as got:
        lines = got.iter_lines()
        next(lines)
        before[victim].kill()
        wait_for(lambda: client.get("/readyz").status_code == 503)
        meanwhile = in_background(lambda: client.post("/v1/completions", json=SHORT))
        last = [line for line in lines if line.startswith("data: ")][-2:]
    assert ('"error"' in "".join(last)) == (victim == "head"), last
    assert (last[-1] == "data: [DONE]") == (victim != "head"), last
    for waited in (not_begun, meanwhile):
        wait_for(lambda waited=waited: waited)
        assert isinstance(waited[0], httpx.Response), waited
    assert text_of(meanwhile[0]) == expected
    assert text_of(not_begun[0])
    served.until_ready(generation)
    after = served.look()
    for name, process in before.items():
        assert process.is_running() == (name != victim), name
        assert after[name].is_running(), name
    assert f"pipeline: {victim} was killed by SIGKILL; it is started again in 0 s" in served.text()
    status = client.get("/pipeline/status").json()
    counts = [(stage["generation"], stage["epoch"]) for stage in status["stages"]]
    assert counts == [(generation, generation)] * 2
    assert status["replicas"][0]["restarts"] == generation - 1


def test_ctrl_c_waits_for_answers_and_then_ends_everything(served: Served, client: httpx.Client) -> None:
    """Stops the shared pipeline: the last test that uses it."""
    with client.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 800, "stream": True}) as got:
        lines = got.iter_lines()
        next(lines)
        served.look()
        served.process.send_signal(signal.SIGINT)
        wait_for(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/v1/completions", json=SHORT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "pipeline_not_ready")
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert served.process.wait(END_S) == 130
    assert served.left_behind() == []


@pytest.mark.vllm
@pytest.mark.timeout(700)
def test_vllm_is_served_like_the_embedded_engine(
    tiny_model: Callable[..., Path], serve: Callable[..., Served], zpptool: Callable[..., Ran]
) -> None:
    """Stock vLLM: its phases, answers and unchanged metrics, and its ring in the status. A killed stage is a pause, and
    when the command itself is killed, no process is left."""
    pytest.importorskip("vllm")
    model = tiny_model("llama", hidden_size=128, intermediate_size=128, initializer_range=0.3)
    command = serve(
        *(model, "--num-stages", 2, "--engine", "vllm", "--served-model-name", "tiny", "--dtype", "float32", "--"),
        *("--enforce-eager", "--kv-cache-memory-bytes", 64 << 20, "--max-model-len", 256),
    )
    command.find("ready after", 450)
    command.look()
    with httpx.Client(base_url=command.url, timeout=200, trust_env=False) as client:
        alone = text_of(client.post("/v1/completions", json={**SHORT, "model": "tiny"}))
        with client.stream("POST", "/v1/completions", json={**SHORT, "model": "tiny", "stream": True}) as got:
            events = [line[6:] for line in got.iter_lines() if line.startswith("data: {")]
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == alone
        status = zpptool("status", "--url", command.url, "--json").json
        long = {**SHORT, "model": "tiny", "max_tokens": 200}
        undisturbed = text_of(client.post("/v1/completions", json=long))
        killed = in_background(lambda: client.post("/v1/completions", json={**long, "stream": True}))
        wait_for(lambda: client.get("/pipeline/status").json()["requests"]["in_flight"])
        command.look()["stage 1"].kill()
        command.until_ready(2, within_s=250)
        wait_for(lambda: killed)
        assert '"error"' not in killed[0].text
        events = [line[6:] for line in killed[0].text.splitlines() if line.startswith("data: {")]
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == undisturbed
        assert client.get("/pipeline/status").json()["replicas"][0]["recoveries"] == 1
        metrics = client.get("/metrics").text
        head = client.get(f"{client.get('/pipeline/status').json()['replicas'][0]['url']}/metrics").text
    names = {line.split(" ")[2] for line in head.splitlines() if line.startswith("# TYPE vllm:")}
    assert names <= {line.split(" ")[2] for line in metrics.splitlines() if line.startswith("# TYPE ")}
    assert len(names) > 20
    assert [stage["link"]["peer"] for stage in status["stages"]] == ["stage 1", "the head"]
    for stage in (0, 1):
        phases = re.findall(rf"pipeline, stage {stage} \(.*\): (.*)", command.text())
        loading = next(place for place, phase in enumerate(phases) if phase.startswith("load"))  # loading, loaded
        assert phases.index("starting") < loading < phases.index("ready")
    command.process.kill()
    assert command.left_behind() == []


def test_no_process_outlives_a_killed_parent(model: Path, serve: Callable[..., Served]) -> None:
    """Killed during the start, when the parent has just created its processes."""
    command = serve(model, "--num-stages", 2)
    wait_for(lambda: len(command.look()) == 3)
    command.process.kill()
    assert command.left_behind() == []


def test_a_crash_loop_is_given_up_with_the_reason(model: Path, serve: Callable[..., Served]) -> None:
    command = serve(model, "--num-stages", 2, "--max-restarts", 1)
    killed: set[int] = set()
    wait_for(lambda: command.look())
    while command.process.poll() is None and len(killed) < 2:
        victim = command.look().get("stage 1")
        if victim is not None and victim.pid not in killed:
            killed.add(victim.pid)
            victim.kill()
        time.sleep(0.05)
    assert command.process.wait(READY_S) == 6
    assert "the pipeline has failed 2 times in a row and is given up: stage 1 was killed by SIGKILL" in command.text()
    assert command.left_behind() == []


def test_a_wrong_argument_of_the_engine_is_refused_before_anything_is_started(
    model: Path, serve: Callable[..., Served]
) -> None:
    command = serve(model, "--num-stages", 2, "--", "--no-such-argument")
    assert command.process.wait(READY_S) == 2
    assert "takes no arguments of its own: --no-such-argument" in command.text()
    assert "started again" not in command.text()
    assert command.left_behind() == []


@contextmanager
def in_a_terminal(model: Path, *arguments: object) -> Iterator[tuple[int, int]]:
    """Run `zpptool serve` in a pseudo-terminal until its stages are starting; yields its pid and the terminal's file
    descriptor."""
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = ("serve", model, "--num-stages", 2, "--engine", "transformers", "--port", 0, *arguments)
        os.execv(sys.executable, [sys.executable, "-m", "zpptool", *map(str, arguments)])
    shown = b""
    deadline = time.monotonic() + READY_S
    while b"starting" not in shown:
        assert time.monotonic() < deadline, shown
        shown += os.read(terminal, 65536)
    wait_for(lambda: len(psutil.Process(pid).children(recursive=True)) >= 3)
    assert b"\x1b[" in shown
    try:
        yield pid, terminal
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def ended(pid: int) -> int:
    """The exit code of a process of `in_a_terminal`."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_terminal_shows_the_live_table_and_closing_it_ends_everything(model: Path) -> None:
    """The table is drawn with control sequences; closing the terminal is a stop request."""
    with in_a_terminal(model) as (pid, terminal):
        seen = psutil.Process(pid).children(recursive=True)
        os.close(terminal)
        assert ended(pid) == 130
    assert psutil.wait_procs(seen, timeout=END_S)[1] == []


def test_with_nohup_the_command_outlives_its_terminal(model: Path) -> None:
    port = free_base_port()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ExitStack() as running:
        try:
            pid, terminal = running.enter_context(in_a_terminal(model, "--port", port))
        finally:
            signal.signal(signal.SIGHUP, before)
        os.close(terminal)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=200, trust_env=False) as client:
            wait_for(lambda: client.get("/readyz").status_code == 200)
            text_of(client.post("/v1/completions", json=SHORT))
        os.kill(pid, signal.SIGINT)
        assert ended(pid) == 130
