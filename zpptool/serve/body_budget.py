# SPDX-License-Identifier: Apache-2.0
"""The memory that all requests' bodies together may take while their requests are in progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zpptool.serve.http_errors import bodies_too_large


class BodyAccount:
    """What one request takes of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.size = 0

    def add(self, size: int) -> None:
        """Take so many more bytes.

        Raises:
            Refusal: (503) the budget is used up.
        """
        self._budget.take(size)
        self.size += size


class BodyBudget:
    """A number of bytes that requests share. Used on the event loop's thread only.

    Attributes:
        used: the bytes that are taken.

    Args:
        most: the bytes that there are.
    """

    def __init__(self, most: int) -> None:
        self.used = 0
        self._most = most

    def take(self, size: int) -> None:
        """Take so many bytes.

        Raises:
            Refusal: (503) there are not so many left.
        """
        if self.used + size > self._most:
            raise bodies_too_large(self._most)
        self.used += size

    @contextmanager
    def account(self) -> Iterator[BodyAccount]:
        """An account for one request; what it took is given back at the end of the block."""
        account = BodyAccount(self)
        try:
            yield account
        finally:
            self.used -= account.size
