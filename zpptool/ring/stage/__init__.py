# SPDX-License-Identifier: Apache-2.0
"""A stage of the ring: it relays what passes through the ring, and hands what is addressed to it to its main loop."""
