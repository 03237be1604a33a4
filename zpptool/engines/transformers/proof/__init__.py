# SPDX-License-Identifier: Apache-2.0
"""Proves, before a stage is loaded, that the engine cuts this kind of model correctly: by value, on a small copy."""
