"""`thinfs lvm IMAGE… COMMAND`: the volumes on LVM disks without LVM, without root, without a write to the disks.

Promises: the disks are opened for reading only; each refusal is one line, exit status 1; `check` exits 1 if anything is
damaged, missing or in doubt. `--json` is one document with the same facts.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeAlias

from thinfs.cli.docker import size_text
from thinfs.errors import InvalidArgument, NotSupported, ThinfsError
from thinfs.lvm.export import export_to_file, export_to_stream
from thinfs.lvm.listing import PoolRow, VolumeRow, pool_rows, volume_rows
from thinfs.lvm.opening import open_volumes
from thinfs.lvm.volumes import Volumes
from thinfs.plain_text import plain

_LINES_SHOWN: Final = 20


def main(arguments: Sequence[str]) -> int:
    images, words = _split(arguments)
    options = _parser().parse_args(words)
    options.images = images
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        if not images and options.command != "umount":
            raise InvalidArgument("no IMAGE before it")
        return run(options)
    except ThinfsError as error:
        print(plain(f"thinfs lvm {options.command}: {error}"), file=sys.stderr)
    return 1


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The images, and the words from the command on. An image that is called as a command is given as ./list."""
    for i, word in enumerate(arguments):
        if word in COMMANDS or word in ("-h", "--help"):
            return list(arguments[:i]), list(arguments[i:])
    return [], list(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thinfs lvm IMAGE…",
        description="The volumes on LVM disks: raw images, partitions or block devices; all disks of a group at once.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, does, add) in COMMANDS.items():
        one = commands.add_parser(name, help=does, description=does, allow_abbrev=False)
        one.set_defaults(run=run)
        add(one)
    return parser


# -- list


def _list_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("--all", action="store_true", help="also the parts of pools and of other volumes")
    one.add_argument("--json", action="store_true", help="one JSON document")


def _list(options: argparse.Namespace) -> int:
    with open_volumes(options.images, live=True) as (volumes, in_use):
        pools, rows = list(pool_rows(volumes)), list(volume_rows(volumes))
        if options.json:
            print(json.dumps(_document(volumes, pools, rows, in_use), indent=2))
        else:
            rows = [row for row in rows if row.visible or options.all]
            lines = [*_disk_lines(volumes), *_group_lines(volumes, pools), *_table(rows)]
            print("\n".join(map(plain, [*lines, *_notes(volumes, pools, rows, in_use)])))
        found = bool(volumes.disks.groups)
    if not found and not options.json:
        raise InvalidArgument("no volume group on " + ", ".join(options.images))
    return 0


def _disk_lines(volumes: Volumes) -> Iterable[str]:
    for disk in volumes.disks.disks:
        table = disk.table
        nr = f", {len(table.partitions)} partitions" if table.partitions else ""
        kind = "no partition table" if table.kind == "none" else table.kind
        yield f"{disk.label}: {size_text(disk.size_bytes)}, {kind}{nr}"
        for place in disk.places:
            what = f"PV {place.pv.uuid}" if place.pv is not None else place.contents
            yield f"  {place.label}: {size_text(place.size_bytes)}, {what}"


def _group_lines(volumes: Volumes, pools: Iterable[PoolRow]) -> Iterable[str]:
    for group in volumes.disks.groups:
        vg = group.vg
        words = [f"VG {vg.name} ({vg.uuid}): seqno {vg.seqno}, extents of {size_text(vg.extent_bytes)}"]
        words.append(f"{len(group.pvs)} of {len(vg.pvs)} PVs")
        words += ["exported"] * vg.exported + [f"of system {vg.system_id!r}"] * bool(vg.system_id)
        yield ", ".join(words)
    for pool in pools:
        used = "not opened" if pool.used_bytes is None else f"{size_text(pool.used_bytes)} used"
        yield (
            f"pool {pool.name}: {used} of {size_text(pool.size_bytes)}, blocks of {size_text(pool.block_bytes)}, "
            f"transaction {pool.transaction_id}" + ", needs_check" * pool.needs_check
        )


def _table(rows: Sequence[VolumeRow]) -> Iterable[str]:
    if not rows:
        return
    table = [("VOLUME", "TYPE", "SIZE", "USED", "ACCESS", "CONTENTS")]
    for row in rows:
        used = "-" if row.used_bytes is None else size_text(row.used_bytes)
        contents = "-" if row.contents is None else row.contents
        if row.why_not is not None:
            contents = "cannot be opened"
        table.append((row.name, row.kind, size_text(row.size_bytes), used, "ro" if row.read_only else "rw", contents))
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    for line in table:
        cells = [
            cell.rjust(width) if i in (2, 3) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line[:5], widths, strict=True))
        ]
        yield "  ".join([*cells, line[5]]).rstrip()


def _notes(
    volumes: Volumes, pools: Iterable[PoolRow], rows: Iterable[VolumeRow], in_use: Iterable[str]
) -> Iterable[str]:
    said = dict.fromkeys(
        [
            *in_use,
            *volumes.disks.problems,
            *(pool.why_not for pool in pools if pool.why_not),
            *(note for pool in pools for note in pool.notes),
            *(row.why_not for row in rows if row.why_not),
        ]
    )
    yield from (f"problem: {line}" for line in said)


def _document(
    volumes: Volumes, pools: Iterable[PoolRow], rows: Iterable[VolumeRow], in_use: Sequence[str]
) -> dict[str, Any]:
    return {
        "disks": [
            {
                "path": disk.label,
                "size_bytes": disk.size_bytes,
                "partition_table": disk.table.kind,
                "places": [
                    {
                        "name": place.label,
                        "size_bytes": place.size_bytes,
                        "pv": place.pv.uuid if place.pv is not None else None,
                        "contents": place.contents,
                    }
                    for place in disk.places
                ],
            }
            for disk in volumes.disks.disks
        ],
        "groups": [
            {
                "name": group.vg.name,
                "uuid": group.vg.uuid,
                "seqno": group.vg.seqno,
                "extent_bytes": group.vg.extent_bytes,
                "exported": group.vg.exported,
                "system_id": group.vg.system_id,
                "pvs": {name: entry.uuid for name, entry in group.vg.pvs.items()},
                "lost": group.lost,
            }
            for group in volumes.disks.groups
        ],
        "pools": [asdict(pool) for pool in pools],
        "volumes": [asdict(row) for row in rows],
        "in_use": list(in_use),
        "problems": list(volumes.disks.problems),
    }


# -- check


def _no_options(_one: argparse.ArgumentParser) -> None:
    return


def _check(options: argparse.Namespace) -> int:
    with open_volumes(options.images) as (volumes, _):
        wrong = list(dict.fromkeys(_wrong(volumes)))
        if not volumes.disks.groups and not wrong:
            wrong = ["no volume group on " + ", ".join(options.images)]
    for line in wrong:
        print(plain(f"thinfs lvm check: {line}"), file=sys.stderr)
    return 1 if wrong else 0


def _wrong(volumes: Volumes) -> Iterable[str]:
    """What is sound is said at once, what is wrong is left to the caller."""
    yield from volumes.disks.problems
    for volume in volumes:
        try:
            if volume.lv.pool is not None:
                pool = volumes.pool_of(volume)
                yield from pool.doubts
                verdict = pool.check()
                yield from (f"pool {pool.name}: {line}" for line in verdict.damages[:_LINES_SHOWN])
                if len(verdict.damages) > _LINES_SHOWN:
                    yield f"pool {pool.name}: and {len(verdict.damages) - _LINES_SHOWN} more"
                if not verdict.damages:
                    leaked = f", {len(verdict.leaks)} blocks leaked" if verdict.leaks else ""
                    print(f"{volume.label}: sound, transaction {pool.superblock.trans_id}{leaked}")
            else:
                volumes.open_verified(volume)
                print(f"{volume.label}: sound")
        except NotSupported as error:
            print(plain(f"{volume.label}: not read: {error}"))
        except ThinfsError as error:
            yield str(error)


# -- serve


def _serve_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("volumes", metavar="VOLUME", nargs="*", help="VG/LV, or LV alone (default: all)")
    one.add_argument("--mount", metavar="DIR", help="where the volumes are files (default: as of `thinfs serve`)")
    writable = one.add_mutually_exclusive_group()
    writable.add_argument("--overlay", metavar="FILE", help="writable: what is written goes into FILE, which is made")
    writable.add_argument("--rw", action="store_true", help="writable: to the disks themselves, where that is safe")
    one.add_argument("--files-only", action="store_true", help="no loop devices and links in /dev/mapper, as root too")
    one.add_argument("--foreground", action="store_true", help="stay here, log to standard error")


def _serve(options: argparse.Namespace) -> int:
    from thinfs.cli.lvm_serve import serve

    return serve(options)


# -- mount


def _mount_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("volume", metavar="VOLUME", help="VG/LV, or LV where that is one volume's name")
    one.add_argument("mountpoint", metavar="MOUNTPOINT")
    writable = one.add_mutually_exclusive_group()
    writable.add_argument("--overlay", metavar="FILE", help="writable: what is written goes into FILE, which is made")
    writable.add_argument("--rw", action="store_true", help="writable: to the disks themselves, where that is safe")


def _mount(options: argparse.Namespace) -> int:
    from thinfs.cli.lvm_mount import mount

    print(plain(mount(options.images, options.volume, options.mountpoint, options.overlay, writable=options.rw)))
    return 0


def _umount_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("mountpoint", metavar="MOUNTPOINT")


def _umount(options: argparse.Namespace) -> int:
    from thinfs.cli.lvm_mount import unmount

    print(plain(unmount(options.mountpoint)))
    return 0


# -- export


def _export_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("volume", metavar="VOLUME", help="VG/LV, or LV where that is one volume's name")
    one.add_argument("file", metavar="FILE", help="to be made; - is standard output")
    one.add_argument("--force", action="store_true", help="replace FILE if it exists")


def _export(options: argparse.Namespace) -> int:
    with open_volumes(options.images) as (volumes, _):
        volume = volumes.find(options.volume)
        readable = volumes.open_verified(volume)
        if options.file == "-":
            export_to_stream(readable, sys.stdout.buffer)
            return 0
        never = frozenset((info.st_dev, info.st_ino) for info in map(os.stat, options.images))
        written = export_to_file(readable, options.file, overwrite=options.force, never=never)
    print(plain(f"{volume.label}: {readable.size_bytes} bytes in {options.file}, {written} of them no hole"))
    return 0


Run: TypeAlias = Callable[[argparse.Namespace], int]
COMMANDS: Final[dict[str, tuple[Run, str, Callable[[argparse.ArgumentParser], None]]]] = {
    "list": (_list, "disks, groups, pools and volumes, what is in them, and what cannot be opened", _list_options),
    "check": (_check, "everything that can be checked without a write: labels, texts, pools, volumes", _no_options),
    "serve": (_serve, "the volumes as files, read-only; `thinfs stop` ends it", _serve_options),
    "mount": (_mount, "mount the file system of a volume, as `serve` serves it", _mount_options),
    "umount": (_umount, "unmount it, and end its server; takes no IMAGE", _umount_options),
    "export": (_export, "copy a volume to a sparse file", _export_options),
}
