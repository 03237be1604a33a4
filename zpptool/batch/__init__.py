# SPDX-License-Identifier: Apache-2.0
"""Offline batches: every line of an input is computed, and its result is written, exactly once."""
