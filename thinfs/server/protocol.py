"""The control protocol: a Unix socket, one JSON object a line, one call at a time on a connection.

Request `{"call": NAME, "args": {...}}`; answer `{"ok": VALUE}` or `{"error": ERRNO, "message": TEXT}`.
The call `dmsetup` also sends, before its answer, `{"out": TEXT}`, `{"err": TEXT}`, and `{"need": PATH}`
(null for standard input) that the client answers with `{"text": TEXT}` or an error. What wants two calls
at once uses two connections. Closing a connection cancels its call and closes the devices it opened.
"""

import errno
import json
from typing import Final, TypeAlias

from thinfs.dm.verbs import Json
from thinfs.errors import InvalidArgument, ThinfsError, from_errno

Message: TypeAlias = dict[str, Json]

MAX_LINE_BYTES: Final = 16 << 20


class Malformed(InvalidArgument):
    """A line that is not a JSON object, or a call with wrong arguments."""


def encode(message: Message) -> bytes:
    # One blank after the colon: the drop-in knows answers by their first bytes (thinfs.cli.dmsetup).
    return json.dumps(message).encode("ascii") + b"\n"


def decode(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise Malformed(f"not a JSON object: {line[:60]!r}: {error}") from None
    if not isinstance(message, dict):
        raise Malformed(f"not a JSON object: {line[:60]!r}")
    return message


def error_message(error: ThinfsError) -> Message:
    return {"error": error.errno, "message": str(error)}


def result_of(message: Message) -> Json:
    """The value of an answer; the ThinfsError that an error stands for is raised."""
    if "ok" in message:
        return message["ok"]
    raise from_errno(int(message.get("error", errno.EPROTO)), str(message.get("message", message)))
