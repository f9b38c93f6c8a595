"""The log: one JSON object per line, on stderr. Introduced in chapter 5."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_LOGGER = "lib.serving"


class JsonFormatter(logging.Formatter):
    """time, level, event, then the event's own fields. Written by machines' rules, so that a value cannot fake a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def configure(level: str) -> None:
    """Send this package's lines and uvicorn's warnings to stderr. For the program, not for those who import it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name, threshold in ((_LOGGER, level.upper()), ("uvicorn", "WARNING"), ("asyncio", "ERROR")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(threshold)


def log(event: str, level: int = logging.INFO, exc_info: Any = None, **fields: Any) -> None:
    logging.getLogger(_LOGGER).log(level, event, exc_info=exc_info, extra={"fields": fields})
