# SPDX-License-Identifier: Apache-2.0
"""The ring: head, stages, and what they say to each other."""
