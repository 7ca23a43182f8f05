"""`thinfs docker`: a directory of Docker's devicemapper driver without Docker: what is in it, and safe ways at it.

Promises: `list` writes nothing and works on a directory in any state, in use or not; everything else refuses a pool
that is in use (EBUSY), and never changes a device of Docker's. `--json` is one document with the same facts.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from thinfs.docker.directory import DockerDirectory, read_docker_directory
from thinfs.docker.pool import Inventory, Row, find_device, take_inventory
from thinfs.docker.roll_back import roll_back
from thinfs.docker.snapshot import remove_snapshot, take_snapshot
from thinfs.errors import ThinfsError, from_oserror
from thinfs.plain_text import plain

_NAMES_SHOWN = 2
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except ThinfsError as error:
        print(plain(f"thinfs docker {options.command}: {error}"), file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()  # nothing more to say to anybody, not even at exit
        return 141
    except OSError as error:
        print(plain(f"thinfs docker {options.command}: {from_oserror(error, str(error.filename))}"), file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thinfs docker", description="A directory of Docker's devicemapper driver.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=does, description=does)
        one.set_defaults(run=run)
        return one

    def directory(one: argparse.ArgumentParser) -> None:
        one.add_argument("directory", metavar="DIR", type=Path, help="Docker's root, as /var/lib/docker")
        one.add_argument(
            "--pool", nargs=2, metavar=("METADATA", "DATA"), type=Path,
            help="its pool, where that is not in DIR: the parts of a thin pool of LVM (direct-lvm)",
        )  # fmt: skip

    container_help = "a container's name or id, an image, or the name of a device's record"
    one = command("list", _list, "devices, whose they are, what they take, what a crash has left; writes nothing")
    directory(one)
    one.add_argument("--json", action="store_true", help="one JSON document")
    one = command("snapshot", _snapshot, "snapshot a container's device beside Docker's devices")
    directory(one)
    one.add_argument("container", metavar="CONTAINER", help=container_help)
    one.add_argument("--name", help="of the snapshot (default: CONTAINER-DEVICE)")
    one = command("remove", _remove, "delete such a snapshot, or a device that only the pool knows")
    directory(one)
    one.add_argument("snapshot", metavar="SNAPSHOT", help="a snapshot's name, or a device id")
    one = command("mount", _mount, "mount a snapshot of a container's device; its files are below MOUNTPOINT/rootfs")
    directory(one)
    one.add_argument("container", metavar="CONTAINER", help=container_help + ", or a snapshot's name")
    one.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    one.add_argument(
        "--rw", action="store_true", help="writable: into a snapshot with a name to stay, else lost with umount"
    )
    one = command("umount", _umount, "unmount, and delete the snapshot that mount made")
    one.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    one = command("roll-back", _roll_back, "remove what a transaction has left that Docker did not finish")
    directory(one)
    return parser


def _read(options: argparse.Namespace) -> DockerDirectory:
    pool_files = tuple(path.absolute() for path in options.pool) if options.pool else None
    return read_docker_directory(options.directory.resolve(), pool_files)


def _snapshot(options: argparse.Namespace) -> int:
    docker = _read(options)
    made = take_snapshot(docker, find_device(docker, options.container), options.name)
    print(f"{made.name}: device {made.device_id}, {made.size_bytes} bytes, snapshot of device {made.origin_device_id}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    print(plain(remove_snapshot(_read(options), options.snapshot)))
    return 0


def _mount(options: argparse.Namespace) -> int:
    from thinfs.cli.docker_mount import mount

    print(plain(mount(_read(options), options.container, options.mountpoint.resolve(), writable=options.rw)))
    return 0


def _umount(options: argparse.Namespace) -> int:
    from thinfs.cli.docker_mount import unmount

    print(plain(f"{options.mountpoint}: unmounted, {unmount(options.mountpoint.resolve())}"))
    return 0


def _roll_back(options: argparse.Namespace) -> int:
    done = roll_back(_read(options))
    print("\n".join(done) if done else "nothing to roll back")
    return 0


def _list(options: argparse.Namespace) -> int:
    inventory = take_inventory(_read(options))
    print(json.dumps(_document(inventory), indent=2) if options.json else "\n".join(map(plain, _lines(inventory))))
    return 0


# -- what a list says


def _lines(inventory: Inventory) -> Iterable[str]:
    superblock, block = inventory.superblock, inventory.data_block_bytes
    yield (
        f"pool: {size_text(inventory.nr_used_data_blocks * block)} used of "
        f"{size_text(inventory.nr_data_blocks * block)}, blocks of {size_text(block)}, "
        f"{len([row for row in inventory.rows if row.usage])} devices"
    )
    yield f"transaction: {superblock.trans_id}, {'one not finished' if inventory.pending else 'finished'}"
    if inventory.in_use_by:
        yield f"in use by {inventory.in_use_by}: as of its last commit"
    table = [("DEVICE", "KIND", "SIZE", "USED", "EXCLUSIVE", "NAME")]
    for row in inventory.rows:
        used, exclusive = (
            (size_text(row.usage.mapped_blocks * block), size_text(row.usage.exclusive_blocks * block))
            if row.usage
            else ("-", "-")
        )
        size = "-" if row.size_bytes is None else size_text(row.size_bytes)
        table.append((str(row.device_id), row.kind, size, used, exclusive, " ".join([*_names(row), *_notes(row)])))
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    for line in table:
        cells = [
            cell.rjust(width) if i not in (1,) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line[:5], widths, strict=True))
        ]
        yield "  ".join([*cells, line[5]]).rstrip()
    for problem in inventory.problems:
        yield f"problem: {problem}"


def _names(row: Row) -> Iterable[str]:
    if row.names:
        yield ", ".join(row.names[:_NAMES_SHOWN])
    if len(row.names) > _NAMES_SHOWN:
        yield f"and {len(row.names) - _NAMES_SHOWN} more"


def _notes(row: Row) -> Iterable[str]:
    if row.container and row.container.running:
        yield "(running)"
    if row.record and row.record.deleted:
        yield "(to be deleted)"
    if row.pending:
        yield "(not finished)"
    if row.usage is None:
        yield "(not in the pool)"


def size_text(nr_bytes: int) -> str:
    value, unit = float(nr_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if value.is_integer() else f"{value:.1f} {_UNITS[unit]}"


def _document(inventory: Inventory) -> dict[str, Any]:
    docker, block = inventory.docker, inventory.data_block_bytes
    pending = inventory.pending
    return {
        "pool": {
            "data_bytes": inventory.nr_data_blocks * block,
            "used_bytes": inventory.nr_used_data_blocks * block,
            "data_block_bytes": block,
            "transaction_id": inventory.superblock.trans_id,
            "needs_check": bool(inventory.superblock.flags & 1),
            "in_use_by": inventory.in_use_by,
        },
        "next_device_id": docker.next_device_id,
        "file_system": docker.file_system,
        "pending_transaction": None
        if pending is None
        else {
            "open_transaction_id": pending.open_transaction_id,
            "device_id": pending.device_id,
            "device_hash": pending.device_hash,
        },
        "devices": [_row(row, block) for row in inventory.rows],
        "containers": [
            {"id": one.id, "name": one.name, "image": one.image, "running": one.running, "device": one.device_hash}
            for one in docker.containers
        ],
        "images": docker.images,
        "problems": list(inventory.problems),
    }


def _row(row: Row, block: int) -> dict[str, Any]:
    record, usage = row.record, row.usage
    return {
        "device_id": row.device_id,
        "kind": row.kind.value,
        "names": list(row.names),
        "hash": record.hash if record else None,
        "size_bytes": row.size_bytes,
        "transaction_id": record.transaction_id if record else None,
        "deleted": record.deleted if record else False,
        "in_pool": usage is not None,
        "used_bytes": usage.mapped_blocks * block if usage else None,
        "exclusive_bytes": usage.exclusive_blocks * block if usage else None,
        "unfinished": row.pending,
    }
