# SPDX-License-Identifier: Apache-2.0
"""A stage of the ring: it relays what goes round, and hands what is addressed to it to its main loop."""
