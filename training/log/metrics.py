"""What runs tell of themselves: every name in one table, with its unit and what it means.

    MetricsLog (training/log/run_log.py) -> JSON lines and TensorBoard, by `field`
                                     -> gauges of Prometheus, by `name`: training/worker/on_worker.py
    receipts of finished shards (driver) -> counters by pipelines/engine/counters.py

Ray exports a name as `ray_<name>` on each node's metrics port; infra/dashboards/ draws them, docs/metrics.md lists
them, and tests hold both to this table. Pure: who emits is elsewhere, since this module imports no ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CAUSES = ("start", "compile", "data_wait", "save", "restart")
"""what takes time from steps that count (training/log/goodput.py)"""
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One name."""

    name: str
    """in Prometheus, behind Ray's `ray_`"""
    kind: Literal["gauge", "counter"] = "gauge"
    unit: str
    help: str
    """what it says"""
    labels: tuple[str, ...] = ("run",)
    """in Prometheus"""
    field: str = ""
    """in the JSON lines of a training run and in TensorBoard; empty: it is no training run's"""
    values: tuple[str, ...] = ()
    """of the last label; each is a field of its own, <field>_<value>"""

    @property
    def fields(self) -> Mapping[str, Mapping[str, str]]:
        """Its fields, each with the labels that it has beside the run's."""
        if not self.field:
            return {}
        if not self.values:
            return {self.field: {}}
        return {f"{self.field}_{value}": {self.labels[-1]: value} for value in self.values}


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="gemma2_train_step", field="step", unit="steps", help="newest finished step, from 1"),
        Metric(name="gemma2_train_steps_wanted", field="steps_wanted", unit="steps", help="steps of the whole run"),
        Metric(
            name="gemma2_train_loss",
            field="loss",
            unit="nats a target",
            help="mean over the targets of the newest step; of distillation: cross-entropy to the teacher",
        ),
        Metric(name="gemma2_train_tokens_seen", field="tokens_seen", unit="tokens", help="targets of all steps so far"),
        Metric(
            name="gemma2_train_tokens_per_second",
            field="tokens_per_second",
            unit="tokens/s",
            help="tokens of rows, padding included, of all workers, over a step and its wait for data",
        ),
        Metric(
            name="gemma2_train_model_flops_per_second",
            field="model_flops_per_second",
            unit="operations/s",
            help="what the model needs for those tokens, recomputation left out",
        ),
        Metric(
            name="gemma2_train_mfu_fraction",
            field="mfu",
            unit="fraction",
            help="model operations over the dense bfloat16 peak of all chips of the run; absent on a CPU and where the "
            "peak is not known",
        ),
        Metric(
            name="gemma2_train_step_seconds",
            field="step_seconds",
            unit="s",
            help="the newest step, waiting for data and saving left out; on xla the mean of those read back together",
        ),
        Metric(
            name="gemma2_train_step_seconds_percentile",
            field="step_seconds",
            unit="s",
            help="the same over the last 500 steps that neither compiled nor were done again",
            labels=("run", "percentile"),
            values=tuple(f"p{percent}" for percent in PERCENTILES),
        ),
        Metric(
            name="gemma2_train_data_wait_seconds",
            field="data_wait_seconds",
            unit="s",
            help="how long the newest step waited for its rows, on the first worker",
        ),
        Metric(
            name="gemma2_train_data_wait_fraction",
            field="data_wait_share",
            unit="fraction",
            help="waiting for rows over steps and waiting, of the same last 500 steps",
        ),
        Metric(
            name="gemma2_train_grad_norm",
            field="grad_norm",
            unit="nats a target",
            help="L2 norm of the mean gradient of the newest step, before clipping",
        ),
        Metric(
            name="gemma2_train_learning_rate", field="learning_rate", unit="1", help="learning rate of the newest step"
        ),
        Metric(
            name="gemma2_train_goodput_fraction",
            field="goodput",
            unit="fraction",
            help="share of the run's time, all attempts and what lies between them, that went into steps that count",
        ),
        Metric(
            name="gemma2_train_run_seconds",
            field="run_seconds",
            unit="s",
            help="time since the first attempt began",
        ),
        Metric(
            name="gemma2_train_lost_seconds",
            field="lost_seconds",
            unit="s",
            help="what of that time did not go into steps that count, by cause",
            labels=("run", "cause"),
            values=CAUSES,
        ),
        Metric(
            name="gemma2_train_peak_host_bytes",
            field="peak_host_bytes",
            unit="bytes",
            help="most memory that the first worker's process had on its host",
        ),
        Metric(
            name="gemma2_train_peak_device_bytes",
            field="peak_device_bytes",
            unit="bytes",
            help="most memory that the first worker had on its chip; absent on a CPU, and on a mesh of TPU chips, "
            "which torch_xla tells nothing of",
        ),
        Metric(
            name="gemma2_stage_dropped_rows_total",
            kind="counter",
            unit="rows",
            help="rows that stages dropped, by reason",
            labels=("stage", "reason"),
        ),
        Metric(
            name="gemma2_stage_written_bytes_total",
            kind="counter",
            unit="bytes",
            help="finished shards, by dataset (of cache_logits: the cache)",
            labels=("stage", "dataset"),
        ),
        Metric(
            name="gemma2_stage_shards_total",
            kind="counter",
            unit="shards",
            help="shards finished in this run",
            labels=("stage",),
        ),
    )
}

FIELDS = frozenset(field for metric in METRICS.values() for field in metric.fields)
"""what a training run tells"""
