"""The log's lines."""

import logging
import sys

from kaifs.daemon.log import EventFormatter


def test_an_event_is_one_line_with_its_fields_quoted_where_needed() -> None:
    record = logging.makeLogRecord(
        {
            "name": "kaifs.x",
            "levelname": "INFO",
            "msg": "sealed",
            "created": 0.5,
            "label": "1.0.0",
            "path": "a b\nc",
        }
    )

    line = EventFormatter().format(record)

    assert line == ('1970-01-01T00:00:00.500000Z info kaifs.x sealed label=1.0.0 path="a b\\nc"')


def test_a_traceback_follows_indented() -> None:
    try:
        [][0]
    except IndexError:
        record = logging.makeLogRecord(
            {"name": "kaifs.x", "msg": "bug", "exc_info": sys.exc_info()}
        )

    first, *rest = EventFormatter().format(record).splitlines()

    assert first.endswith(" bug")
    assert all(line.startswith("  ") for line in rest)
