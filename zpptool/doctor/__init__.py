# SPDX-License-Identifier: Apache-2.0
"""Diagnose what could keep a pipeline from running on this machine: one function per check, one line of advice each."""
