# SPDX-License-Identifier: Apache-2.0
"""OpenAI's Batch API at a front: files, batches, and what computes them."""
