# SPDX-License-Identifier: Apache-2.0
"""What `--wire-codec` gains on a slow link: real activations between two network namespaces, at several link speeds.

    sudo python benchmarks/thinlink.py --model MODEL [--rates 200 1000 0] [--seconds 20]

Two namespaces and a pair of veths, with `tc tbf` (rate in Mbit/s, 0 for none) and with `netem` where a delay is asked
for. Hidden states of two layers of MODEL in bf16 are sent, and a few bytes answer their receipt; the codecs are
measured in turns, in random order. Received tensors are compared bit for bit. Shown are medians in milliseconds, and
the ratio to no codec.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from zpptool.wire import ZeroMQCommunicator
from zpptool.wire.compression.adaptive import WireCodec

CODECS = tuple(WireCodec)
PORT = 29500
SENDER, RECEIVER = "10.213.0.1", "10.213.0.2"
TOKENS = (16, 128, 1024)
LAYERS = (10, 20)
TEXT = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
WARM_UP = 6
TIMEOUT_S = 120.0


def activations(model: str) -> dict[str, torch.Tensor]:
    """Hidden states of two layers for a page of text, bf16, [tokens, width] each."""
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(model)(TEXT.read_text()[:8000], return_tensors="pt")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.no_grad():
        states = loaded(tokens.input_ids, output_hidden_states=True).hidden_states
    return {f"layer_{layer}": states[layer][0].contiguous() for layer in LAYERS}


def communicators(rank: int) -> dict[WireCodec, ZeroMQCommunicator]:
    """One pair of links for each codec."""
    mine, other = (SENDER, RECEIVER) if rank == 0 else (RECEIVER, SENDER)
    return {
        codec: ZeroMQCommunicator(
            rank,
            2,
            bind=f"tcp://{mine}:{PORT + number}",
            connect=f"tcp://{other}:{PORT + number}",
            timeout_s=TIMEOUT_S,
            codec=codec,
            insecure=True,
            shared_memory=False,  # both namespaces are on this machine
        )
        for number, codec in enumerate(CODECS)
    }


def receive(file: str) -> None:
    """The other host: compares received tensors with the captured ones, and answers."""
    captured, links = torch.load(file), communicators(1)
    codec = CODECS[0]
    while True:
        got = links[codec].recv_tensor_dict()
        identical = all(torch.equal(got[name], whole[: got["tokens"]]) for name, whole in captured.items())
        links[codec].send_tensor_dict({"identical": identical})
        if got["next"] is None:
            return
        codec = WireCodec(got["next"])


def send(file: str, seconds: float) -> None:
    """This host: measures."""
    captured, links = torch.load(file), communicators(0)
    codec = CODECS[0]
    for tokens in TOKENS:
        tensors = {name: whole[:tokens].clone() for name, whole in captured.items()}
        times: dict[WireCodec, list[float]] = {one: [] for one in CODECS}
        end = time.monotonic() + seconds / len(TOKENS)
        while time.monotonic() < end or min(map(len, times.values())) < 3 * WARM_UP:
            following = random.choice(CODECS)
            start = time.perf_counter()
            links[codec].send_tensor_dict({**tensors, "tokens": tokens, "next": following.value})
            assert links[codec].recv_tensor_dict()["identical"], "the received bits differ"
            times[codec].append(time.perf_counter() - start)
            codec = following
        medians = {one: statistics.median(taken[WARM_UP:]) * 1e3 for one, taken in times.items()}
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        cells = (f"{medians[one]:>9.2f} ({medians[one] / medians[WireCodec.NONE]:.2f}x)" for one in CODECS)
        print(f"{tokens:>6} {nbytes / 1024:>8.0f} " + " ".join(cells), flush=True)
    links[codec].send_tensor_dict({**tensors, "tokens": tokens, "next": None})
    links[codec].recv_tensor_dict()


@contextmanager
def hosts(rate_mbit: int, delay_ms: float) -> Iterator[tuple[str, str]]:
    """Create two namespaces with that link between them; their names."""
    names = tuple(f"zpp-{os.getpid()}-{side}" for side in "ab")
    run = lambda *command: subprocess.run(command, check=True)  # noqa: E731
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in zip(names, (SENDER, RECEIVER), strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            tc = ("tc", "-n", name, "qdisc", "add", "dev", "eth0")
            place = ["root"]
            if rate_mbit:
                rate = ("rate", f"{rate_mbit}mbit", "burst", "256kb", "latency", "100ms")
                run(*tc, *place, "handle", "1:", "tbf", *rate)
                place = ["parent", "1:"]
            if delay_ms:
                run(*tc, *place, "netem", "delay", f"{delay_ms}ms", "limit", "100000")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(("ip", "netns", "delete", name), check=False, stderr=subprocess.DEVNULL)


def main() -> None:
    """Measure at each rate, or run one of the two hosts."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", help="the checkpoint whose activations are sent")
    options.add_argument("--rates", type=int, nargs="+", default=[200, 1000, 0], help="Mbit/s; 0 for no limit")
    options.add_argument("--delay-ms", type=float, default=0.0, help="each way, where the kernel has netem")
    options.add_argument("--seconds", type=float, default=30.0, help="for each rate")
    options.add_argument("--as-host", choices=("sender", "receiver"), help=argparse.SUPPRESS)
    options.add_argument("--file", help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.as_host:
        send(given.file, given.seconds) if given.as_host == "sender" else receive(given.file)
        return
    if not given.model:
        options.error("--model is missing")
    with tempfile.TemporaryDirectory() as directory:
        file = f"{directory}/activations.pt"
        torch.save(activations(given.model), file)
        for rate in given.rates:
            print(f"{rate or 'no limit of'} Mbit/s, {given.delay_ms} ms each way, load {os.getloadavg()[0]:.1f}")
            print(f"{'tokens':>6} {'KiB':>8} " + " ".join(f"{codec:>17}" for codec in CODECS), flush=True)
            command = [sys.executable, __file__, "--file", file, "--seconds", str(given.seconds), "--as-host"]
            with hosts(rate, given.delay_ms) as (here, there):
                other = subprocess.Popen(["ip", "netns", "exec", there, *command, "receiver"])
                try:
                    subprocess.run(["ip", "netns", "exec", here, *command, "sender"], check=True)
                    other.wait(TIMEOUT_S)
                finally:
                    other.kill()
                    other.wait()


if __name__ == "__main__":
    main()
