# SPDX-License-Identifier: Apache-2.0
"""The objects of OpenAI's Batch API: files and batches, as they are stored and as they are shown. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]  # fmt: skip
OPEN: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
"""The statuses of batches that are not over."""
_TIMES: dict[Status, str] = {
    "in_progress": "in_progress_at", "finalizing": "finalizing_at", "completed": "completed_at",
    "failed": "failed_at", "expired": "expired_at", "cancelling": "cancelling_at", "cancelled": "cancelled_at",
}  # fmt: skip


class FileObject(msgspec.Struct, frozen=True):
    """A file.

    Attributes:
        id: its id.
        bytes: its size.
        created_at: seconds since the epoch, like every time here.
        expires_at: when it is deleted; None for never.
        filename: as its uploader called it.
        purpose: `batch`, or `batch_output`.
        owner: the name of the API key that it belongs to; empty where the front has no keys.
    """

    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    owner: str

    def shown(self) -> dict[str, Any]:
        """The object of OpenAI's API."""
        own = msgspec.structs.asdict(self)
        del own["owner"]
        return {**own, "object": "file", "status": "processed", "status_details": None}


class BatchObject(msgspec.Struct, frozen=True):
    """A batch.

    Attributes:
        id: its id.
        endpoint: the path that all of its lines name.
        input_file_id: its input.
        created_at: when it was created.
        expires_at: when it is given up.
        owner: as in `FileObject`.
        metadata: the client's own.
        output_expires_s: how long its output is kept, in seconds.
        status: see OpenAI's documentation.
        times: when it got each of its statuses, by OpenAI's name: `completed_at`.
        errors: why it failed before anything was computed: code, message and line of each.
        output_file_id, error_file_id: None until it is over, or if there are none.
        total, completed, failed: counts of lines.
    """

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    owner: str
    metadata: dict[str, str] | None = None
    output_expires_s: int | None = None
    status: Status = "validating"
    times: dict[str, int] = {}
    errors: list[dict[str, Any]] = []
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it is not over."""
        return self.status in OPEN

    def shown(self) -> dict[str, Any]:
        """The object of OpenAI's API."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **dict.fromkeys(_TIMES.values()),
            **self.times,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }


def with_status(batch: BatchObject, status: Status, now: int, **changes: Any) -> BatchObject:
    """A batch that has got a status.

    Args:
        batch: the batch.
        status: the new one.
        now: seconds since the epoch.
        changes: further fields.
    """
    times = {**batch.times, _TIMES[status]: now} if status in _TIMES else batch.times
    return msgspec.structs.replace(batch, status=status, times=times, **changes)
