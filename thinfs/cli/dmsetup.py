"""The drop-in dmsetup: hands its words to the server, prints what comes back, starts the server if need be.

It is run hundreds of times in a row, so its start-up time is its quality: the commands themselves run in
the server, which has long imported everything (thinfs.dmsetup). Standard library only, of that
only what the interpreter has built in: `socket` or `json` alone would double the run. Protocol and the
first bytes of the answers: thinfs.server.protocol.
"""

import _socket
import os
import sys

from thinfs.server import paths
from thinfs.server.ownership import CREDENTIALS, check_listener, listener_is_over

try:
    from _json import encode_basestring_ascii as quote
    from _json import scanstring
except ImportError:  # an interpreter without the accelerators
    from json.decoder import scanstring  # type: ignore[attr-defined,no-redef]
    from json.encoder import encode_basestring_ascii as quote

_MAX_FILE_BYTES = 2 << 20  # its text, quoted, is a line of the protocol
_EFBIG = 27
_OUT, _ERR, _OK, _NEED = b'{"out": ', b'{"err": ', b'{"ok": ', b'{"need": '


def main() -> None:
    """The console script and the link called `dmsetup`."""
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    except _Unprinted as error:
        status = 1 if error.why else 141
        if error.why:
            _fail(f"thinfs: standard output: {error.why}")
    # Nothing is buffered: tearing the interpreter down would only cost time.
    os._exit(status)


class _Unprinted(Exception):
    """The output is full, or gone: why, but "" for a pipe that nobody reads."""

    def __init__(self, error: OSError) -> None:
        self.why = "" if isinstance(error, BrokenPipeError) else str(error.strerror)


def run(argv: list[str]) -> int:
    """One dmsetup with these arguments; its exit status."""
    try:
        directory = paths.mount_dir()
        connection = connect(directory)
    except OSError as error:
        return _fail(f"thinfs: {error.strerror or error}")
    words = ", ".join(map(quote, argv))
    request = f'{{"call": "dmsetup", "args": {{"argv": [{words}], "cwd": {quote(_cwd())}}}}}\n'
    try:
        connection.sendall(request.encode("ascii"))
        return _answer(connection, argv)
    except (ConnectionError, EOFError):
        return _fail(f"thinfs: the server of {directory} went away; see {paths.log_path(directory)}")


def connect(directory: str) -> _socket.socket:
    """A connection to the server of `directory`, started when there is none. OSError names what failed."""
    try:
        connection = _connected(directory)
        if not listener_is_over(connection.getsockopt(*CREDENTIALS)):
            return connection
        connection.close()
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    _start_server(directory)
    return _connected(directory)


def _connected(directory: str) -> _socket.socket:
    address = paths.socket_path(directory)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(address)
        check_listener(connection.getsockopt(*CREDENTIALS), address)
    except OSError as error:
        connection.close()
        text = error.strerror or str(error)
        raise OSError(error.errno, text if text.startswith(address) else f"{address}: {text}") from None
    return connection


def _start_server(directory: str) -> None:
    """Returns once a server answers. Among several that find none, one starts it and the others wait."""
    command = [sys.executable, "-P", "-m", "thinfs.cli.main", "serve", "--if-needed", "--mount", directory]
    pid = os.posix_spawn(sys.executable, command, os.environ)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise OSError(f"no server for {directory}")  # it has printed why


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # the directory was removed under us
        return "/"


def _answer(connection: _socket.socket, argv: list[str]) -> int:
    buffer = b""
    while True:
        line, newline, buffer = buffer.partition(b"\n")
        while not newline:
            more = connection.recv(65536)
            if not more:
                raise EOFError
            end, newline, buffer = more.partition(b"\n")
            line += end
        if line.startswith(_OUT):
            _print(1, line, len(_OUT))
        elif line.startswith(_ERR):
            _print(2, line, len(_ERR))
        elif line.startswith(_OK):
            return int(line[len(_OK) : -1])
        elif line.startswith(_NEED):
            connection.sendall(_file(line, argv).encode("ascii"))
        else:
            import json

            return _fail(f"thinfs: {json.loads(line).get('message', line)}")


def _string(line: bytes, start: int) -> str:
    return scanstring(line.decode("ascii"), start + 1)[0]


def _print(descriptor: int, line: bytes, start: int) -> None:
    data = _string(line, start).encode("utf-8", "surrogateescape")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        raise _Unprinted(error) from None


def _file(line: bytes, argv: list[str]) -> str:
    """The caller's file that the server asks for: opened here, with the caller's rights and directory, and only if
    it stands on the caller's own command line."""
    descriptor = 0
    try:
        if not line.startswith(b"null", len(_NEED)):
            path = _string(line, len(_NEED))
            if path not in argv and not any(word[:2] == "--" and word.partition("=")[2] == path for word in argv):
                raise PermissionError(1, f"{path}: the server asks for a file that was not named to it")
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        parts, left = [], _MAX_FILE_BYTES
        while part := os.read(descriptor, 65536):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise OSError(_EFBIG, f"larger than {_MAX_FILE_BYTES} bytes")
    except OSError as error:
        return f'{{"error": {error.errno}, "message": {quote(str(error.strerror))}}}\n'
    return f'{{"text": {quote(b"".join(parts).decode("utf-8", "surrogateescape"))}}}\n'


def _fail(text: str) -> int:
    try:  # noqa: SIM105  # to import contextlib takes time
        os.write(2, f"{text}\nCommand failed.\n".encode("utf-8", "surrogateescape"))
    except OSError:
        pass  # nobody can be told
    return 1


if __name__ == "__main__":
    main()
