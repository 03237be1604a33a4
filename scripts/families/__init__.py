# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family of the installed transformers, and tests of each: see `coverage_report.py`."""
