"""A campaign on many workers: Dask distributed, a cluster of its own on this machine or any by its address.

Promises: seeds of two tasks never meet; a worker's death is a finding with its task, never a second try.
"""

# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import dask
from distributed import Client, LocalCluster, as_completed

from . import campaign
from .campaign import Outcome
from .hunt import Finding, Task

_SETTINGS = {"distributed.scheduler.allowed-failures": 0, "distributed.scheduler.work-stealing": False}


def run_task(task: Task) -> Outcome:
    """In a worker. It starts a process: a history may end its process, and not the worker."""
    return campaign.run(task)


def run(
    task: Task,
    nr_workers: int,
    scheduler: str | None,
    task_seconds: float,
    on_finding: Callable[[Finding], None],
) -> Outcome:
    """`task.seconds` of every worker's time, in pieces of `task_seconds`."""
    total = Outcome()
    pieces = (
        replace(task, first_seed=task.first_seed + number * task.nr_seeds, seconds=min(task_seconds, task.seconds))
        for number in count()
    )
    with dask.config.set(_SETTINGS):
        cluster: Any = scheduler
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=nr_workers, threads_per_worker=1, resources={"kernel": 1}, dashboard_address=None
            )
        try:
            with Client(cluster) as client:
                workers = max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)
                rounds = max(1, round(task.seconds / task_seconds)) if task.nr_seeds > 1 else 1
                tasks = [next(pieces) for _ in range(workers * rounds if task.nr_seeds > 1 else 1)]
                futures = {
                    client.submit(run_task, each, resources={"kernel": 1}, retries=0, pure=False): each
                    for each in tasks
                }
                for future in as_completed(list(futures)):
                    _take(total, future, futures[future], on_finding)
        finally:
            if scheduler is None:
                cluster.close()
    return total


def _take(total: Outcome, future: Any, task: Task, on_finding: Callable[[Finding], None]) -> None:
    error = future.exception()
    if error is None:
        outcome = future.result()
    else:
        why = f"a worker died or its task failed: {type(error).__name__}: {error}".splitlines()[0]
        outcome = Outcome(findings=[Finding("any", task.first_seed, ",".join(task.kernels), [why])])
    for finding in outcome.findings:
        on_finding(finding)
    total.add(outcome)
    print(
        f"task from seed {task.first_seed}: {outcome.sequences} sequences, {len(outcome.findings)} findings", flush=True
    )
