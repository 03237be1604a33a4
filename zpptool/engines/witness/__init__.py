# SPDX-License-Identifier: Apache-2.0
"""Records what an engine computes (`zpptool.witness`): the part that both engines share, and that needs torch."""
