"""Raw ioctls of /dev/mapper/control, every field of each answer on a line: run in a guest's kernel and on the door.

A program of its own that knows nothing of thinfs: its reading of <linux/dm-ioctl.h> judges thinfs.dm.ioctl's.
Major numbers are left out of what it prints; the minors are the kernel's to choose, from 0.
"""

import ctypes
import errno
import os
import struct

HEADER = struct.Struct("<3I I I I i I I I Q 128s 129s 7x")
SPEC = struct.Struct("<QQiI16s")
COMMANDS = [
    "version", "remove_all", "list_devices", "create", "remove", "rename", "suspend", "status", "wait", "table_load",
    "table_clear", "table_deps", "table_status", "list_versions", "message", "set_geometry", "arm_poll",
    "get_target_version",
]  # fmt: skip
FLAGS = {
    1: "RO", 2: "SUSP", 8: "PERS", 16: "TABLE", 32: "ACTIVE", 64: "INACT", 256: "FULL", 512: "SKIPBD", 1024: "SKIPFS",
    2048: "NOFL", 4096: "QINACT", 8192: "UEVENT", 16384: "UUID", 32768: "SECURE", 65536: "DATAOUT", 131072: "DEFER",
    262144: "INTERNAL",
}  # fmt: skip
RO, SUSP, PERS, TABLE, QINACT, UUID, DEFER = 1, 2, 8, 16, 4096, 16384, 131072
LINES = ("table_status", "wait")

libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
control = os.open("/dev/mapper/control", os.O_RDWR)


def table(*lines: tuple[int, int, str, str]) -> bytes:
    out = b""
    for start, length, kind, params in lines:
        body = params.encode() + b"\0"
        body += bytes(-(SPEC.size + len(body)) % 8)
        out += SPEC.pack(start, length, 0, SPEC.size + len(body), kind.encode()) + body
    return out


def go(label: str, command: str, name: str = "", **fields: object) -> int:
    """One ioctl, printed; the device number of the answer."""
    number: int = fields.get("nr", COMMANDS.index(command))  # type: ignore[assignment]
    payload: bytes = fields.get("payload", b"")  # type: ignore[assignment]
    size: int = fields.get("size", 1024)  # type: ignore[assignment]
    raw = bytearray(max(size, HEADER.size + len(payload)))
    HEADER.pack_into(
        raw, 0, *fields.get("ver", (4, 0, 0)), size, fields.get("start", HEADER.size), fields.get("n", 0), 0,  # type: ignore[misc]
        fields.get("flags", 0), fields.get("ev", 0), 0, fields.get("dev", 0), name.encode(),
        str(fields.get("uuid", "")).encode(),
    )  # fmt: skip
    raw[HEADER.size : HEADER.size + len(payload)] = payload
    buffer = (ctypes.c_char * len(raw)).from_buffer(raw)
    result = libc.ioctl(control, (3 << 30) | (312 << 16) | (0xFD << 8) | number, buffer)
    error = ctypes.get_errno() if result < 0 else 0
    answer = HEADER.unpack_from(raw)
    flags = "|".join(word for bit, word in FLAGS.items() if answer[7] & bit)
    texts = [field.split(b"\0", 1)[0].decode() for field in answer[11:13]]
    print(
        f"{label}: {errno.errorcode.get(error, result)} ver={answer[0]} size={answer[3]} start={answer[4]} "
        f"n={answer[5]} open={answer[6]} flags={flags} ev={answer[8]} minor={answer[10] & 0xFF} "
        f"name={texts[0]} uuid={texts[1]}"
    )
    end = answer[3] if answer[3] <= len(raw) else 0
    if not error and end > HEADER.size and command not in ("version", "list_versions", "remove_all"):
        show(command, bytearray(raw[answer[4] : end]))
    return int(answer[10])


def show(command: str, payload: bytearray) -> None:
    at = 0
    while command == "list_devices" and payload:
        payload[at + 1] = 0  # the major number
        following = struct.unpack_from("<I", payload, at + 8)[0]
        at += following
        if not following:
            break
    if command == "table_deps":
        for at in range(8, len(payload), 8):
            payload[at + 1] = 0
    print("    " + payload.hex())


def message(text: bytes, sector: int = 0) -> bytes:
    return struct.pack("<Q", sector) + text + b"\0"


def versions_of_targets() -> None:
    for name in ("thin-pool", "thin", "linear", "zero", "error"):
        go(f"version of {name}", "get_target_version", name)


def versions_and_wild_buffers() -> None:
    go("version", "version")
    go("version 5", "version", ver=(5, 0, 0))
    go("version 4.99", "version", ver=(4, 99, 0))
    go("version 4.99 of a status", "status", ver=(4, 99, 0))
    go("short", "status", size=200)
    go("just long enough", "status", "zz", size=305)
    go("unknown nr", "status", nr=60)
    go("first unknown nr", "status", nr=18 if len(COMMANDS) == 18 else 0)
    go("create w", "create", "w")
    go("load behind the end", "table_load", "w", n=1, start=2000, payload=table((0, 8, "zero", "")))
    go("load at the end", "table_load", "w", n=1, start=1000, payload=table((0, 8, "zero", "")))
    go("load more than there are", "table_load", "w", n=3, payload=table((0, 8, "zero", "")), size=360)
    wild = bytearray(table((0, 8, "zero", ""), (8, 8, "zero", "")))
    struct.pack_into("<I", wild, 20, 0xFFFFFF00)
    go("load with a wild next", "table_load", "w", n=2, payload=bytes(wild))
    struct.pack_into("<I", wild, 20, 0)
    go("load with no next", "table_load", "w", n=2, payload=bytes(wild))
    struct.pack_into("<I", wild, 20, 8)
    go("load with a next within itself", "table_load", "w", n=2, payload=bytes(wild))
    endless = SPEC.pack(0, 8, 0, 48, b"zero") + b"x" * 40
    go("load with endless params", "table_load", "w", n=1, payload=endless, size=312 + len(endless))
    go("message behind the end", "message", "w", start=2000)
    go("message without an end", "message", "w", payload=struct.pack("<Q", 0) + b"xx", size=312 + 10)
    go("rename without an end", "rename", "w", payload=b"xx", size=312 + 2)
    go("remove w", "remove", "w")


def names() -> tuple[int, int]:
    go("list none", "list_devices")
    go("list none tiny", "list_devices", size=312)
    go("create empty", "create")
    go("create slash", "create", "a/b")
    a = go("create a", "create", "a", uuid="UU-a")
    go("create a again", "create", "a")
    go("create same uuid", "create", "b", uuid="UU-a")
    go("create b with flags", "create", "b", flags=RO | SUSP)
    go("remove b", "remove", "b")
    go("status a", "status", "a")
    go("status uuid", "status", uuid="UU-a")
    go("status both", "status", "a", uuid="UU-a")
    go("status dev", "status", dev=a)
    go("status name and dev", "status", "a", dev=a)
    go("status uuid and dev", "status", uuid="UU-a", dev=a)
    go("status of another dev", "status", dev=a + 77)
    go("status of nothing", "status")
    go("status of an absent name", "status", "zz")
    go("status of an absent uuid", "status", uuid="zz")
    c = go("create c", "create", "c")
    go("list", "list_devices")
    go("list uuid", "list_devices", flags=UUID)
    go("list small", "list_devices", size=330)
    go("list prefix", "list_devices", "c")
    go("list uuid prefix", "list_devices", uuid="UU", flags=UUID)
    go("list no such prefix", "list_devices", "q")
    go("setuuid c", "rename", "c", flags=UUID, payload=b"UU-c\0")
    go("status c", "status", "c")
    go("setuuid c again", "rename", "c", flags=UUID, payload=b"UU-d\0")
    go("setuuid taken", "rename", "c", flags=UUID, payload=b"UU-a\0")
    go("create d", "create", "d")
    go("setuuid taken", "rename", "d", flags=UUID, payload=b"UU-a\0")
    go("setuuid empty", "rename", "d", flags=UUID, payload=b"\0")
    go("setuuid too long", "rename", "d", flags=UUID, payload=b"u" * 129 + b"\0")
    go("setuuid as long as may be", "rename", "d", flags=UUID, payload=b"u" * 128 + b"\0")
    go("status d", "status", "d")
    go("rename to taken", "rename", "c", payload=b"a\0")
    go("rename to itself", "rename", "c", payload=b"c\0")
    go("rename", "rename", "c", payload=b"cc\0")
    go("rename empty", "rename", "cc", payload=b"\0")
    go("rename absent", "rename", "c", payload=b"q\0")
    go("rename slash", "rename", "cc", payload=b"q/q\0")
    go("rename too long", "rename", "cc", payload=b"n" * 128 + b"\0")
    go("rename by uuid", "rename", uuid="UU-a", payload=b"aa\0")
    go("remove d", "remove", "d")
    return a, c


def tables() -> None:
    go("table_status no table", "table_status", "a")
    go("deps no table", "table_deps", "a")
    go("clear no table", "table_clear", "a")
    go("resume no table", "suspend", "a")
    go("suspend no table", "suspend", "a", flags=SUSP)
    go("status", "status", "a")
    go("suspend no table again", "suspend", "a", flags=SUSP)
    go("resume no table again", "suspend", "a")
    go("status", "status", "a")
    go("load nothing", "table_load", "a")
    go("load unknown", "table_load", "a", n=1, payload=table((0, 8, "nope", "")))
    go("load a blank type", "table_load", "a", n=1, payload=table((0, 8, "zero zero", "")))
    go("load gap", "table_load", "a", n=1, payload=table((8, 8, "zero", "")))
    go("load overlap", "table_load", "a", n=2, payload=table((0, 8, "zero", ""), (4, 8, "zero", "")))
    go("load length 0", "table_load", "a", n=1, payload=table((0, 0, "zero", "")))
    go("load", "table_load", "a", n=2, payload=table((0, 8, "zero", ""), (8, 8, "error", "")))
    go("status", "status", "a")
    go("status qinact", "status", "a", flags=QINACT)
    go("table live", "table_status", "a", flags=TABLE)
    go("table inact", "table_status", "a", flags=TABLE | QINACT)
    go("table_status inact", "table_status", "a", flags=QINACT)
    go("resume", "suspend", "a")
    go("table", "table_status", "a", flags=TABLE)
    go("table_status", "table_status", "a")
    go("table_status by uuid", "table_status", uuid="UU-a")
    go("table_status small", "table_status", "a", size=360)
    go("table_status tiny", "table_status", "a", size=312)
    go("deps", "table_deps", "a")
    go("deps tiny", "table_deps", "a", size=312)
    go("load ro", "table_load", "a", n=1, flags=RO, payload=table((0, 16, "zero", "")))
    go("status", "status", "a")
    go("status qinact", "status", "a", flags=QINACT)
    go("clear", "table_clear", "a")
    go("clear again", "table_clear", "a")
    go("clear qinact", "table_status", "a", flags=TABLE | QINACT)
    go("load ro", "table_load", "a", n=1, flags=RO, payload=table((0, 16, "zero", "")))
    go("resume ro", "suspend", "a")
    go("status", "status", "a")
    go("load rw", "table_load", "a", n=1, payload=table((0, 16, "zero", "")))
    go("resume rw", "suspend", "a")
    go("suspend", "suspend", "a", flags=SUSP)
    go("suspend again", "suspend", "a", flags=SUSP)
    go("status", "status", "a")
    go("resume", "suspend", "a")
    go("resume again", "suspend", "a")


def messages_and_events() -> None:
    go("message", "message", "a", payload=message(b"hello"))
    go("message beyond", "message", "a", payload=message(b"hello", 99999))
    go("message empty", "message", "a", payload=message(b""))
    go("message blank", "message", "a", payload=message(b"  "))
    go("message @", "message", "a", payload=message(b"@cancel_deferred_remove"))
    go("message @ with more", "message", "a", payload=message(b"@cancel_deferred_remove now"))
    go("message @unknown", "message", "a", payload=message(b"@unknown"))
    go("message absent", "message", "zz", payload=message(b"hello"))
    go("wait past", "wait", "a", ev=77)
    go("wait past table", "wait", "a", ev=77, flags=TABLE)
    go("geometry of words", "set_geometry", "a", payload=b"1 2\0")
    go("geometry out of range", "set_geometry", "a", payload=b"1 999 3 0\0")
    go("geometry absent", "set_geometry", "zz", payload=b"1 2 3 0\0")
    go("target version", "get_target_version", "thin-pool")
    go("target version none", "get_target_version", "nope")
    go("target version tiny", "get_target_version", "thin-pool", size=320)
    go("versions tiny", "list_versions", size=320)


def stacks(a: int) -> None:
    number = f"{(a >> 8) & 0xFFF}:{a & 0xFF}"
    go("create l", "create", "l")
    go("load l beyond", "table_load", "l", n=1, payload=table((0, 16, "linear", f"{number} 8")))
    go("load l", "table_load", "l", n=1, payload=table((0, 8, "linear", f"{number} 8")))
    go("deps of an inactive table", "table_deps", "l")
    go("resume l", "suspend", "l")
    go("deps l", "table_deps", "l")
    go("status a", "status", "a")
    go("load l longer than a", "table_load", "l", n=1, payload=table((0, 32, "linear", f"{number} 0")))
    go("resume l longer than a", "suspend", "l")
    go("status l", "status", "l")
    go("clear l", "table_clear", "l")
    go("resume l", "suspend", "l")
    go("remove busy", "remove", "a")
    go("remove deferred", "remove", "a", flags=DEFER)
    go("status a", "status", "a")
    go("load to deferred", "table_load", "a", n=1, payload=table((0, 16, "error", "")))
    go("clear", "table_clear", "a")
    go("cancel", "message", "a", payload=message(b"@cancel_deferred_remove"))
    go("status a", "status", "a")
    go("message without a table", "message", "c", payload=message(b"hello"))
    go("create c", "create", "c")
    go("message without a table", "message", "c", payload=message(b"hello"))
    go("remove_all deferred", "remove_all", flags=DEFER)
    go("list", "list_devices")
    go("create p", "create", "p", flags=PERS, dev=(a & 0xFF00) | 9)
    go("create the same number", "create", "q", flags=PERS, dev=(a & 0xFF00) | 9)
    go("create the next one", "create", "r")
    go("remove r", "remove", "r")
    go("remove r again", "remove", "r")
    go("create dot", "create", "..", flags=PERS, dev=(a & 0xFF00) | 11)
    go("remove dot", "remove", "..")
    go("remove_all", "remove_all")
    go("list", "list_devices")


if __name__ == "__main__":
    versions_of_targets()
    versions_and_wild_buffers()
    first, _ = names()
    tables()
    messages_and_events()
    stacks(first)
