# SPDX-License-Identifier: Apache-2.0
"""What an operator reads from a running ring, and asks of it: status, metrics, planned changes."""
