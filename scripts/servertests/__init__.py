# SPDX-License-Identifier: Apache-2.0
"""Parts of `server_tests.py`: vLLM's own tests of its server against all sides."""
