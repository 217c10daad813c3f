"""What runs report of themselves: every name in one table, with its unit and its meaning.

    MetricsLog (training/log/run_log.py) -> JSON lines and TensorBoard, by `field`
                                     -> gauges of Prometheus, by `name`: training/worker/on_worker.py
    receipts of finished shards (driver) -> counters by pipelines/engine/counters.py

Ray exports a name as `ray_<name>` on each node's metrics port. infra/dashboards/ draws them and docs/metrics.md lists
them; tests compare both with this table. This module imports no ray: the code that reports is elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CAUSES = ("start", "compile", "data_wait", "save", "restart")
"""Causes of time that did not go into steps that count (training/log/goodput.py)."""
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One name."""

    name: str
    """Name in Prometheus, without Ray's prefix `ray_`."""
    kind: Literal["gauge", "counter"] = "gauge"
    unit: str
    help: str
    """Meaning, in a few words."""
    labels: tuple[str, ...] = ("run",)
    """Labels in Prometheus."""
    field: str = ""
    """Name in the JSON lines of a training run and in TensorBoard; empty for metrics of other stages."""
    values: tuple[str, ...] = ()
    """Values of the last label; each has a field of its own, <field>_<value>."""

    @property
    def fields(self) -> Mapping[str, Mapping[str, str]]:
        """Its fields, each with its labels other than the run's."""
        if not self.field:
            return {}
        if not self.values:
            return {self.field: {}}
        return {f"{self.field}_{value}": {self.labels[-1]: value} for value in self.values}


METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="gemma2_train_step", field="step", unit="steps", help="newest finished step, counted from 1"),
        Metric(name="gemma2_train_steps_wanted", field="steps_wanted", unit="steps", help="steps of the whole run"),
        Metric(
            name="gemma2_train_loss",
            field="loss",
            unit="nats a target",
            help="mean loss of the newest step's targets; in distillation, cross-entropy to the teacher",
        ),
        Metric(name="gemma2_train_tokens_seen", field="tokens_seen", unit="tokens", help="targets of all steps so far"),
        Metric(
            name="gemma2_train_tokens_per_second",
            field="tokens_per_second",
            unit="tokens/s",
            help="tokens of all workers' rows, with padding, per second of step and data wait",
        ),
        Metric(
            name="gemma2_train_model_flops_per_second",
            field="model_flops_per_second",
            unit="operations/s",
            help="operations that the model needs for those tokens, without recomputation",
        ),
        Metric(
            name="gemma2_train_mfu_fraction",
            field="mfu",
            unit="fraction",
            help="model operations over the dense bfloat16 peak of all chips of the run",
        ),
        Metric(
            name="gemma2_train_step_seconds",
            field="step_seconds",
            unit="s",
            help="newest step, without data wait and saving",
        ),
        Metric(
            name="gemma2_train_step_seconds_percentile",
            field="step_seconds",
            unit="s",
            help="the same over the last 500 steps that neither compiled nor were repeated",
            labels=("run", "percentile"),
            values=tuple(f"p{percent}" for percent in PERCENTILES),
        ),
        Metric(
            name="gemma2_train_data_wait_seconds",
            field="data_wait_seconds",
            unit="s",
            help="wait of the newest step for its rows, on the first worker",
        ),
        Metric(
            name="gemma2_train_data_wait_fraction",
            field="data_wait_share",
            unit="fraction",
            help="data wait over data wait and steps, for the same 500 steps",
        ),
        Metric(
            name="gemma2_train_grad_norm",
            field="grad_norm",
            unit="nats a target",
            help="L2 norm of the newest step's mean gradient, before clipping",
        ),
        Metric(
            name="gemma2_train_learning_rate", field="learning_rate", unit="1", help="learning rate of the newest step"
        ),
        Metric(
            name="gemma2_train_goodput_fraction",
            field="goodput",
            unit="fraction",
            help="share of the run's time that went into steps that count",
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
            help="the run's time that did not go into steps that count, by cause",
            labels=("run", "cause"),
            values=CAUSES,
        ),
        Metric(
            name="gemma2_train_peak_host_bytes",
            field="peak_host_bytes",
            unit="bytes",
            help="peak memory of the first worker's process on its host",
        ),
        Metric(
            name="gemma2_train_peak_device_bytes",
            field="peak_device_bytes",
            unit="bytes",
            help="peak memory of the first worker on its chip",
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
            help="bytes of finished shards, by dataset",
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
"""Fields that a training run reports."""
