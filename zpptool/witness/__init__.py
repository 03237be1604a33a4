# SPDX-License-Identifier: Apache-2.0
"""The witness: hashes of what every layer computes, by which a pipeline is compared with the unsplit model, bit by bit.

Here are the pure parts: the hash, the record, the comparison. The hooks that feed them are in `zpptool.engines`.
"""
