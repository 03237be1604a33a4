# SPDX-License-Identifier: Apache-2.0
"""Python imports this at its start where this directory is on PYTHONPATH."""

from tests.mutations.switch import install

install()
