# SPDX-License-Identifier: Apache-2.0
"""A catalogue of faults of a pipeline, injected into running stages, and the score of the witness on them."""
