"""What happens to metadata: blocks changed by a seed, with checksums left wrong or made right."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from thinfs.blockdev import FileDevice
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.tools.graph import MappingGraph
from thinfs.tools.nodes import read_block
from thinfs.tools.walk import PoolTrees
from thinfs.units import METADATA_BLOCK_BYTES

Damage = Callable[[FileDevice, PoolTrees, Random], None]


def _rot(device: FileDevice, block_nr: int, random: Random) -> None:
    """One bit, wherever it is."""
    data = bytearray(read_block(device, block_nr))
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    device.write(block_nr * METADATA_BLOCK_BYTES, data)


def _zero(device: FileDevice, block_nr: int) -> None:
    device.write(block_nr * METADATA_BLOCK_BYTES, bytes(METADATA_BLOCK_BYTES))


def _change(device: FileDevice, block_nr: int, change: Callable[[BtreeNode], None]) -> None:
    """With a right checksum."""
    node = BtreeNode.parse(read_block(device, block_nr), block_nr)
    change(node)
    device.write(block_nr * METADATA_BLOCK_BYTES, node.build(block_nr))


def _a_leaf(trees: PoolTrees, random: Random) -> int:
    return random.choice(MappingGraph(trees).leaves)


def _an_internal_node(trees: PoolTrees, random: Random) -> int:
    graph = MappingGraph(trees)
    return random.choice(list(graph.children) or list(graph.leaves))


def rot_in_a_leaf(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    _rot(device, _a_leaf(trees, random), random)


def rot_in_an_internal_node(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    _rot(device, _an_internal_node(trees, random), random)


def zeros_in_a_leaf(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    _zero(device, _a_leaf(trees, random))


def rot_in_the_superblock(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    data = bytearray(read_block(device, SUPERBLOCK_LOCATION))
    data[random.randrange(360)] ^= 1 << random.randrange(8)
    device.write(0, data)


def rot_in_the_details(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    _rot(device, trees.superblock.device_details_root, random)


def rot_in_the_tree_of_devices(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    _rot(device, trees.superblock.data_mapping_root, random)


def rot_in_both_roots(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    _rot(device, trees.superblock.data_mapping_root, random)
    _rot(device, trees.superblock.device_details_root, random)


def rot_in_the_space_maps(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    _rot(device, trees.superblock.data_space_map_root.bitmap_root, random)
    _rot(device, trees.superblock.metadata_space_map_root.bitmap_root, random)


def a_key_out_of_order(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    def change(node: BtreeNode) -> None:
        if node.nr_entries > 1:
            i = random.randrange(1, node.nr_entries)
            node.keys[i] = node.keys[i - 1]
        else:
            node.flags = 3

    _change(device, _a_leaf(trees, random), change)


def a_child_elsewhere(device: FileDevice, trees: PoolTrees, random: Random) -> None:
    def change(node: BtreeNode) -> None:
        i = random.randrange(max(node.nr_entries, 1))
        node.values[i] = random.choice((0, 1, 1 << 40, random.randrange(2048)))

    _change(device, _an_internal_node(trees, random), change)


KINDS: dict[str, Damage] = {
    one.__name__: one
    for one in (
        rot_in_a_leaf, rot_in_an_internal_node, zeros_in_a_leaf, rot_in_the_superblock, rot_in_the_details,
        rot_in_the_tree_of_devices, rot_in_both_roots, rot_in_the_space_maps, a_key_out_of_order, a_child_elsewhere,
    )
}  # fmt: skip


def damaged(pool: Path, target: Path, kind: str, seed: int) -> Path:
    shutil.copy(pool, target)
    device = FileDevice(str(target))
    try:
        superblock = Superblock.parse(read_block(device, SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION)
        KINDS[kind](device, PoolTrees(device, superblock), Random(f"{seed} {kind}"))
    finally:
        device.close()
    return target
