# SPDX-License-Identifier: Apache-2.0
"""`zpptool test-pipeline`: a trial compares the tokens of a pipeline with those of the unsplit model."""
