"""Lines of the log, for people or as JSON for machines."""

import json
import logging
import time
from typing import Literal

LogFormat = Literal["text", "json"]

_RECORD = "fields"
"""The attribute of a log record under which the fields of a line of JSON are, beside those that all lines have."""


def with_fields(**fields: object) -> dict[str, object]:
    """`extra` of a call that logs: fields of the line where it is JSON, left out where it is for people."""
    return {_RECORD: fields}


class TextFormatter(logging.Formatter):
    """Time, level, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")


class JsonFormatter(logging.Formatter):
    """An object in one line: time, level, logger and message, the fields of the record, and what was raised."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        entry: dict[str, object] = {
            "time": _iso_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _RECORD, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def json_line(text: str, level: str) -> str:
    """What is said outside of any logger, as a line of JSON."""
    return json.dumps({"time": _iso_time(time.time()), "level": level, "logger": "headrace", "message": text})


def formatter(form: LogFormat) -> logging.Formatter:
    """What writes lines in a format."""
    return JsonFormatter() if form == "json" else TextFormatter()


def _iso_time(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03}Z"
