# SPDX-License-Identifier: Apache-2.0
"""Logging by the standard library: named loggers under `zpptool`, and how a process of zpptool shows their records.

Modules log with `logging.getLogger(__name__)`, or with `place_logger` where a record belongs to one place of the ring.
Only processes of zpptool call `configure`; a program that imports zpptool keeps its own logging.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, TypeVar

from zpptool.errors import usage_error
from zpptool.places import place_name
from zpptool.plain_text import plain

LEVEL_VARIABLE = "ZPP_LOG_LEVEL"
"""The lowest level that is shown, by name. Children inherit it."""
FORMAT_VARIABLE = "ZPP_LOG_FORMAT"
"""How records are shown: a `LogFormat`. Children inherit it."""
ROOT = "zpptool"
Choice = TypeVar("Choice", bound=StrEnum)
CONTEXT_FIELDS = ("stage", "epoch", "request_id", "hint", "exit_code")
"""What a record may carry beside its message: the place in the ring by name, the ring's epoch, the request's id; and of
the error that ends a process, its hint and exit code."""


class LogLevel(StrEnum):
    """The lowest level that is shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a record is shown on stderr."""

    TEXT = "text"
    JSON = "json"


class TextFormatter(logging.Formatter):
    """One line for a person: `zpptool stage 1: waiting for stage 0`. Any level but information is named.

    The error that ends a process is the one record with an exit code, and begins with its level: `error: stage 1: ...`.
    Control characters are escaped, because messages hold names from files of others.

    Args:
        place: the process's place in the ring by name, for records that carry none; empty for none.
    """

    def __init__(self, place: str = "") -> None:
        super().__init__()
        self._place = place

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        place = getattr(record, "stage", None) or self._place
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        if getattr(record, "exit_code", None) is not None:
            prefix = f"{level}{place}: " if place else level
        else:
            prefix = f"{ROOT} {place}: {level}" if place else level
        text = f"{prefix}{plain(record.getMessage())}"
        if hint := getattr(record, "hint", None):
            text += f"\n  hint: {plain(hint)}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (UTC, ISO 8601), `level`, `logger`, `message`, and the context fields there are.

    Args:
        place: the process's place in the ring by name, for records that carry none; empty for none.
    """

    def __init__(self, place: str = "") -> None:
        super().__init__()
        self._place = place

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if self._place:
            entry["stage"] = self._place
        entry |= {name: getattr(record, name) for name in CONTEXT_FIELDS if getattr(record, name, None) is not None}
        entry["message"] = record.getMessage()
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class StderrHandler(logging.Handler):
    """Writes to the current `sys.stderr`. A record that cannot be written (a full disk, a closed terminal) is dropped:
    that is no reason to fail."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            return


class PlaceLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds its own context fields to each record; fields that are given with a record take precedence."""

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        """The message, and keyword arguments with the context in `extra`."""
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


def place_logger(name: str, place: int) -> PlaceLogger:
    """A logger whose records belong to one place of the ring.

    Args:
        name: of the logger, `__name__` of the module. A module that is run as a process is called `__main__`, and its
            logger `zpptool.__main__`, so that its records are shown too.
        place: a stage's index, or `HEAD`.
    """
    own = name if name.partition(".")[0] == ROOT else f"{ROOT}.{name}"
    return PlaceLogger(logging.getLogger(own), {"stage": place_name(place)})


def configure(level: LogLevel | None = None, form: LogFormat | None = None, *, place: str = "") -> None:
    """Show the records of `zpptool` loggers on stderr, in this process and in those that it starts.

    Args:
        level: the lowest level that is shown; None for the environment's, or information.
        form: how they are shown; None for the environment's, or text.
        place: the place of this process in the ring by name, for records that carry none; empty for none.

    Raises:
        ZppError: (USAGE) the environment holds an unknown level or format.
    """
    level = level or _from_environment(LEVEL_VARIABLE, LogLevel.INFO)
    form = form or _from_environment(FORMAT_VARIABLE, LogFormat.TEXT)
    os.environ[LEVEL_VARIABLE], os.environ[FORMAT_VARIABLE] = level, form
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter(place) if form is LogFormat.JSON else TextFormatter(place))
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def hide_information() -> None:
    """Show no records below warnings in this process, until `configure` is called again (`--quiet`). The processes that
    it starts keep their level: their records go to log files."""
    logger = logging.getLogger(ROOT)
    logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))


def _from_environment(variable: str, default: Choice) -> Choice:
    value = os.environ.get(variable) or default
    try:
        return type(default)(value.lower())
    except ValueError:
        choices = ", ".join(type(default))
        raise usage_error(f"{variable} is {value!r}", f"Set it to one of: {choices}.") from None
