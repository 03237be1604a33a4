# SPDX-License-Identifier: Apache-2.0
"""The ring: one head and its stages, connected in a circle, and the protocol between them."""
