# SPDX-License-Identifier: Apache-2.0
"""Whole pipelines behind one HTTP front: started, kept up, observed."""
