"""Docker's JSON and records with hostile values in any place of them: `thinfs docker` says one line, or lists on.

Promises: each input is one changed file of a carried directory; status 0 or 1, no exception that comes out, nothing
printed that a terminal would obey, and the pool's metadata untouched by what only reads.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.inputs import Inputs, Result
from thinfs.cli.demo_docker import carried_pool, unpack
from thinfs.cli.docker import main
from thinfs.plain_text import plain

PATTERNS = (
    "devicemapper/metadata/*",
    "containers/*/config.v2.json",
    "image/devicemapper/repositories.json",
    "image/devicemapper/imagedb/content/sha256/*",
    "image/devicemapper/layerdb/mounts/*/mount-id",
    "image/devicemapper/layerdb/sha256/*/cache-id",
)
COMMANDS = (["list"], ["list", "--json"], ["snapshot", "NOTHING"], ["remove", "4711"])


def unpacked(directory: Path) -> Path:
    """A copy whose data file is a hole."""
    pool = carried_pool()
    assert pool is not None
    unpack(pool, directory)
    data = directory / "devicemapper/devicemapper/data"
    size = data.stat().st_size
    with data.open("wb") as file:
        file.truncate(size)
    return directory


def _bend(value: Any, inputs: Inputs, depth: int = 0) -> Any:
    """The same with one thing in it changed."""
    chance = inputs.random
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: _bend(value[key], inputs, depth + 1)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], _bend(value[at], inputs, depth + 1), *value[at + 1 :]]
    return inputs.anything()


def _changed(data: bytes, inputs: Inputs) -> bytes:
    chance = inputs.random
    if chance.random() < 0.25:
        bent = bytearray(data)
        for _ in range(chance.randrange(1, 5)):
            if bent:
                bent[chance.randrange(len(bent))] = chance.randrange(256)
        return bytes(bent[: chance.choice((len(bent), chance.randrange(len(bent) + 1)))])
    try:
        return json.dumps(_bend(json.loads(data), inputs)).encode("ascii")
    except ValueError:  # a file of one name
        return inputs.word().encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def _with(path: Path, data: bytes) -> Iterator[None]:
    old = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(old)


def run(seeds: range, directory: Path) -> Result:
    docker, result = unpacked(directory), Result()
    metadata = docker / "devicemapper/devicemapper/metadata"
    before = metadata.read_bytes()
    for seed in seeds:
        inputs = Inputs(seed, ())
        chance: Random = inputs.random
        path = chance.choice(sorted(found for found in docker.glob(chance.choice(PATTERNS)) if found.is_file()))
        data = _changed(path.read_bytes(), inputs)
        result.nr_inputs += 1
        with _with(path, data):
            for command, *words in COMMANDS:
                outcome = _one(
                    [command, *(words[:1] if command == "list" else []), str(docker), *words[command == "list" :]]
                )
                result.outcomes[f"docker {command}: {outcome}"] += 1
                if outcome not in ("0", "1"):
                    result.failures.append((outcome, f"seed {seed}: {path.relative_to(docker)}: {data[:300]!r}"))
        if metadata.read_bytes() != before:
            result.failures.append(("the pool's metadata has changed", f"seed {seed}"))
            metadata.write_bytes(before)
    shutil.rmtree(docker)
    return result


def _one(words: list[str]) -> str:
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]
    for line in (out.getvalue() + err.getvalue()).split("\n"):
        if line != plain(line):
            return f"printed {line[:80]!r}"
    return str(status)
