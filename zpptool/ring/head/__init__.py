# SPDX-License-Identifier: Apache-2.0
"""The head of the ring: it sends calls to stage 0, receives the answers from the last stage, and decides on losses."""
