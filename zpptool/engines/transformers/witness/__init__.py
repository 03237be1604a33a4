# SPDX-License-Identifier: Apache-2.0
"""The witness of the embedded engine and of the unsplit transformers model that it is compared with."""
