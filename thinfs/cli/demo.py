"""`thinfs demo`: from an empty file to a snapshot that leaves its origin alone, with the commands of dm-thin.

Promises: every line shown is the line that was run, with the drop-in as `dmsetup`; exit status 0 only if each
answered what it ought to, the metadata passes thin_check, and nothing is left behind. As root it plays on loop
devices and mounts; otherwise on the files themselves, with debugfs. Never: touches a server that ran before.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from thinfs.cli import demo_docker
from thinfs.cli.demo_files import DebugfsFiles, Files, MountedFiles
from thinfs.cli.demo_stage import Stage
from thinfs.cli.narration import complain
from thinfs.errors import InvalidArgument, ThinfsError

POOL = "hchen-thin-pool"
BASE = "hchen-thin-volumn-001"
SNAPSHOT = "mysnap1"

_BASE_TEXT = "hello world, I am a base"
_SNAPSHOT_TEXT = "hello world, I am snap1"
_ADDED_TEXT = "only in the snapshot"
_METADATA_MAX_BYTES = 2 << 20


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="thinfs demo", description="The walkthrough, narrated; leaves nothing behind."
    )
    parser.add_argument(
        "--files", action="store_true", help="play on plain files even as root: no loop device, no mount"
    )
    parser.add_argument(
        "--docker", metavar="DIR", type=Path, help="Docker's directory (stop Docker first); it is copied"
    )
    parser.add_argument("--container", metavar="NAME", help="the container to show of it")
    parser.add_argument("--no-docker", action="store_true", help="leave the Docker half out")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep the pools' files in DIR, which must exist")
    options = parser.parse_args(arguments)
    try:
        _refuse_existing(options.keep)
        names = (SNAPSHOT, BASE, POOL, demo_docker.SNAPSHOT, demo_docker.POOL)
        with Stage(below=options.keep, device_names=names) as stage:
            shown = _play(stage, options)
            if options.keep is not None:
                _keep(stage, options.keep)
    except ThinfsError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted; everything it made is removed")
        return 130
    print(f"thinfs demo: shown: {'; '.join(shown)}", flush=True)
    return 0


def _play(stage: Stage, options: argparse.Namespace) -> list[str]:
    as_root = os.geteuid() == 0 and not options.files
    stage.require("dd", "mkfs.ext4", "e2fsck", "debugfs", "thin_check")
    say = stage.narrator.say
    data, metadata = str(stage.directory / "data.img"), str(stage.directory / "meta.data.img")
    if as_root:
        stage.require("losetup", "mount", "umount", "fsfreeze")
    say(f"(in {stage.directory}, THINFS_MOUNT={stage.mount_dir}, dmsetup is thinfs-dmsetup)")

    stage.narrator.heading("A data file of 10 GiB and a metadata file of 1 TiB, both sparse")
    stage.narrator.sh("dd if=/dev/zero of=data.img bs=1K count=1 seek=10M")
    stage.narrator.sh("dd if=/dev/zero of=meta.data.img bs=1K count=1 seek=1G")
    if as_root:
        loops = [stage.attach("data.img", 2015), stage.attach("meta.data.img", 2016)]
        if loops[0] is None or loops[1] is None:
            as_root = False
            say("(no loop devices on this machine: playing on the files themselves)")
        else:
            data, metadata = loops[0], loops[1]
    stage.start_server()

    shown = [_walk(stage, data, metadata, as_root=as_root)]
    docker = options.docker or demo_docker.carried_pool()
    if options.no_docker:
        pass
    elif docker is None:
        say("(the Docker half needs --docker DIR: this installation carries no pool of Docker's)")
    else:
        shown.append(demo_docker.show_container(stage, docker.absolute(), options.container, as_root=as_root))

    stage.narrator.heading("The end: what is left on disk is the kernel's format")
    stage.stop_server()
    if as_root:
        stage.narrator.sh(f"losetup -d {data} {metadata}")
    stage.narrator.sh("thin_check meta.data.img")
    allocated = (stage.directory / "meta.data.img").stat().st_blocks * 512
    say(f"(meta.data.img: {1 << 40} bytes and 1 KiB long, {allocated} bytes allocated)")
    stage.narrator.check(f"allocated to the metadata, {allocated}, below 2 MiB", allocated < _METADATA_MAX_BYTES, True)
    return shown


def _walk(stage: Stage, data: str, metadata: str, *, as_root: bool) -> str:
    narrator = stage.narrator
    sh = narrator.sh
    files: Files = MountedFiles(stage, {BASE: "base", SNAPSHOT: "snap1"}) if as_root else DebugfsFiles(stage)
    create_pool = (
        f'dmsetup create {POOL} --table "0 20971522 thin-pool {metadata} {data} 128 65536 1 skip_block_zeroing"'
    )
    create_base = f'dmsetup create {BASE} --table "0 2097152 thin /dev/mapper/{POOL} 0"'
    create_snapshot = f'dmsetup create {SNAPSHOT} --table "0 2097152 thin /dev/mapper/{POOL} 1"'

    narrator.heading("A pool and a thin volume")
    sh(create_pool)
    sh(f'dmsetup message /dev/mapper/{POOL} 0 "create_thin 0"')
    sh(create_base)
    sh("dmsetup ls")
    sh(f"mkfs.ext4 {stage.device(BASE, as_root=as_root)}")
    files.mount(BASE)
    files.write(BASE, "id.txt", _BASE_TEXT)
    files.expect(BASE, "id.txt", f"{_BASE_TEXT}\n")

    narrator.heading("A snapshot of the volume in use: no I/O while it is taken")
    files.freeze(BASE)
    sh(f"dmsetup suspend {BASE}")
    sh(f'dmsetup message /dev/mapper/{POOL} 0 "create_snap 1 0"')
    sh(f"dmsetup resume {BASE}")
    files.thaw(BASE)
    sh(create_snapshot)

    narrator.heading("The snapshot changes, the base does not")
    files.mount(SNAPSHOT)
    files.expect(SNAPSHOT, "id.txt", f"{_BASE_TEXT}\n")
    files.append(SNAPSHOT, "id.txt", _SNAPSHOT_TEXT)
    files.write(SNAPSHOT, "snap1.txt", _ADDED_TEXT)
    _compare(files)
    files.unmount(BASE, SNAPSHOT)

    narrator.heading("The same from the pool opened again, and how long that takes")
    sh(" && ".join(f"e2fsck -fn {stage.device(name, as_root=as_root)}" for name in (BASE, SNAPSHOT)))
    before = sh("dmsetup status").text
    _remove(stage)
    sh("dmsetup ls", prints="No devices found\n")
    seconds = sh(create_pool).seconds
    narrator.say(f"(opened in {seconds * 1000:.0f} ms, the start of dmsetup included)")
    sh(create_base)
    sh(create_snapshot)
    after = sh("dmsetup status").text
    narrator.check("status of the pool opened again", sorted(after.splitlines()), sorted(before.splitlines()))
    files.mount(BASE, read_only=True)
    files.mount(SNAPSHOT, read_only=True)
    _compare(files)
    files.unmount(BASE, SNAPSHOT)
    _remove(stage)
    return "a thin volume and its snapshot, which changed while the base did not, on 10 GiB with 1 TiB of metadata"


def _compare(files: Files) -> None:
    files.expect(SNAPSHOT, "id.txt", f"{_BASE_TEXT}\n{_SNAPSHOT_TEXT}\n")
    files.expect(SNAPSHOT, "snap1.txt", f"{_ADDED_TEXT}\n")
    files.expect_names(SNAPSHOT, ["id.txt", "lost+found", "snap1.txt"])
    files.expect(BASE, "id.txt", f"{_BASE_TEXT}\n")
    files.expect_names(BASE, ["id.txt", "lost+found"])


def _remove(stage: Stage) -> None:
    for name in (SNAPSHOT, BASE, POOL):
        stage.narrator.sh(f"dmsetup remove {name}")


def _refuse_existing(keep: Path | None) -> None:
    if keep is None:
        return
    for name in ("data.img", "meta.data.img", "docker"):
        if (keep / name).exists():
            raise InvalidArgument(f"--keep {keep}: {name} is there already")
    if not keep.is_dir():
        raise InvalidArgument(f"--keep {keep}: not a directory")


def _keep(stage: Stage, keep: Path) -> None:
    """The temporary directory was made below `keep`: a rename within one file system."""
    for name in ("data.img", "meta.data.img"):
        (stage.directory / name).rename(keep / name)
    docker = stage.directory / "docker/devicemapper/devicemapper"
    if docker.exists():
        docker.rename(keep / "docker")
    stage.narrator.say(f"(kept in {keep}: data.img, meta.data.img{', docker/' if docker else ''})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
