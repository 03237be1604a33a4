# SPDX-License-Identifier: Apache-2.0
"""Which layers run on which device: measured or given numbers in, the best plan and its reasons out. Pure functions."""
