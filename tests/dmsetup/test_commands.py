"""Single commands of dmsetup over a fake backend: options, inputs, refusals."""

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.dm.fake_backend import FakeBackend
from tests.dmsetup.transcript import Terminal, dmsetup
from thinfs.dmsetup.commands import run_dmsetup

POOL = "0 131072 thin-pool /dev/loop1 /dev/loop0 128 32 1 skip_block_zeroing"

pytestmark = pytest.mark.trio


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


async def prints(backend: FakeBackend, *argv: str, files: dict[str | None, str] | None = None) -> str:
    status, terminal = await dmsetup(backend, *argv, files=files)
    assert (status, terminal.errors) == (0, "")
    return terminal.text


async def refused(backend: FakeBackend, *argv: str, files: dict[str | None, str] | None = None) -> list[str]:
    status, terminal = await dmsetup(backend, *argv, files=files)
    assert status == 1
    assert terminal.text == terminal.errors
    return terminal.text.splitlines()


async def test_a_refusal_says_why_between_dmsetup_s_line_and_command_failed(backend: FakeBackend) -> None:
    table = "0 131072 thin-pool /dev/loop1 /dev/loop0 100 32"
    assert await refused(backend, "create", "p", "--table", table) == [
        "device-mapper: reload ioctl on p (254:0) failed: Invalid argument",
        "thinfs: thin-pool: Invalid block size: 100, expected a multiple of 128 sectors from 128 to 2097152",
        "Command failed.",
    ]


async def test_a_refused_create_leaves_no_device(backend: FakeBackend) -> None:
    await refused(backend, "create", "p", "--table", "0 131072 thin-pool /dev/nope /dev/loop0 128 32")
    assert await prints(backend, "ls") == "No devices found\n"


async def test_a_table_comes_from_standard_input_with_comments_and_several_targets(backend: FakeBackend) -> None:
    text = "# two targets\n0 8 error\n\n  8 16 linear /dev/loop0 0\n"
    await prints(backend, "create", "x", files={None: text})
    assert await prints(backend, "table", "x") == "0 8 error \n8 16 linear /dev/loop0 0\n"
    assert await prints(backend, "table") == "x: 0 8 error \nx: 8 16 linear /dev/loop0 0\n"


@pytest.mark.parametrize("argv", [("create", "x", "table.txt"), ("create", "x", "--table", "table.txt")])
async def test_a_table_comes_from_a_file(backend: FakeBackend, argv: tuple[str, ...]) -> None:
    await prints(backend, *argv, files={"table.txt": "0 8 error\n"})
    assert await prints(backend, "table", "x") == "0 8 error \n"


async def test_a_missing_table_file_is_named(backend: FakeBackend) -> None:
    assert await refused(backend, "create", "x", "table.txt") == [
        "table.txt: No such file or directory",
        "Command failed.",
    ]


@pytest.mark.parametrize("line", ["0 error", "zero 8 error", "0 8x error"])
async def test_a_line_that_is_no_table_line_is_named_before_anything_is_created(
    backend: FakeBackend, line: str
) -> None:
    lines = await refused(backend, "create", "x", files={None: "# comment\n" + line})
    assert lines == [f"Invalid format on line 2 of table from stdin: {line}", "Command failed."]
    assert "create" not in backend.calls


async def test_a_relative_path_in_a_table_means_the_caller_s_directory(tmp_path: Path) -> None:
    for name in ("meta", "data"):
        (tmp_path / name).touch()
    backend = FakeBackend(files=[f"{tmp_path}/meta", f"{tmp_path}/data"])
    status, terminal = await dmsetup(
        backend, "create", "p", "--table", "0 131072 thin-pool meta ./data 128 0", cwd=str(tmp_path)
    )
    assert (status, terminal.text) == (0, "")
    assert await prints(backend, "table", "p") == f"0 131072 thin-pool {tmp_path}/meta {tmp_path}/data 128 0 0 \n"


async def test_notable_creates_a_device_without_a_table_and_load_and_resume_give_it_one(backend: FakeBackend) -> None:
    await prints(backend, "create", "x", "--notable", "-u", "SOME-UUID")
    text = await prints(backend, "info", "x")
    assert "Tables present:    None\n" in text
    assert text.endswith("Number of targets: 0\nUUID: SOME-UUID\n\n")
    await prints(backend, "load", "x", "--table", "0 8 error")
    assert "Tables present:    INACTIVE\n" in await prints(backend, "info", "x")
    await prints(backend, "resume", "x")
    assert "Tables present:    LIVE\n" in await prints(backend, "info", "x")


async def test_a_device_is_found_by_uuid_and_by_number(backend: FakeBackend) -> None:
    await prints(backend, "create", "x", "--table", "0 8 error", "--uuid", "U1")
    assert await prints(backend, "table", "-u", "U1") == "0 8 error \n"
    assert await prints(backend, "table", "-j", "254", "-m", "0") == "0 8 error \n"
    assert await refused(backend, "table", "-u", "U2") == ["Device with uuid U2 not found", "Command failed."]


@pytest.mark.parametrize("path", ["/dev/mapper/x", "/run/thinfs/x", "run/thinfs/x", "254:0"])
async def test_a_path_means_the_device_of_that_name(backend: FakeBackend, path: str) -> None:
    await prints(backend, "create", "x", "--table", "0 8 error")
    assert await prints(backend, "status", path) == "0 8 error \n"
    await prints(backend, "remove", path)
    assert await refused(backend, "remove", path) == [f"Device {path} not found", "Command failed."]


async def test_remove_tries_25_times_5_seconds_in_all_with_retry(
    backend: FakeBackend, autojump_clock: trio.testing.MockClock
) -> None:
    await prints(backend, "create", "x", "--table", "0 8 error")
    device = await backend.open("x")
    begin = trio.current_time()
    lines = await refused(backend, "remove", "--retry", "x")
    assert trio.current_time() - begin == pytest.approx(24 * 0.2)
    first = "device-mapper: remove ioctl on x  failed: Device or resource busy"
    assert (lines.count(first), lines[0], lines[-1]) == (25, first, "Command failed.")
    await device.aclose()


async def test_remove_with_retry_succeeds_when_the_device_is_closed_meanwhile(
    backend: FakeBackend, autojump_clock: trio.testing.MockClock
) -> None:
    await prints(backend, "create", "x", "--table", "0 8 error")
    device = await backend.open("x")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def close_later() -> None:
            await trio.sleep(1)
            await device.aclose()

        status, _ = await dmsetup(backend, "remove", "--retry", "x")
    assert status == 0
    assert not backend.devices


async def test_one_device_that_cannot_be_removed_does_not_keep_the_others(backend: FakeBackend) -> None:
    for name in ("a", "b", "c"):
        await prints(backend, "create", name, "--table", "0 8 error")
    device = await backend.open("b")
    assert (await refused(backend, "remove", "a", "b", "c"))[-1] == "Command failed."
    assert list(backend.devices) == ["b"]
    await device.aclose()


async def test_wait_returns_at_the_next_event(backend: FakeBackend, autojump_clock: trio.testing.MockClock) -> None:
    await prints(backend, "create", "x", "--table", "0 8 error")
    terminal = Terminal()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert (
                await run_dmsetup(["wait", "-v", "x"], backend=backend, console=terminal, mount_dir="/m", cwd="/") == 0
            )

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert terminal.text == ""
        backend.raise_event("x")
    assert "Event number:      1\n" in terminal.text


async def test_status_of_one_target_type_only(backend: FakeBackend) -> None:
    await prints(backend, "create", "p", "--table", POOL)
    await prints(backend, "create", "x", "--table", "0 8 error")
    assert await prints(backend, "status", "--target", "error") == "x: 0 8 error \n"
    assert await prints(backend, "ls", "--target", "thin-pool") == "p\t(254, 0)\n"


async def test_columns_are_as_wide_as_their_longest_cell(backend: FakeBackend) -> None:
    name = "a-name-longer-than-the-sixteen-columns"
    await prints(backend, "create", name, "--table", "0 8 error", "--readonly")
    head, row = (await prints(backend, "info", "-c", "-o", "name,attr")).splitlines()
    assert head == f"{'Name':<{len(name)}} Stat"
    assert row == f"{name} L--r"


async def test_an_unknown_column_is_named(backend: FakeBackend) -> None:
    await prints(backend, "create", "x", "--table", "0 8 error")
    assert await refused(backend, "info", "-c", "-o", "name,colour") == [
        "Unrecognised field: colour",
        "Command failed.",
    ]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("--colour", "ls"), "dmsetup: unrecognized option '--colour'"),
        (("ls", "-Z"), "dmsetup: invalid option -- 'Z'"),
        (("create", "x", "--table"), "dmsetup: option '--table' requires an argument"),
        (("ls", "--no"), "dmsetup: option '--no' is ambiguous: noflush, noheadings, nolockfs, noopencount, notable"),
        (("frobnicate",), "Unknown command frobnicate"),
        ((), "Please supply a command."),
    ],
)
async def test_a_wrong_command_line_is_named_and_the_usage_follows(
    backend: FakeBackend, argv: tuple[str, ...], line: str
) -> None:
    lines = await refused(backend, *argv)
    assert lines[0].startswith(line)
    assert "Usage:" in lines


async def test_options_of_udev_and_abbreviations_are_accepted(backend: FakeBackend) -> None:
    await prints(backend, "--noudevsync", "create", "x", "--verifyudev", "-y", "-v", "--tab", "0 8 error")
    assert await prints(backend, "table", "x") == "0 8 error \n"


async def test_an_answer_to_a_message_is_printed(backend: FakeBackend) -> None:
    await prints(backend, "create", "p", "--table", POOL)
    assert await prints(backend, "message", "p", "0", "create_thin 1") == ""
    assert (await refused(backend, "message", "p", "zero", "create_thin 1"))[0] == "Invalid sector zero"
