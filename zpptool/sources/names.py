# SPDX-License-Identifier: Apache-2.0
"""The names that a user may give a model: a path, a model on the Hugging Face Hub, or the URL of a directory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from zpptool.errors import usage_error

DEFAULT_REVISION = "main"
WEB_SCHEMES = ("http", "https")
OBJECT_SCHEMES = ("s3", "gs", "az")
MODELSCOPE = "modelscope"
SCHEMES = (*WEB_SCHEMES, *OBJECT_SCHEMES, MODELSCOPE)
_ID = re.compile(r"(?P<scheme>hf:/{1,2})?(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?")
_URL = re.compile(rf"(?P<scheme>{'|'.join(SCHEMES)})://(?P<rest>[^/\s@]\S*)")


class HubId(NamedTuple):
    """A model on the Hub. `revision` is a branch, a tag or a commit; None for the main branch."""

    repo: str
    revision: str | None

    @property
    def wanted(self) -> str:
        """The revision, with the main branch as its default."""
        return self.revision or DEFAULT_REVISION

    def at(self, commit: str) -> str:
        """The name of this model at one commit, as a plan and a manifest hold it."""
        return f"hf://{self.repo}@{commit}"


class UrlId(NamedTuple):
    """A directory on a web server or in an object store, or a model on ModelScope. `version` is a digest of its
    listing; None for any."""

    url: str
    version: str | None = None


@dataclass(frozen=True)
class ModelName:
    """A model as the user names it.

    Attributes:
        text: a path, `org/name`, `hf://org/name@revision`, or the URL of a directory.
        revision: of `--revision`: a branch, a tag or a commit of a model on the Hub; None if not given.
        token: of `--token`; None for the one of HF_TOKEN or `hf auth login`.
    """

    text: str
    revision: str | None = None
    token: str | None = None

    @property
    def remote(self) -> HubId | UrlId | None:
        """What the text names beyond this machine; None for a path.

        Raises:
            ZppError: (USAGE) the text is neither, or two revisions are given, or one for what has none.
        """
        found = parse_remote(self.text)
        if self.revision is None:
            return found
        if not isinstance(found, HubId):
            raise usage_error(
                f"{self.text} has no revisions: --revision is for models on the Hugging Face Hub", "Leave it out."
            )
        if found.revision not in (None, self.revision):
            raise usage_error(
                f"the revision is given twice: {found.revision} and {self.revision}", "Leave one of them out."
            )
        return HubId(found.repo, self.revision)

    @property
    def served(self) -> str:
        """What requests call the model by default: `org/name`, or the URL; empty for a path."""
        return served_name(self.text)


def parse_remote(text: str) -> HubId | UrlId | None:
    """Parse the name of a model beyond this machine; None for a path.

    Raises:
        ZppError: (USAGE) it begins as one of them and is none.
    """
    url = _URL.fullmatch(text)
    if url is not None:
        rest, _, version = text.partition("#")
        return UrlId(rest.rstrip("/"), version or None)
    found = hub_id(text)
    if found is None and text.startswith("hf:") and not os.path.exists(text):
        raise usage_error(f"{text} names no model on the Hub", "write hf://org/name, or hf://org/name@revision")
    scheme = text.partition("://")[0] if "://" in text else ""
    if found is None and scheme and not os.path.exists(text):
        known = ", ".join(f"{name}://" for name in ("hf", *SCHEMES))
        raise usage_error(f"{text} is not the name of a model: the address is not valid", f"These are known: {known}.")
    return found


def hub_id(text: str) -> HubId | None:
    """Parse `org/name`, `org/name@revision` or `hf://org/name@revision`; None if the text is neither.

    Without `hf://`, an existing local path of that name takes precedence, and the result is None.
    """
    match = _ID.fullmatch(text)
    if match is None or (match["scheme"] is None and os.path.exists(text)):
        return None
    return HubId(match["repo"], match["revision"])


def is_remote(text: str) -> bool:
    """Whether the text names a model beyond this machine; raises as `parse_remote`."""
    return parse_remote(text) is not None


def served_name(text: str) -> str:
    """What requests call a model that is named so: `org/name` without scheme and revision, or the URL of a directory
    without its version; empty for a path and for no text."""
    found = parse_remote(text) if text else None
    if found is None:
        return ""
    if isinstance(found, HubId):
        return found.repo
    scheme, _, rest = found.url.partition("://")
    return rest.partition("@")[0] if scheme == MODELSCOPE else found.url
