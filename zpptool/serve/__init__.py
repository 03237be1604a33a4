# SPDX-License-Identifier: Apache-2.0
"""`zpptool serve`: whole pipelines behind one HTTP gateway; starts them, keeps them up and reports their status."""
