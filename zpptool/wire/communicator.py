# SPDX-License-Identifier: Apache-2.0
"""`ZeroMQCommunicator`: tensor dicts between neighbours of a ring, with the interface of vLLM's `GroupCoordinator`.

The invariant: after `send_tensor_dict` returns, the caller may change every tensor it sent; the next rank receives what
they held at the call. Each rank has at most one link to send on and one to receive from; both wait with a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zpptool.errors import ZppError, usage_error
from zpptool.places import HEAD, place_name
from zpptool.wire.compression.adaptive import WireCodec
from zpptool.wire.link import LinkOptions, LinkReceiver, LinkSender, Sent
from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import Kind, Limits
from zpptool.wire.message.tensors import pack, unpack
from zpptool.wire.security.exposure import LinkSecurity
from zpptool.wire.security.key_files import KeyFile, link_keys

if TYPE_CHECKING:
    import torch


class Handle:
    """A tensor dict that is being sent."""

    __slots__ = ("_sent", "_timeout_s")

    def __init__(self, sent: Sent, timeout_s: float) -> None:
        self._sent = sent
        self._timeout_s = timeout_s

    def is_completed(self) -> bool:
        """Whether the tensors may be changed."""
        return self._sent.done

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the tensors may be changed; by default within the communicator's deadline.

        Raises:
            LinkTimeout: they are still being sent, and may not be changed.
        """
        self._sent.wait(self._timeout_s if timeout_s is None else timeout_s)


class ZeroMQCommunicator:
    """Sends tensor dicts to the next rank and receives them from the previous one.

    Rank `i` binds an endpoint and rank `i + 1` connects to it; where the last rank binds one and rank 0 connects to it,
    the ranks form a ring. One thread may send while another receives.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        bind: str | None = None,
        connect: str | None = None,
        timeout_s: float = 60.0,
        device: str | torch.device | None = None,
        limits: Limits | None = None,
        keys: KeyFile | None = None,
        insecure: bool = False,
        codec: WireCodec = WireCodec.NONE,
        shared_memory: bool = True,
    ) -> None:
        """Open this rank's links.

        Args:
            rank: this rank, from 0.
            world_size: the number of ranks, 2 or more.
            bind: this rank's own endpoint, to which the next rank connects, for example `tcp://127.0.0.1:15550`. None
                where it sends nothing.
            connect: the endpoint that the previous rank binds. None where it receives nothing.
            timeout_s: deadline of each call, in seconds.
            device: where received tensors are placed; by default host memory.
            limits: what is accepted from the previous rank.
            keys: this rank's key file (`zpptool.wire.security.key_files.read_key_file`); tcp links are then encrypted.
                On the link from the last rank to rank 0, the file and both ranks call rank 0 the head.
            insecure: allow tcp links to other machines without keys.
            codec: whether messages to the next rank are compressed: `none`, `zstd`, or `auto` by the link's speed.
            shared_memory: whether neighbours on this host pass large tensors through shared memory.

        Raises:
            ZppError: impossible ranks (exit 2), keys of another rank (exit 3), or an endpoint that cannot be used
                (exit 5).
        """
        if world_size < 2 or not 0 <= rank < world_size:
            raise usage_error(
                f"Rank {rank} of {world_size} is impossible: there are two ranks or more, counted from 0."
            )
        if bind is None and connect is None:
            raise usage_error(f"Rank {rank} has neither an endpoint to bind nor one to connect to.")
        self.rank = rank
        self.world_size = world_size
        self.next_rank = (rank + 1) % world_size
        self.prev_rank = (rank - 1) % world_size
        self._timeout_s = timeout_s
        self._device = device
        self._limits = limits or Limits()
        self._sender: LinkSender | None = None
        self._receiver: LinkReceiver | None = None
        try:
            if bind is not None:
                after = HEAD if keys and self.is_last_rank else self.next_rank
                security = LinkSecurity(link_keys(keys, rank, after) if keys else None, insecure)
                options = LinkOptions(limits=self._limits, codec=codec, shared_memory=shared_memory, security=security)
                self._sender = LinkSender(bind, stage=rank, peer=after, options=options)
            if connect is not None:
                place = HEAD if keys and self.is_first_rank else rank
                security = LinkSecurity(link_keys(keys, place, self.prev_rank) if keys else None, insecure)
                options = LinkOptions(limits=self._limits, shared_memory=shared_memory, security=security)
                self._receiver = LinkReceiver(connect, stage=place, peer=self.prev_rank, options=options)
        except ZppError:
            self.close()
            raise

    @property
    def endpoint(self) -> str | None:
        """The endpoint the next rank connects to, with the port that was chosen for `*`."""
        return self._sender.endpoint if self._sender else None

    @property
    def is_first_rank(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_last_rank(self) -> bool:
        """Whether this is the rank before rank 0."""
        return self.rank == self.world_size - 1

    def send_tensor_dict(self, tensor_dict: Mapping[str, torch.Tensor | Any], dst: int | None = None) -> None:
        """Send tensors and plain values to the next rank; all of them may be changed when this returns.

        Waits while the next rank is not connected, or has as many messages unread as the window allows, and until large
        tensors are handed to the system. When a deadline passes within a tensor, the link is closed, so that no later
        change of that tensor can be sent.

        Args:
            tensor_dict: tensors and plain values by name.
            dst: the destination, which can only be the next rank; it is the default.

        Raises:
            LinkTimeout: the next rank did not take it before the deadline.
            LinkError: the next rank is lost or refused, or the communicator is closed.
            WireError: something in the dict cannot be sent.
            ZppError: another rank was given (exit 2).
        """
        handle = self.isend_tensor_dict(tensor_dict, dst)
        try:
            handle.wait()
        except BaseException:
            if self._sender is not None:
                self._sender.close(linger_s=0)
            raise

    def isend_tensor_dict(self, tensor_dict: Mapping[str, torch.Tensor | Any], dst: int | None = None) -> Handle:
        """As `send_tensor_dict`, but do not change the tensors until the handle's `wait` returns."""
        link = self._sender
        if link is None or dst not in (None, self.next_rank):
            raise self._unreachable("send to", dst, self.next_rank if link else None)
        packed = pack(tensor_dict)
        sent = link.send(Kind.TENSORS, packed.header, packed.frames, timeout_s=self._timeout_s)
        return Handle(sent, self._timeout_s)

    def recv_tensor_dict(self, src: int | None = None) -> dict[str, torch.Tensor | Any]:
        """The next tensor dict of the previous rank. Its tensors are the caller's own and may be changed.

        Args:
            src: the source, which can only be the previous rank; it is the default.

        Raises:
            LinkTimeout: nothing arrived before the deadline.
            SequenceError: messages were lost.
            WireError: the message is malformed.
            ZppError: another rank was given (exit 2).
        """
        link = self._receiver
        if link is None or src not in (None, self.prev_rank):
            raise self._unreachable("receive from", src, self.prev_rank if link else None)
        message = link.recv(self._timeout_s)
        if message.kind is not Kind.TENSORS or message.source != self.prev_rank:
            raise link.faults.failed(
                f"expected tensors of {link.peer} and got {message.kind.name.lower()} of {place_name(message.source)}",
                "Is that endpoint bound by the previous rank?",
            )
        try:
            return unpack(message.header, message.frames, device=self._device, limits=self._limits)
        except WireError as error:
            raise link.faults.refused_message(error) from error

    def close(self) -> None:
        """Close both links; accepted messages are sent for up to two seconds."""
        for link in (self._sender, self._receiver):
            if link is not None:
                link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unreachable(self, verb: str, asked: int | None, neighbour: int | None) -> ZppError:
        if neighbour is None:
            return usage_error(f"Rank {self.rank} cannot {verb} anyone: it was given no endpoint for that.")
        return usage_error(f"Rank {self.rank} cannot {verb} rank {asked}, only rank {neighbour}, its neighbour.")
