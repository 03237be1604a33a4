# SPDX-License-Identifier: Apache-2.0
"""The transports that `wire.py` compares, each one class: how two processes send two bf16 tensors to each other.

The invariant: `receive` returns when every byte of the tensors is in this process's memory, and every transport is used
at its best: bare sockets read into memory that is reused, bare ZeroMQ copies where that is faster.
"""

from __future__ import annotations

import io
import pickle
import socket
import time
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed
import zmq

from zpptool.wire import ZeroMQCommunicator
from zpptool.wire.link import ZERO_COPY_BYTES

NAMES = ("hidden_states", "residual")
WIDTH = 4096
TIMEOUT_S = 120.0
Tensors = dict[str, torch.Tensor]


class End(Protocol):
    """One process's end of a transport."""

    def send(self, tensors: Tensors) -> None:
        """Send the tensors to the other process."""

    def receive(self, tokens: int) -> Any:
        """Receive what the other process has sent."""


def memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    view: memoryview = tensor.view(torch.uint8).reshape(-1).numpy().data
    return view


class RawSocket:
    """A byte stream whose length both sides know: the lower bound of every message format."""

    def __init__(self, rank: int, place: str) -> None:
        unix = place.startswith("/")
        family = socket.AF_UNIX if unix else socket.AF_INET
        address: Any = place if unix else ("127.0.0.1", int(place))
        if rank == 0:
            with socket.socket(family) as listener:
                listener.bind(address)
                listener.listen()
                self._stream, _ = listener.accept()
        else:
            self._stream = _connected(family, address)
        if not unix:
            self._stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._into: dict[int, list[bytearray]] = {}

    def send(self, tensors: Tensors) -> None:
        for tensor in tensors.values():
            self._stream.sendall(memory(tensor))

    def receive(self, tokens: int) -> Any:
        into = self._into.setdefault(tokens, [bytearray(tokens * WIDTH * 2) for _ in NAMES])
        for buffer in into:
            rest = memoryview(buffer)
            while rest:
                rest = rest[self._stream.recv_into(rest) :]
        return into


class BareZeroMQ:
    """One multipart message of two frames, PUSH to PULL."""

    def __init__(self, rank: int, mine: str, other: str) -> None:
        self.push, self.pull = zmq.Context.instance().socket(zmq.PUSH), zmq.Context.instance().socket(zmq.PULL)
        self.push.bind(mine)
        self.pull.connect(other)

    def send(self, tensors: Tensors) -> None:
        frames = [memory(tensor) for tensor in tensors.values()]
        self.push.send_multipart(frames, copy=frames[0].nbytes < ZERO_COPY_BYTES)

    def receive(self, tokens: int) -> Any:
        return [torch.frombuffer(frame.buffer, dtype=torch.bfloat16) for frame in self.pull.recv_multipart(copy=False)]


class Gloo:
    """torch.distributed over gloo, message by message as vLLM 0.32's group coordinator sends a tensor dict: the size of
    the pickled description, the description, then each tensor."""

    def __init__(self, rank: int, place: str) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
        self._other = 1 - rank

    def send(self, tensors: Tensors) -> None:
        described = pickle.dumps([(name, tensor.dtype, tensor.size()) for name, tensor in tensors.items()])
        description = torch.frombuffer(bytearray(described), dtype=torch.uint8)
        torch.distributed.send(torch.tensor([description.numel()]), self._other)
        torch.distributed.send(description, self._other)
        pending = [torch.distributed.isend(tensor, self._other) for tensor in tensors.values()]
        for one in pending:
            one.wait()

    def receive(self, tokens: int) -> Any:
        size = torch.empty(1, dtype=torch.long)
        torch.distributed.recv(size, self._other)
        description = torch.empty(int(size.item()), dtype=torch.uint8)
        torch.distributed.recv(description, self._other)
        tensors, pending = {}, []
        for name, dtype, shape in pickle.loads(description.numpy().tobytes()):
            tensors[name] = torch.empty(shape, dtype=dtype)
            pending.append(torch.distributed.irecv(tensors[name], self._other))
        for one in pending:
            one.wait()
        return tensors


class PickleAndSave:
    """A pickled description and each tensor by `torch.save`, in one multipart ZeroMQ message. Not for networks: a peer
    that can reach the port can run code here."""

    def __init__(self, rank: int, mine: str, other: str) -> None:
        self._bare = BareZeroMQ(rank, mine, other)

    def send(self, tensors: Tensors) -> None:
        described = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
        frames = [pickle.dumps(described)]
        for tensor in tensors.values():
            saved = io.BytesIO()
            torch.save(tensor, saved)
            frames.append(saved.getvalue())
        self._bare.push.send_multipart(frames)

    def receive(self, tokens: int) -> Any:
        described, *saved = self._bare.pull.recv_multipart()
        names = list(pickle.loads(described))
        return {name: torch.load(io.BytesIO(one)) for name, one in zip(names, saved, strict=True)}


class Ours:
    """`ZeroMQCommunicator`."""

    def __init__(self, rank: int, mine: str, other: str, *, shared: bool) -> None:
        self._communicator = ZeroMQCommunicator(
            rank, 2, bind=mine, connect=other, timeout_s=TIMEOUT_S, shared_memory=shared
        )

    def send(self, tensors: Tensors) -> None:
        self._communicator.send_tensor_dict(tensors)

    def receive(self, tokens: int) -> Any:
        return self._communicator.recv_tensor_dict()


def _connected(family: int, address: Any) -> socket.socket:
    while True:
        stream = socket.socket(family)
        try:
            stream.connect(address)
        except OSError:
            stream.close()
            time.sleep(0.01)
        else:
            return stream


def open_paths(rank: int, directory: str, ports: list[int]) -> dict[str, End]:
    """This process's end of every transport; the other process opens them in the same order.

    Args:
        directory: for sockets and gloo's rendezvous.
        rank: 0 or 1.
        ports: seven free ones.
    """
    free = iter(ports)
    one = Path(directory)

    def tcp() -> tuple[str, str]:
        pair = [f"tcp://127.0.0.1:{next(free)}" for _ in range(2)]
        return pair[rank], pair[1 - rank]

    def ipc(name: str) -> tuple[str, str]:
        return f"ipc://{one}/{name}{rank}", f"ipc://{one}/{name}{1 - rank}"

    return {
        "raw tcp": RawSocket(rank, str(next(free))),
        "raw unix": RawSocket(rank, f"{one}/raw"),
        "zmq tcp": BareZeroMQ(rank, *tcp()),
        "zmq ipc": BareZeroMQ(rank, *ipc("bare")),
        "gloo": Gloo(rank, f"{one}/gloo"),
        "pickle": PickleAndSave(rank, *tcp()),
        "ours tcp": Ours(rank, *tcp(), shared=False),
        "ours ipc": Ours(rank, *ipc("ours"), shared=False),
        "ours shm": Ours(rank, *ipc("memory"), shared=True),
    }
