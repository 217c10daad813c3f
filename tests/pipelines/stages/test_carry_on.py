"""`train_model --from REF@step`: a finished run carried on with another mixture, more steps and a cooldown of its own.

The stage resolves its inputs and makes the job; the loop trains it here, as a worker would, without Ray.
"""

import itertools
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from data.manifest import Dataset
from data.order import Order
from data.tokenizer import Tokenizer, train_tokenizer
from pipelines.checkpoints.loaded import committed_files
from pipelines.engine.resources import Resources
from pipelines.engine.stage import Context, load_stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.stages.train_model import job_of
from tests.programs.cached_runs import SHARDS, VOCAB, publish_run, teacher_config, write_sequences
from tests.programs.in_process import InProcess
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import checkpoint_uri, read_rows
from training.checkpoints.save_load import Checkpoint, load_checkpoint
from training.config import OptimizerConfig
from training.feed import direct_feed
from training.job import TrainJob
from training.loop import run_training
from training.optim import learning_rate
from training.setup import Setup

CARRIED, STEPS, BATCH = 20, 50, 2
FIRST = ("0:a=0.7,b=0.3", "8:a=0.5,b=0.5", "26:a=1.0")
AFTER = "25:a=0.1,b=0.9"

pytestmark = pytest.mark.slow


class Trained:
    """A finished run of train_model."""

    def __init__(
        self, root: Path, tokenizer: Tokenizer, sequences: list[str], carried: str = "", **config: Any
    ) -> None:
        stage = load_stage("train_model")
        self.config = stage.config(
            model=teacher_config(), global_batch=BATCH, checkpoint_every_steps=10, order_seed=3, **config
        )
        given = {"sequences": sequences, **({"from": [carried]} if carried else {})}
        inputs = resolve_inputs(stage, self.config, given, str(root))
        task = Task(stage=stage, config=self.config, inputs=inputs, root=str(root))
        context = Context(
            stage=stage.name,
            directory=task.directory,
            fingerprint=task.fingerprint,
            inputs={name: list(many) for name, many in inputs.items()},
            resources=Resources(device="cpu"),
            attempt="attempt",
            session=InProcess(),
            quiet=True,
        )
        self.job: TrainJob = job_of(context, self.config, Setup(device="cpu"))
        self.reference = f"train_model/{task.fingerprint}"
        self.first_step = run_training(self.job, TorchBackend("cpu"), direct_feed(self.job)).first_step
        files, steps = committed_files(task.directory)
        facts = {"steps": steps, "vocab_size": VOCAB}
        checkpoints = Dataset(shards=files["checkpoints"], facts=facts)
        publish_run(task.directory, "train_model", {"checkpoints": checkpoints}, tokenizer.sha256)

    def rows(self) -> dict[int, list[tuple[str, int, int]]]:
        """(source, shard, row) of each step, out of the run's own record."""
        table = read_rows(self.job.checkpoints_uri, "lineage")
        assert table is not None
        rows_by_step: dict[int, list[tuple[str, int, int]]] = {}
        for record in table.to_pylist():
            rows_by_step.setdefault(record["step"], []).append((record["dataset"], record["shard"], record["row"]))
        return rows_by_step

    def column(self, name: str) -> dict[int, float]:
        table = read_rows(self.job.checkpoints_uri, "metrics")
        assert table is not None
        return dict(zip(table["step"].to_pylist(), table[name].to_pylist(), strict=True))

    def end(self) -> Checkpoint:
        return load_checkpoint(checkpoint_uri(self.job.checkpoints_uri, self.config.steps))


def cooled(steps: int) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=5e-3, warmup_steps=4, decay="wsd", cooldown_steps=steps, cooldown_shape="sqrt", average_decay=0.9
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Trained, Trained]:
    """One that ends at 30 steps in its cooldown; one that carries on its step 20; and that one without the break."""
    root = tmp_path_factory.mktemp("carry-on")
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.glob("[a-d]*.py"))]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(texts[:20], VOCAB))
    half = len(texts) // 2
    sequences = [
        write_sequences(root, name, tokenizer, some, SHARDS)
        for name, some in (("a", texts[:half]), ("b", texts[half:]))
    ]
    first = Trained(root, tokenizer, sequences, steps=30, mixture=FIRST, optimizer=cooled(8))
    later = {"steps": STEPS, "optimizer": cooled(12)}
    carried = Trained(root, tokenizer, sequences, f"{first.reference}@{CARRIED}", mixture=(AFTER,), **later)
    whole = Trained(root, tokenizer, sequences, mixture=(*FIRST[:2], AFTER), **later)
    return first, carried, whole


def test_rows_go_on_where_the_order_stood_and_none_comes_twice(runs: tuple[Trained, Trained, Trained]) -> None:
    first, carried, whole = runs
    assert carried.first_step == CARRIED
    assert list(carried.rows()) == list(range(CARRIED + 1, STEPS + 1))
    order = Order([dataset for dataset, _ in whole.job.sequences], whole.job.phases, BATCH, seed=3)
    names = [dataset.name for dataset in order.datasets]
    for step, rows in carried.rows().items():
        assert rows == [(names[row.dataset], row.shard, row.row) for row in order.rows(step - 1)]
    before = {step: rows for step, rows in first.rows().items() if step <= CARRIED}
    taken = list(itertools.chain(*before.values(), *carried.rows().values()))
    assert len(set(taken)) == len(taken) == STEPS * BATCH  # within an epoch of both sources
    assert sum(source == "b" for source, *_ in itertools.chain(*list(carried.rows().values())[5:])) == 45


def test_weights_moments_and_average_are_those_of_a_run_without_the_break(
    runs: tuple[Trained, Trained, Trained],
) -> None:
    first, carried, whole = runs
    ends = carried.end(), whole.end()
    assert ends[0].optimizer is not None
    assert ends[1].optimizer is not None
    assert ends[0].optimizer.average is not None
    for mine, other in (
        (ends[0].weights, ends[1].weights),
        (ends[0].optimizer.first, ends[1].optimizer.first),
        (ends[0].optimizer.second, ends[1].optimizer.second),
        (ends[0].optimizer.average, ends[1].optimizer.average),
    ):
        assert other is not None
        assert mine.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
    assert ends[0].state["tokens_seen"] == ends[1].state["tokens_seen"]
    losses = carried.column("loss_sum")
    assert losses == {step: loss for step, loss in whole.column("loss_sum").items() if step > CARRIED}
    assert losses[CARRIED + 8] != first.column("loss_sum")[CARRIED + 8]  # it did go another way


def test_the_schedule_counts_on_and_cools_down_at_the_new_end(runs: tuple[Trained, Trained, Trained]) -> None:
    first, carried, _ = runs
    rates = carried.column("learning_rate")
    optimizer = carried.config.optimizer
    assert rates == {step: learning_rate(optimizer, step - 1, STEPS) for step in range(CARRIED + 1, STEPS + 1)}
    stable = {step for step, rate in rates.items() if rate == optimizer.learning_rate}
    assert stable == set(range(CARRIED + 1, STEPS - 12 + 1))
    assert first.column("learning_rate")[30] < optimizer.learning_rate
    assert rates[STEPS] == pytest.approx(0.1 * optimizer.learning_rate)
