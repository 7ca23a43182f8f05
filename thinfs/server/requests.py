"""The calls of the control protocol: their arguments, what does them, how their answers are written.

The backend's calls are the verbs of the seam, argument for argument (thinfs.dm.verbs); reads and writes carry
base64 and name the open device by the handle that `open` gave. Promises: arguments are checked by name, type
and bounds before anything is done; no text has a NUL in it, or what no file name can hold. Never: does anything itself.
"""

import base64
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from thinfs.dm.backend import Backend, OpenDevice
from thinfs.dm.verbs import DEVICE, REQUIRED, VERBS, Json, Parameter
from thinfs.dmsetup.commands import run_dmsetup
from thinfs.errors import Busy
from thinfs.server.protocol import PIECE_BYTES, Malformed, Message, decode, result_of, shown
from thinfs.server.removal import Holder, open_devices, remove_everything

log = logging.getLogger(__name__)

_LOGGED_CHARACTERS: Final = 500

_HANDLE: Final = Parameter("handle", int)
_OFFSET: Final = Parameter("offset", int, highest=(1 << 63) - 1)
_RANGE: Final = (_HANDLE, _OFFSET, Parameter("length", int, highest=(1 << 63) - 1))
DEVICE_CALLS: Final[Mapping[str, Sequence[Parameter]]] = {
    "read": _RANGE,
    "write": (_HANDLE, _OFFSET, Parameter("data", str)),
    "discard": _RANGE,
    "flush": (_HANDLE,),
    "close": (_HANDLE,),
}
SERVER_CALLS: Final[Mapping[str, Sequence[Parameter]]] = {
    "dmsetup": (Parameter("argv", list), Parameter("cwd", str, "/")),
    "server": (),
    "stop": (Parameter("force", bool, False),),
}
CALLS: Final[Mapping[str, Sequence[Parameter]]] = {
    **{name: verb.parameters for name, verb in VERBS.items()},
    **DEVICE_CALLS,
    **SERVER_CALLS,
}


class Caller(Protocol):
    """The connection a call comes from."""

    @property
    def backend(self) -> Backend: ...

    @property
    def mount_dir(self) -> str: ...

    @property
    def holder(self) -> Holder: ...

    @property
    def devices_stay(self) -> bool: ...

    def add_device(self, device: OpenDevice) -> int: ...

    def device(self, handle: int) -> OpenDevice: ...

    def forget_device(self, handle: int) -> None: ...

    async def send(self, *messages: Message) -> None: ...

    async def next_line(self) -> bytes: ...

    def stop_server(self) -> None: ...


def checked(call: str, values: Json) -> dict[str, Any]:
    """The arguments of `call`, complete; Malformed for a call or an argument that there is not."""
    if call not in CALLS:
        raise Malformed(f"unknown call: {shown(call)}")
    if not isinstance(values, dict):
        raise Malformed(f"{call}: args is not an object: {shown(values)}")
    parameters = CALLS[call]
    unknown = values.keys() - {parameter.name for parameter in parameters}
    if unknown:
        raise Malformed(f"{call}: unknown argument {shown(sorted(unknown)[0])}")
    arguments = {}
    for parameter in parameters:
        value = arguments[parameter.name] = values.get(
            parameter.name, None if parameter.nullable else parameter.default
        )
        if value is REQUIRED:
            raise Malformed(f"{call}: no argument {parameter.name}")
        if type(value) is not parameter.kind and not (value is None and parameter.nullable):
            raise Malformed(f"{call}: argument {parameter.name} is not a {parameter.kind.__name__}: {shown(value)}")
        _check(f"{call}: argument {parameter.name}", value, parameter.highest)
    return arguments


def _check(what: str, value: Any, highest: int) -> None:
    if type(value) is int and not 0 <= value <= highest:
        raise Malformed(f"{what} is not from 0 to {highest}: {shown(value)}")
    if type(value) is list and not all(type(word) is str for word in value):
        raise Malformed(f"{what} is not a list of strings: {shown(value)}")
    for text in (value,) if type(value) is str else value if type(value) is list else ():
        if "\0" in text:
            raise Malformed(f"{what} has a NUL in it: {shown(text)}")
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            raise Malformed(f"{what} is no text: {shown(text)}") from None


async def perform(caller: Caller, call: str, values: Json) -> Json:
    """The answer to one request; a refusal is a ThinfsError."""
    arguments = checked(call, values)
    if call in VERBS:
        result = await getattr(caller.backend, call)(**arguments)
        if VERBS[call].answer is DEVICE:
            return {"handle": caller.add_device(result), "size_bytes": result.size_bytes}
        return VERBS[call].answer.to_json(result)
    if call in DEVICE_CALLS:
        return await _device_call(caller, call, **arguments)
    if call == "dmsetup":
        return await _dmsetup(caller, **arguments)
    if call == "stop":
        return await _stop(caller, **arguments)
    return {"pid": os.getpid(), "mount_dir": caller.mount_dir}


async def _device_call(caller: Caller, call: str, *, handle: int, **arguments: Any) -> Json:
    device = caller.device(handle)
    if call == "close":
        caller.forget_device(handle)
        await device.aclose()
        return None
    if call == "write":
        try:
            arguments["data"] = base64.b64decode(arguments["data"], validate=True)
        except ValueError as error:
            raise Malformed(f"write: data is not base64: {error}") from None
    result = await (_read(caller, device, **arguments) if call == "read" else getattr(device, call)(**arguments))
    answer = {"size_bytes": device.size_bytes}
    return answer if result is None else {**answer, "data": base64.b64encode(result).decode("ascii")}


async def _read(caller: Caller, device: OpenDevice, *, offset: int, length: int) -> bytes:
    """The last piece; those before it have been sent."""
    while length > PIECE_BYTES:
        data = await device.read(offset, PIECE_BYTES)
        if len(data) < PIECE_BYTES:
            return data
        await caller.send({"data": base64.b64encode(data).decode("ascii")})
        offset, length = offset + PIECE_BYTES, length - PIECE_BYTES
    return await device.read(offset, length)


async def _stop(caller: Caller, *, force: bool) -> Json:
    """Refused while a device is open, unless forced; then what could not be removed is the answer."""
    if caller.devices_stay:
        caller.stop_server()
        return []
    occupied = [str(device) for device in await open_devices(caller.backend, caller.holder)]
    if occupied and not force:
        raise Busy("in use: " + ", ".join(occupied))
    await remove_everything(caller.backend)
    caller.stop_server()
    return occupied


async def _dmsetup(caller: Caller, *, argv: list[Any], cwd: str) -> Json:
    console = RemoteConsole(caller)
    status = await run_dmsetup(argv, backend=caller.backend, console=console, mount_dir=caller.mount_dir, cwd=cwd)
    if status:
        log.warning("dmsetup %s: %s", " ".join(argv)[:_LOGGED_CHARACTERS], console.first_error())
    await console.flush()
    return status


class RemoteConsole:
    """The terminal of a drop-in at the other end of a connection."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._printed: list[Message] = []
        self._errors: list[str] = []

    def out(self, text: str) -> None:
        self._print("out", text)

    def err(self, text: str) -> None:
        self._errors.append(text.strip())
        self._print("err", text)

    def first_error(self) -> str:
        """What went wrong, on one line, for the log."""
        return "; ".join(self._errors[:2]).replace("\n", "; ")[:_LOGGED_CHARACTERS]

    def _print(self, stream: str, text: str) -> None:
        if self._printed and stream in self._printed[-1]:
            self._printed[-1][stream] += text
        else:
            self._printed.append({stream: text})

    async def flush(self) -> None:
        printed, self._printed = self._printed, []
        await self._caller.send(*printed)

    async def read(self, path: str | None) -> str:
        await self.flush()
        await self._caller.send({"need": path})
        answer = decode(await self._caller.next_line())
        text = answer["text"] if "text" in answer else result_of(answer)
        if not isinstance(text, str):
            raise Malformed(f"dmsetup: the text of {path} is not a string")
        return text
