"""The Docker half of the walkthrough: a container's files out of a pool that Docker made, through a snapshot.

Promises: Docker's directory is copied first and never written; the container's device and size come from Docker's
own JSON; where a manifest stands beside the pool (`manifest-NAME.tsv`) every file is compared with it. A directory
is either Docker's own (devicemapper/, image/, containers/) or holds that as `clean.tar.xz`.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path

from thinfs.cli.demo_stage import Stage
from thinfs.cli.narration import StepFailed
from thinfs.cli.tree_listing import differences, list_directory, list_ext4, read_manifest
from thinfs.docker.directory import read_docker_directory
from thinfs.docker.pool import find_device
from thinfs.errors import BackingMissing
from thinfs.units import bytes_to_sectors

POOL = "docker-pool"
SNAPSHOT = "docker-snapshot"
SNAPSHOT_DEVICE_ID = 1024

_ARCHIVE = "clean.tar.xz"


@dataclass(frozen=True, slots=True)
class Container:
    name: str
    device_id: int
    size_sectors: int


def carried_pool() -> Path | None:
    """The pool in the project's tests; a wheel has none."""
    path = Path(__file__).resolve().parents[2] / "tests" / "data" / "docker-ext4-clean"
    return path if (path / _ARCHIVE).exists() else None


def find_container(docker: Path, name: str | None) -> Container:
    """The first by name if None."""
    directory = read_docker_directory(docker)
    if name is None:
        if not directory.containers:
            raise BackingMissing(f"{docker}: holds no containers/*/config.v2.json")
        name = min(container.name for container in directory.containers)
    record = find_device(directory, name)
    return Container(name, record.device_id, bytes_to_sectors(record.size_bytes))


def unpack(pool: Path, directory: Path) -> None:
    """The archive of a carried pool."""
    with tarfile.open(pool / _ARCHIVE) as archive:
        if hasattr(tarfile, "data_filter"):  # not in every 3.11
            archive.extractall(directory, filter="data")
        else:
            archive.extractall(directory)


def copy_docker_directory(stage: Stage, source: Path) -> Path:
    """A copy below the stage, sparse where the original is."""
    copy = stage.directory / "docker"
    if (source / _ARCHIVE).exists():
        stage.narrator.say(f"(unpacking {source / _ARCHIVE} to {copy})")
        unpack(source, copy)
    elif (source / "devicemapper/devicemapper/metadata").exists():
        for part in ("devicemapper/devicemapper", "devicemapper/metadata", "image", "containers"):
            (copy / part).parent.mkdir(parents=True, exist_ok=True)
            stage.narrator.sh(f"cp -r --sparse=always --reflink=auto '{source / part}' '{copy / part}'")
    else:
        raise BackingMissing(
            f"{source}: neither Docker's directory (devicemapper/devicemapper/metadata) nor {_ARCHIVE}"
        )
    return copy


def show_container(stage: Stage, source: Path, name: str | None, *, as_root: bool) -> str:
    """Returns what was shown, for the closing line."""
    narrator = stage.narrator
    if name is None and (source / "manifest-c2.tsv").exists():
        name = "c2"
    narrator.heading("Docker: a container out of the pool of its devicemapper storage driver")
    docker = copy_docker_directory(stage, source)
    container = find_container(docker, name)
    narrator.say(
        f"(Docker's JSON: container {container.name} is device {container.device_id}, {container.size_sectors} sectors)"
    )

    pool_files = docker / "devicemapper/devicemapper"
    pool_sectors = bytes_to_sectors((pool_files / "data").stat().st_size)
    narrator.sh(
        f'dmsetup create {POOL} --table "0 {pool_sectors} thin-pool {pool_files}/metadata {pool_files}/data'
        ' 128 32768 1 skip_block_zeroing"'
    )
    narrator.sh(f'dmsetup message /dev/mapper/{POOL} 0 "create_snap {SNAPSHOT_DEVICE_ID} {container.device_id}"')
    narrator.sh(
        f'dmsetup create {SNAPSHOT} --table "0 {container.size_sectors} thin /dev/mapper/{POOL} {SNAPSHOT_DEVICE_ID}"'
    )
    if as_root:
        stage.mount(SNAPSHOT, "container")
        narrator.sh("ls container/rootfs")
        tree = list_directory(stage.directory / "container/rootfs")
        narrator.sh("umount container")
    else:
        image = stage.mount_dir / SNAPSHOT
        narrator.sh(f'debugfs -R "ls -p /rootfs" {image}')
        tree = list_ext4(image, "/rootfs")

    manifest_file = source / f"manifest-{container.name}.tsv"
    if manifest_file.exists():
        with manifest_file.open(encoding="utf-8") as lines:
            manifest = read_manifest(lines)
        found = differences(manifest, tree)
        narrator.say(f"(compared {len(manifest)} files with {manifest_file.name}: {len(found)} differences)")
        for difference in found:
            narrator.say(f"  {difference}")
        if found:
            raise StepFailed(f"container {container.name}: {len(found)} of {len(manifest)} files differ")
        shown = f"all {len(manifest)} files of Docker's container {container.name} as its manifest says"
    else:
        narrator.say(f"(no {manifest_file.name} in {source} to compare with)")
        shown = f"{len(tree)} files of Docker's container {container.name}"

    narrator.sh(f"dmsetup remove {SNAPSHOT}")
    narrator.sh(f"dmsetup remove {POOL}")
    narrator.sh(f"thin_check {pool_files}/metadata")
    return shown
