# SPDX-License-Identifier: Apache-2.0
"""Everything of vLLM that is not its public API: the names, as data, and all access to them."""
