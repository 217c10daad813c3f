"""Counters of data stages for Prometheus: rows that each finished shard dropped and bytes that it wrote.

The driver reports them under the names of `training/log/metrics.py`. Shards that an earlier run finished are not
counted again, because a counter covers the time since its process began.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Any

from data.manifest import Shard
from training.log.metrics import METRICS


def count_shard(stage: str, shards: Mapping[str, tuple[Shard, ...]], dropped: Mapping[str, int]) -> None:
    """Adds one shard's receipt to the counters. Without a running Ray nobody reads them, and ray is not imported."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    _counter("gemma2_stage_shards_total").inc(1, tags={"stage": stage})
    for reason, rows in dropped.items():
        if rows:  # a counter refuses an increment of 0
            _counter("gemma2_stage_dropped_rows_total").inc(rows, tags={"stage": stage, "reason": reason})
    for dataset, written_shards in shards.items():
        if written := sum(shard.bytes for shard in written_shards):
            _counter("gemma2_stage_written_bytes_total").inc(written, tags={"stage": stage, "dataset": dataset})


@functools.cache
def _counter(name: str) -> Any:
    from ray.util.metrics import Counter

    metric = METRICS[name]
    return Counter(metric.name, description=f"{metric.help}; {metric.unit}", tag_keys=metric.labels)
