# SPDX-License-Identifier: Apache-2.0
"""A front and its upstream in a process that may open 64 files: prints its URL, and runs until its input ends.

Usage: python -m tests.hostile.small_front
"""

from __future__ import annotations

import resource
import sys

from tests.fronts import ToyServer, gateway_of

FILES = 64

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    with gateway_of([ToyServer()]) as gateway:
        print(gateway.url, flush=True)
        sys.stdin.read()
