"""The control protocol: a Unix socket, one JSON object a line, one call at a time on a connection.

Request `{"call": NAME, "args": {...}}`; answer `{"ok": VALUE}` or `{"error": ERRNO, "message": TEXT}`.
The call `dmsetup` also sends, before its answer, `{"out": TEXT}`, `{"err": TEXT}`, and `{"need": PATH}`
(null for standard input) that the client answers with `{"text": TEXT}` or an error; a `read` of more than a piece
sends `{"data": BASE64}` for each piece but the last. What wants two calls at once uses two connections. Closing a
connection cancels its call and closes the devices it opened.
"""

import errno
import json
from typing import Final, TypeAlias

from thinfs.dm.verbs import Json
from thinfs.errors import InvalidArgument, ThinfsError, from_errno

Message: TypeAlias = dict[str, Json]

MAX_LINE_BYTES: Final = 16 << 20
PIECE_BYTES: Final = 1 << 20  # of a read that is answered in pieces; so an answer's memory is bounded too
_SHOWN_CHARACTERS: Final = 60


class Malformed(InvalidArgument):
    """A line that is not a JSON object, or a call with wrong arguments."""


def encode(message: Message) -> bytes:
    # One blank after the colon: the drop-in knows answers by their first bytes (thinfs.cli.dmsetup).
    return json.dumps(message).encode("ascii") + b"\n"


def decode(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except RecursionError:
        raise Malformed(f"not a JSON object: {shown(line)}: nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"not a JSON object: {shown(line)}: {error}") from None
    if not isinstance(message, dict):
        raise Malformed(f"not a JSON object: {shown(line)}")
    return message


def shown(value: object) -> str:
    """A value from outside as a refusal shows it: its beginning, on one line, a name as it is."""
    if isinstance(value, str) and value.isidentifier() and value.isascii() and len(value) <= _SHOWN_CHARACTERS:
        return value
    text = repr(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, (str, bytes, list)) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def error_message(error: ThinfsError) -> Message:
    return {"error": error.errno, "message": str(error)}


def result_of(message: Message) -> Json:
    """The value of an answer; the ThinfsError that an error stands for is raised."""
    if "ok" in message:
        return message["ok"]
    raise from_errno(int(message.get("error", errno.EPROTO)), str(message.get("message", message)))
