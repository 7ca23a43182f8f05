"""The kit for other people's tests: pools, volumes and a `dmsetup` as pytest fixtures, and disks that fail to order.

Who depends on thinfs has the fixtures of `plugin`; `disk.Disk` is what its pools stand on.
"""
