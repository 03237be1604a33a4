# SPDX-License-Identifier: Apache-2.0
"""Write a weight file whose bytes come from beyond this machine, and go on where a killed run stopped.

The bytes arrive in any order, so the tensors are hashed when the file is full; its bytes are then in the page cache.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from zpptool.checkpoint.digest import digest_bytes
from zpptool.checkpoint.file_copy import Advance
from zpptool.checkpoint.shards import ShardPlan
from zpptool.checkpoint.streaming import Fetcher, WrittenFile, hash_tensors, write_all


def write_fetched(
    path: Path, journal: Path, shard: ShardPlan, fetch: Fetcher, stop: threading.Event, advance: Advance
) -> WrittenFile:
    """Write one weight file, and fsync it.

    Args:
        path: the file. It may exist, as an earlier run left it with its journal.
        journal: what of it has arrived.
        shard: the planned file.
        fetch: fetches its tensors.
        stop: cancels the work when set.
        advance: called with the number of bytes that have just arrived, or were there.

    Raises:
        ZppError: (FAILURE) the source cannot be read; OSError: the disk failed; Stopped: `stop` was set.
    """
    head = shard.head
    if not path.exists():
        journal.unlink(missing_ok=True)
    with path.open("r+b" if path.exists() else "x+b", buffering=0) as target:
        fetch(shard.source, shard.runs(), target, journal, stop, advance)
        target.seek(0)
        write_all(target, memoryview(head))
        target.truncate(len(head) + shard.nbytes)
        moved, reached = [], len(head)
        for tensor in shard.tensors:
            moved.append(tensor._replace(file=path, offset=reached))
            reached += tensor.nbytes
        hashes = hash_tensors(moved, stop, lambda _bytes: None)
        os.fsync(target.fileno())
    return WrittenFile(len(head) + shard.nbytes, digest_bytes(head), hashes)
