# SPDX-License-Identifier: Apache-2.0
"""Run a large language model as a pipeline of independent stages on stock vLLM, over ZeroMQ."""

__version__ = "0.1.0"
