# SPDX-License-Identifier: Apache-2.0
"""A trial: a pipeline held against the unsplit model."""
