# SPDX-License-Identifier: Apache-2.0
"""The model families of the installed transformers, made tiny, and what is true of each: see `coverage_report.py`."""
