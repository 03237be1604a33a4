# SPDX-License-Identifier: Apache-2.0
"""`zpptool profile`: what one kind of device takes for a model, and what the links between hosts take."""
