# SPDX-License-Identifier: Apache-2.0
"""The part of a documentation page that a script writes, between two markers."""

from __future__ import annotations


def replace_part(page: str, part: str, begin: str, end: str) -> str:
    """The page with another part between its markers.

    Raises:
        ValueError: it has no such markers.
    """
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page has no part between {begin} and {end}: it has no {begin} with an {end} after it")
    return f"{before}{begin}\n{part}\n{end}{after}"
