# SPDX-License-Identifier: Apache-2.0
"""What may stand in the way of a pipeline on this machine: one small check a function, one line of fix each."""
