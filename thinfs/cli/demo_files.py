"""How the walkthrough puts files on a volume and reads them: mounted as root, else with debugfs in DIR/NAME.

Promises: two ways with one surface, each line of them narrated. Never: both at once on one volume.
"""

from dataclasses import dataclass
from typing import Protocol

from thinfs.cli.demo_stage import Stage


class Files(Protocol):
    def mount(self, name: str, *, read_only: bool = False) -> None: ...

    def unmount(self, *names: str) -> None: ...

    def freeze(self, name: str) -> None:
        """No write of the file system is under way, until `thaw`: the snapshot is as clean as an unmounted one."""

    def thaw(self, name: str) -> None: ...

    def write(self, name: str, file: str, text: str) -> None: ...

    def append(self, name: str, file: str, text: str) -> None: ...

    def expect(self, name: str, file: str, contents: str) -> None: ...

    def expect_names(self, name: str, files: list[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class MountedFiles:
    """`directories` says where each volume is mounted."""

    stage: Stage
    directories: dict[str, str]

    def mount(self, name: str, *, read_only: bool = False) -> None:
        self.stage.mount(name, self.directories[name], read_only=read_only)

    def unmount(self, *names: str) -> None:
        self.stage.narrator.sh(f"umount {' '.join(self.directories[name] for name in names)}")

    def freeze(self, name: str) -> None:
        self.stage.narrator.sh(f"fsfreeze -f {self.directories[name]}")

    def thaw(self, name: str) -> None:
        self.stage.narrator.sh(f"fsfreeze -u {self.directories[name]}")

    def write(self, name: str, file: str, text: str) -> None:
        self.stage.narrator.sh(f'echo "{text}" > {self.directories[name]}/{file}; sync')

    def append(self, name: str, file: str, text: str) -> None:
        self.stage.narrator.sh(f'echo "{text}" >> {self.directories[name]}/{file}; sync')

    def expect(self, name: str, file: str, contents: str) -> None:
        self.stage.narrator.sh(f"cat {self.directories[name]}/{file}", prints=contents)

    def expect_names(self, name: str, files: list[str]) -> None:
        got = self.stage.narrator.sh(f"ls {self.directories[name]}").text.split()
        self.stage.narrator.check(f"files of {name}", sorted(got), files)


@dataclass(frozen=True, slots=True)
class DebugfsFiles:
    """Nothing is mounted, so nothing is frozen either: debugfs has closed the image when it ends."""

    stage: Stage

    def mount(self, name: str, *, read_only: bool = False) -> None:
        return

    def unmount(self, *names: str) -> None:
        return

    def freeze(self, name: str) -> None:
        return

    def thaw(self, name: str) -> None:
        return

    def write(self, name: str, file: str, text: str) -> None:
        self.stage.narrator.sh(f'echo "{text}" > {file}')
        self._debugfs(name, f"write {file} {file}", write=True)

    def append(self, name: str, file: str, text: str) -> None:
        self._debugfs(name, f"dump {file} {file}")
        self.stage.narrator.sh(f'echo "{text}" >> {file}')
        self._debugfs(name, f"rm {file}", write=True)
        self._debugfs(name, f"write {file} {file}", write=True)

    def expect(self, name: str, file: str, contents: str) -> None:
        self._debugfs(name, f"cat {file}", prints=contents)

    def expect_names(self, name: str, files: list[str]) -> None:
        listed = self._debugfs(name, "ls -p").splitlines()
        names = {line.split("/")[5] for line in listed if line.startswith("/")} - {".", ".."}
        self.stage.narrator.check(f"files of {name}", sorted(names), files)

    def _debugfs(self, name: str, request: str, *, write: bool = False, prints: str | None = None) -> str:
        """debugfs greets on standard error; what went wrong shows in what is read afterwards."""
        flags = "-w -R" if write else "-R"
        line = f'debugfs {flags} "{request}" {self.stage.mount_dir / name} 2>/dev/null'
        return self.stage.narrator.sh(line, prints=prints).text
