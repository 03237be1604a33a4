# SPDX-License-Identifier: Apache-2.0
"""What the test of predicted caches and the script that asks the models have to agree on."""

from __future__ import annotations

MEMORY = (48 << 20, 31_000_001)
"""Bytes for the cache on each stage: not the same, and not a multiple of anything."""
