"""The kernel's dm-thin answers as docs/reference/behaviour.md says, through a guest's synchronous calls."""

import contextlib

import pytest

from kernel_backend.block_io import digest, pattern
from kernel_backend.runner import MIB, Guest
from thinfs.errors import Busy, Exists, InvalidArgument, NoSuchDevice, NoSuchThin, NotSupported, ThinfsError

BLOCK = 64 * 1024
FRESH = "0 2097152 thin-pool 0 419/4096 0/16384 - rw no_discard_passdown queue_if_no_space - 1024 "


def create_pool(guest: Guest, *features: str) -> None:
    metadata, data = guest.images[0].device, guest.images[1].device
    words = f" {len(features)} {' '.join(features)}" if features else ""
    guest.create("p", f"0 2097152 thin-pool {metadata} {data} 128 0{words}")


def create_thin(guest: Guest, name: str, dev_id: int, message: str | None = None) -> int:
    guest.message("p", message or f"create_thin {dev_id}")
    guest.create(name, f"0 2097152 thin /dev/mapper/p {dev_id}")
    return guest.open(guest.node(name))


def test_a_fresh_pool_has_the_status_of_the_reference(guest: Guest) -> None:
    create_pool(guest)
    assert guest.status("p") == FRESH
    assert guest.table("p") == "0 2097152 thin-pool 98:0 98:16 128 0 0 "


def test_a_pool_on_a_loop_passes_discards_down(guest: Guest) -> None:
    path, device = guest.loop_create(1024 * MIB)
    guest.create("p", f"0 2097152 thin-pool {guest.images[0].device} {device} 128 0")
    assert " rw discard_passdown queue_if_no_space " in guest.status("p")
    assert path.startswith("/dev/loop")


def test_a_grown_loop_grows_the_pool(guest: Guest) -> None:
    path, device = guest.loop_create(512 * MIB)
    table = f"thin-pool {guest.images[0].device} {device} 128 0"
    guest.create("p", f"0 1048576 {table}")
    guest.loop_resize(path, 1024 * MIB)
    guest.load("p", f"0 2097152 {table}")
    guest.suspend("p")
    guest.resume("p")
    assert guest.status("p").split()[5] == "0/16384"


def test_what_was_written_is_read_and_a_snapshot_keeps_it(guest: Guest) -> None:
    create_pool(guest)
    thin = create_thin(guest, "t", 0)
    guest.write(thin, 0, b"\xa5" * BLOCK)
    guest.write_pattern(thin, BLOCK, BLOCK, 7)
    guest.suspend("t")
    guest.message("p", "create_snap 1 0")
    guest.resume("t")
    guest.write(thin, 0, bytes(BLOCK))
    guest.create("s", "0 2097152 thin /dev/mapper/p 1")
    snapshot = guest.open(guest.node("s"))
    assert guest.read(snapshot, 0, BLOCK) == b"\xa5" * BLOCK
    assert guest.read(thin, 0, BLOCK) == bytes(BLOCK)
    assert guest.read_digest(snapshot, BLOCK, BLOCK) == digest(pattern(7, BLOCK))
    assert guest.status("t") == "0 2097152 thin 256 255"
    assert guest.status("p").split()[5] == "3/16384"


def test_a_discard_unmaps(guest: Guest) -> None:
    create_pool(guest)
    thin = create_thin(guest, "t", 0)
    guest.write_pattern(thin, 0, 4 * BLOCK, 1)
    guest.discard(thin, BLOCK, 2 * BLOCK)
    guest.flush(thin)
    assert guest.status("t") == "0 2097152 thin 256 511"
    assert guest.read(thin, BLOCK, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("create_thin 0", Exists),
        ("create_snap 5 99", NoSuchThin),
        ("delete 99", NoSuchThin),
        ("delete 0", Busy),
        ("create_thin 16777216", InvalidArgument),
        ("set_transaction_id 4 5", InvalidArgument),
        ("release_metadata_snap", InvalidArgument),
        ("bogus", InvalidArgument),
    ],
)
def test_a_refused_message_has_the_errno_of_the_reference(guest: Guest, message: str, error: type[ThinfsError]) -> None:
    create_pool(guest)
    create_thin(guest, "t", 0)
    with pytest.raises(error) as caught:
        guest.message("p", message)
    assert type(caught.value) is error
    assert message in str(caught.value)


def test_a_refused_table_leaves_no_device_and_its_reason_in_the_log(guest: Guest) -> None:
    with pytest.raises(InvalidArgument):
        guest.create("p", f"0 2097152 thin-pool {guest.images[0].device} {guest.images[1].device} 100 0")
    assert guest.list() == []
    assert any("thin-pool: Invalid block size" in line for line in guest.kernel_log())


def test_a_device_that_is_not_there_is_enxio(guest: Guest) -> None:
    for call in (guest.info, guest.status, guest.table, guest.suspend, guest.resume, guest.remove):
        with pytest.raises(NoSuchDevice):
            call("nope")


def test_an_open_device_is_busy_until_it_goes_with_its_last_close(guest: Guest) -> None:
    create_pool(guest)
    thin = create_thin(guest, "t", 0)
    with pytest.raises(Busy):
        guest.remove("t")
    guest.remove("t", deferred=True)
    assert guest.info("t").deferred_remove
    assert guest.info("t").open_count == 1
    removed = guest.start("wait", "t", 0)
    guest.close_handle(thin)
    with contextlib.suppress(NoSuchDevice):  # it may have gone before the wait began
        removed.result()
    assert [device.name for device in guest.list()] == ["p"]


def test_a_table_waits_in_the_inactive_slot_until_resume_or_clear(guest: Guest) -> None:
    create_pool(guest)
    create_thin(guest, "t", 0)
    guest.load("t", "0 4194304 thin /dev/mapper/p 0")
    assert guest.info("t").inactive_table
    assert guest.table("t", inactive=True) == "0 4194304 thin 254:0 0"
    guest.clear("t")
    assert not guest.info("t").inactive_table
    guest.load("t", "0 4194304 thin /dev/mapper/p 0")
    guest.suspend("t")
    assert guest.info("t").suspended
    guest.resume("t")
    assert guest.table("t") == "0 4194304 thin 254:0 0"


def test_a_device_without_a_table_has_none(guest: Guest) -> None:
    info = guest.create("bare", None, uuid="some-uuid")
    assert (info.live_table, info.target_count, info.uuid) == (False, 0, "some-uuid")
    guest.rename("bare", "named")
    assert [device.name for device in guest.list()] == ["named"]


def test_the_thin_targets_are_listed_with_their_versions(guest: Guest) -> None:
    versions = {target.name: target.version for target in guest.targets()}
    minor = {"6.1": 22, "6.12": 23, "7.2": 24}[guest.kernel.name]
    assert versions["thin-pool"] == versions["thin"] == (1, minor, 0)


def test_the_metadata_can_be_checked_and_dumped_from_here(guest: Guest) -> None:
    create_pool(guest)
    thin = create_thin(guest, "t", 3)
    guest.write_pattern(thin, 0, 2 * BLOCK, 1)
    guest.reset()
    assert guest.thin_check(guest.images[0]).returncode == 0
    assert '<device dev_id="3" mapped_blocks="2"' in guest.thin_dump(guest.images[0])


def test_a_list_of_operations_runs_in_one_call_with_its_refusals_as_outcomes(guest: Guest) -> None:
    create_pool(guest)
    outcomes = guest.batch(
        [
            ("message", "p", "create_thin 0"),
            ("message", "p", "create_thin 0"),
            ("create", "t", "0 131072 thin /dev/mapper/p 0"),
            ("write_pattern", "t", 0, BLOCK, 9),
            ("read_digest", "t", 0, BLOCK),
            ("write_pattern", "t", 131072 * 512, BLOCK, 9),
            ("remove", "t"),
            ("status", "p"),
        ]
    )
    assert outcomes == [
        (0, ""),
        (17, ""),
        (0, ""),
        (0, ""),
        (0, digest(pattern(9, BLOCK))),
        (28, ""),
        (0, ""),
        (0, "0 2097152 thin-pool 0 420/4096 1/16384 - rw no_discard_passdown queue_if_no_space - 1024 "),
    ]


def test_reset_removes_a_device_whose_io_waits_for_space(guest: Guest) -> None:
    metadata, data = guest.images[0].device, guest.images[1].device
    guest.create("p", f"0 128 thin-pool {metadata} {data} 128 0")
    thin = create_thin(guest, "t", 0)
    guest.write_pattern(thin, 0, BLOCK, 1)
    event = guest.info("p").event_nr
    second = guest.start("write_pattern", thin, BLOCK, BLOCK, 2)
    guest.threaded.wait("p", event)
    assert not second.answered
    guest.reset()
    with pytest.raises(ThinfsError):
        second.result()


def test_a_live_pool_is_dumped_through_its_metadata_snapshot(guest: Guest) -> None:
    create_pool(guest)
    thin = create_thin(guest, "t", 3)
    guest.write_pattern(thin, 0, BLOCK, 1)
    guest.message("p", "reserve_metadata_snap")
    guest.write_pattern(thin, BLOCK, BLOCK, 1)
    assert '<device dev_id="3" mapped_blocks="1"' in guest.thin_dump(guest.images[0], "-m")
    guest.message("p", "release_metadata_snap")


def test_failing_metadata_makes_the_pool_read_only(guest: Guest) -> None:
    sectors = guest.images[0].size_bytes // 512
    below, data = guest.images[0].device, guest.images[1].device
    guest.create("m", f"0 {sectors} linear {below} 0")
    guest.create("p", f"0 2097152 thin-pool /dev/mapper/m {data} 128 0")
    guest.load("m", f"0 {sectors} flakey {below} 0 0 60 1 error_writes")
    guest.suspend("m", noflush=True)
    guest.resume("m")
    guest.message("p", "create_thin 0")  # the commit that fails is the message's, its answer is not
    assert " ro " in guest.status("p") or guest.status("p").endswith(" Fail")
    with pytest.raises(NotSupported):
        guest.message("p", "create_thin 1")


def test_a_file_system_is_made_and_mounted_in_the_guest(guest: Guest) -> None:
    create_pool(guest)
    guest.close_handle(create_thin(guest, "t", 0))
    script = "mkfs.ext4 -q /dev/mapper/t && mkdir /run/mnt && mount /dev/mapper/t /run/mnt && "
    script += "echo hello > /run/mnt/id.txt && umount /run/mnt && mount /dev/mapper/t /run/mnt && "
    script += "cat /run/mnt/id.txt; umount /run/mnt; rmdir /run/mnt"
    done = guest.shell(script)
    assert (done.stdout, done.returncode) == ("hello\n", 0), done.stderr
