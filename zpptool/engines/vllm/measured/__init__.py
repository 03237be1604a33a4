# SPDX-License-Identifier: Apache-2.0
"""A part of a model on vLLM as `zpptool profile` measures it: the worker of a stage, without neighbours and a head."""
