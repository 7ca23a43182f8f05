"""The control server on its socket: the protocol, and clients that are slow, wrong or gone."""

import base64
import json
import logging
import os
import stat

import pytest
import trio
import trio.testing

from tests.dm.fake_backend import FakeBackend
from tests.server.conftest import Running
from thinfs.errors import Busy, InvalidArgument
from thinfs.server.client import connect, open_control_client
from thinfs.server.daemon import log_formatter
from thinfs.server.protocol import MAX_LINE_BYTES, PIECE_BYTES
from thinfs.server.server import bind

pytestmark = pytest.mark.trio

ERROR_TABLE = "0 8 error"


async def test_the_socket_is_its_owner_s_alone(running: Running) -> None:
    assert stat.S_IMODE(os.stat(running.path).st_mode) == 0o600


async def test_a_call_is_answered_with_ok_and_its_value(running: Running) -> None:
    client = await running.client()
    answer = await client.ask("create", name="x", table=ERROR_TABLE)
    assert answer["ok"]["name"] == "x"
    assert await client.ask("table", name="x") == {"ok": "0 8 error "}


async def test_a_refusal_is_answered_with_its_errno_and_reason(running: Running) -> None:
    client = await running.client()
    assert await client.ask("info", name="x") == {"error": 6, "message": "x: no such device"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"call": "explode"}', "unknown call: explode"),
        ('{"call": "info"}', "info: no argument name"),
        ('{"call": "info", "args": {"name": 7}}', "info: argument name is not a str: 7"),
        ('{"call": "info", "args": {"name": "x", "colour": 1}}', "info: unknown argument colour"),
        ('{"call": "info", "args": []}', "info: args is not an object"),
        ('{"call": "read", "args": {"handle": 3, "offset": 0, "length": 1}}', "handle 3: not open"),
        ('{"call": "dmsetup", "args": {"argv": [1]}}', "argv is not a list of strings"),
        ("[" * 100_000, "nested too deeply"),
        ('{"call": {"a": 1}}', "unknown call: {'a': 1}"),
        ('{"call": "' + "x" * 1000 + '"}', "unknown call: 'xxx"),
        ('{"call": "info", "args": {"name": "a\\u0000b"}}', "info: argument name has a NUL in it: 'a\\x00b'"),
        ('{"call": "info", "args": {"name": "\\ud800"}}', "info: argument name is no text: '\\ud800'"),
        ('{"call": "dmsetup", "args": {"argv": ["ls", "\\ud800"]}}', "argv is no text"),
        ('{"call": "dmsetup", "args": {"argv": ["ls"], "cwd": "\\u0000"}}', "cwd has a NUL"),
        ('{"call": "message", "args": {"name": "x", "message": "m", "sector": -1}}', "sector is not from 0 to"),
        ('{"call": "wait", "args": {"name": "x", "event_nr": 4294967296}}', "event_nr is not from 0 to 4294967295"),
        ('{"call": "read", "args": {"handle": -1, "offset": 0, "length": 1}}', "handle is not from 0"),
        ('{"call": "read", "args": {"handle": 1, "offset": -512, "length": 1}}', "offset is not from 0"),
        ('{"call": "read", "args": {"handle": 1, "offset": 0, "length": -1}}', "length is not from 0"),
        ('{"call": "write", "args": {"handle": 1, "offset": -512, "data": ""}}', "offset is not from 0"),
        ('{"call": "discard", "args": {"handle": 1, "offset": 0, "length": 9223372036854775808}}', "length is not"),
        ('{"call": "read", "args": {"handle": 1, "offset": 1e3, "length": 1}}', "offset is not a int"),
        ('{"call": "read", "args": {"handle": true, "offset": 0, "length": 1}}', "handle is not a int"),
    ],
)
async def test_a_malformed_call_is_refused_and_the_connection_goes_on(running: Running, line: str, reason: str) -> None:
    client = await running.client()
    await client.say(line)
    answer = await client.line()
    assert answer["error"] == 22
    assert reason in answer["message"]
    assert await client.ask("list") == {"ok": []}


async def test_a_long_read_is_answered_in_pieces(running: Running) -> None:
    await running.backend.create("x", f"0 {6 * PIECE_BYTES // 512} error")
    client = await running.client()
    handle = (await client.ask("open", name="x"))["ok"]["handle"]
    piece = base64.b64encode(bytes(PIECE_BYTES)).decode()
    assert await client.ask("read", handle=handle, offset=0, length=1 << 40) == {"data": piece}
    for _ in range(5):
        assert await client.line() == {"data": piece}
    assert await client.line() == {"ok": {"size_bytes": 6 * PIECE_BYTES, "data": ""}}
    async with open_control_client(running.path) as remote:
        device = await remote.open("x")
        for length in (0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 7):
            assert await device.read(512, length) == bytes(length)
        await device.aclose()


async def test_what_a_client_says_forges_no_line_of_the_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    client = await running.client()
    forged = "x\ntime=2026-01-01 level=INFO all is well\x1b[31m\u2028time=2026"
    await client.ask("info", name=forged)
    await client.ask("dmsetup", argv=["message", forged, "0", "y" * 1_000_000])
    await client.line()
    try:
        raise ValueError(forged)
    except ValueError:
        logging.getLogger("thinfs").exception("a bug with %s", forged)
    formatter = log_formatter()
    for record in caplog.records:
        record.exc_text = None  # as another formatter wrote it
        lines = formatter.format(record).splitlines()
        assert lines[0].startswith("time=")
        assert all(line.startswith("    ") for line in lines[1:])
        assert all(len(line) < 5000 and line.isprintable() for line in lines)
    assert len(caplog.records) >= 3


async def test_an_endless_line_ends_its_connection_only(running: Running) -> None:
    client, other = await running.client(), await running.client()
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(MAX_LINE_BYTES // 65536 + 64):
            await client.stream.send_all(b"x" * 65536)
    assert await other.ask("list") == {"ok": []}


async def test_a_bug_is_answered_eio_and_the_server_goes_on(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def explode(_self: FakeBackend) -> None:
        raise ZeroDivisionError

    client = await running.client()
    monkeypatch.setattr(FakeBackend, "list", explode)
    assert (await client.ask("list"))["error"] == 5
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert await client.ask("list") == {"ok": []}


async def test_clients_are_served_while_another_waits(running: Running) -> None:
    await running.backend.create("x", ERROR_TABLE)
    waiting, other = await running.client(), await running.client()
    await waiting.say('{"call": "wait", "args": {"name": "x", "event_nr": 0}}')
    assert (await other.ask("info", name="x"))["ok"]["event_nr"] == 0
    running.backend.raise_event("x")
    assert (await waiting.line())["ok"]["event_nr"] == 1


async def test_a_client_that_does_not_read_its_answers_keeps_nobody_waiting(running: Running) -> None:
    slow, other = await running.client(), await running.client()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def ask_and_ask() -> None:
            while True:
                await slow.say('{"call": "targets"}')

        await trio.testing.wait_all_tasks_blocked(0.01)  # the socket is full both ways
        assert await other.ask("list") == {"ok": []}
        nursery.cancel_scope.cancel()


async def test_a_wait_is_cancelled_when_its_client_goes(running: Running) -> None:
    await running.backend.create("x", ERROR_TABLE)
    client = await running.client()
    await client.say('{"call": "dmsetup", "args": {"argv": ["wait", "x"]}}')
    while "wait" not in running.backend.calls:
        await trio.testing.wait_all_tasks_blocked(0.01)
    await client.stream.aclose()
    while "wait cancelled" not in running.backend.calls:
        await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_client_that_only_ends_its_sending_gets_its_answer(running: Running) -> None:
    client = await running.client()
    await client.say('{"call": "targets"}')
    await client.stream.send_eof()
    assert len((await client.line())["ok"]) == 5
    assert await client.line() is None


async def test_the_devices_a_client_opened_are_closed_when_it_goes(running: Running) -> None:
    await running.backend.create("x", ERROR_TABLE)
    client, other = await running.client(), await running.client()
    await client.ask("open", name="x")
    assert (await other.ask("info", name="x"))["ok"]["open_count"] == 1
    await client.stream.aclose()
    while "closed" not in running.backend.calls:
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert (await other.ask("info", name="x"))["ok"]["open_count"] == 0


async def test_dmsetup_asks_its_client_for_standard_input(running: Running) -> None:
    client = await running.client()
    assert await client.ask("dmsetup", argv=["create", "x"]) == {"need": None}
    await client.say(json.dumps({"text": ERROR_TABLE}))
    assert await client.line() == {"ok": 0}
    assert await client.ask("dmsetup", argv=["table"]) == {"out": "x: 0 8 error \n"}
    assert await client.line() == {"ok": 0}


async def test_dmsetup_prints_both_streams_in_their_order(running: Running) -> None:
    client = await running.client()
    answer = await client.ask("dmsetup", argv=["info", "x"])
    assert answer == {"err": "Device does not exist.\nCommand failed.\n"}
    assert await client.line() == {"ok": 1}


async def test_stop_refuses_and_names_what_is_open(running: Running) -> None:
    await running.backend.create("p", "0 131072 thin-pool /dev/loop1 /dev/loop0 128 32")
    await running.backend.message("p", "create_thin 1")
    await running.backend.create("t", "0 8 thin /dev/mapper/p 1")
    device = await running.backend.open("t")
    connection = await connect(running.path)
    running.stack.push_async_callback(connection.aclose)
    with pytest.raises(Busy, match=r"^in use: t \(open 1 time\)$"):
        await connection.call("stop")
    assert set(running.backend.devices) == {"p", "t"}
    assert not running.server.stopping.is_set()
    await device.aclose()


async def test_stop_removes_the_devices_and_answers_before_the_server_ends(running: Running) -> None:
    await running.backend.create("p", "0 131072 thin-pool /dev/loop1 /dev/loop0 128 32")
    await running.backend.message("p", "create_thin 1")
    await running.backend.create("t", "0 8 thin /dev/mapper/p 1")
    client = await running.client()
    assert await client.ask("stop") == {"ok": []}
    await running.server.stopping.wait()
    assert not running.backend.devices


async def test_stop_refuses_while_a_mount_holds_a_device(running: Running) -> None:
    async def holder(name: str) -> str | None:
        return "/dev/loop9 is mounted" if name == "x" else None

    running.server.holder = holder
    await running.backend.create("x", ERROR_TABLE)
    connection = await connect(running.path)
    running.stack.push_async_callback(connection.aclose)
    with pytest.raises(Busy, match=r"^in use: x \(/dev/loop9 is mounted\)$"):
        await connection.call("stop")
    assert await connection.call("stop", force=True) == ["x (/dev/loop9 is mounted)"]


async def test_a_socket_path_that_is_too_long_is_named(tmp_path: "os.PathLike[str]") -> None:
    path = f"{tmp_path}/{'x' * 120}"
    with pytest.raises(InvalidArgument, match="too long"):
        bind(path)
