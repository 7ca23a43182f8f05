"""What a directory tree holds, file by file, in the terms of a tar archive; read from a mount or from an ext4 image.

Promises: every entry with type, mode, owner, size and SHA-256 of its contents or its link target, and which
entries are one file (hard links). A manifest is tab-separated: path, type (d f l p c b s, h for a hard link to an
earlier path), mode in octal, uid, gid, size, digest or target. Never: follows a symbolic link, writes to an image.
"""

import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thinfs.errors import IOFailed

_KINDS = {
    stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l", stat.S_IFIFO: "p",
    stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFSOCK: "s",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int  # 0 but for regular files, as in the manifest
    contents: str  # SHA-256, link target, or "-"
    inode: int = 0  # of a tree; a manifest has none


def read_manifest(lines: Iterable[str]) -> dict[str, Entry]:
    entries = {}
    for line in lines:
        path, kind, mode, uid, gid, size, contents = line.rstrip("\n").split("\t")
        entries[path] = Entry(kind, int(mode, 8), int(uid), int(gid), int(size), contents)
    return entries


def list_directory(top: Path) -> dict[str, Entry]:
    """The tree below a mounted directory."""
    entries = {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = Path(directory, name)
            info = path.lstat()
            kind = _KINDS[stat.S_IFMT(info.st_mode)]
            contents = "-"
            if kind == "f":
                contents = _digest(path)
            elif kind == "l":
                contents = os.readlink(path)
            size = info.st_size if kind == "f" else 0
            key = str(path.relative_to(top))
            entries[key] = Entry(kind, info.st_mode, info.st_uid, info.st_gid, size, contents, info.st_ino)
    return entries


def list_ext4(image: Path, top: str) -> dict[str, Entry]:
    """The tree below `top` of an ext4 in a file that cannot be mounted without root: read with debugfs."""
    found: dict[str, Entry] = {}
    level = [""]
    while level:
        commands = [f'ls -p "{top}/{directory}"' for directory in level]
        level_below = []
        for directory, answer in zip(level, _debugfs(image, commands), strict=True):
            for line in answer:
                # /inode/mode/uid/gid/name/size/ (the size is left out for a directory)
                match = re.fullmatch(r"/(\d+)/(\d+)/(\d+)/(\d+)/([^/]*)/(\d*)/", line)
                if match is None or match[5] in ("", ".", ".."):
                    continue
                path = f"{directory}/{match[5]}".lstrip("/")
                mode = int(match[2], 8)
                kind = _KINDS[stat.S_IFMT(mode)]
                size = int(match[6] or 0) if kind == "f" else 0
                found[path] = Entry(kind, mode, int(match[3]), int(match[4]), size, "-", int(match[1]))
                if kind == "d":
                    level_below.append(path)
        level = level_below
    return _with_contents(image, found)


def _with_contents(image: Path, found: Mapping[str, Entry]) -> dict[str, Entry]:
    contents: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="thinfs-tree-") as scratch:
        inodes = {entry.inode: entry.kind for entry in found.values() if entry.kind in "fl"}
        commands = [
            f"dump <{inode}> {scratch}/{inode}" if kind == "f" else f"stat <{inode}>" for inode, kind in inodes.items()
        ]
        for (inode, kind), answer in zip(inodes.items(), _debugfs(image, commands), strict=True):
            if kind == "f":
                contents[inode] = _digest(Path(scratch, str(inode)))
                continue
            target = re.search(r'^Fast link dest: "(.*)"$', "\n".join(answer), re.MULTILINE)
            if target is None:  # longer than the inode has room for: its target is stored like a file's data
                target_file = Path(scratch, str(inode))
                _debugfs(image, [f"dump <{inode}> {target_file}"])
                contents[inode] = target_file.read_text()
            else:
                contents[inode] = target[1]
    return {
        path: Entry(e.kind, e.mode, e.uid, e.gid, e.size_bytes, contents.get(e.inode, "-"), e.inode)
        for path, e in found.items()
    }


def _debugfs(image: Path, commands: Sequence[str]) -> list[list[str]]:
    """What each command answered, line by line."""
    with tempfile.NamedTemporaryFile("w", prefix="thinfs-debugfs-") as script:
        script.writelines(f"{command}\n" for command in commands)
        script.flush()
        # Debian keeps debugfs where an ordinary user's PATH does not lead.
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        run = subprocess.run(
            ["debugfs", "-f", script.name, str(image)],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    complaints = [line for line in run.stderr.splitlines() if line and not line.startswith("debugfs 1.")]
    if run.returncode != 0 or complaints:
        raise IOFailed(f"debugfs {image}: {(complaints or [f'exit status {run.returncode}'])[0]}")
    answers: list[list[str]] = []
    for line in run.stdout.splitlines():
        if line.startswith("debugfs: "):
            answers.append([])
        elif answers:
            answers[-1].append(line)
    return answers


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(manifest: Mapping[str, Entry], tree: Mapping[str, Entry]) -> list[str]:
    """One line for each entry that is missing, unexpected or not the same."""
    found = [f"{path}: not in the manifest" for path in sorted(tree.keys() - manifest.keys())]
    first_name: dict[int, str] = {}
    for path, wanted in manifest.items():
        got = tree.get(path)
        if got is None:
            found.append(f"{path}: missing")
        elif wanted.kind == "h":
            target = tree.get(wanted.contents)
            if target is None or target.inode != got.inode:
                found.append(f"{path}: not a hard link to {wanted.contents}")
        elif wanted != Entry(got.kind, got.mode, got.uid, got.gid, got.size_bytes, got.contents):
            found.append(f"{path}: {got}, expected {wanted}")
        elif first_name.setdefault(got.inode, path) != path:
            found.append(f"{path}: a hard link to {first_name[got.inode]}, expected a file of its own")
    return found
