"""A kind of cached distribution is one object: with a new one, nothing else changes from the capture to the audit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from data.loader import LogitsReader, SequenceReader
from data.logits import CodecSpec, Ranking, Targets, encode
from data.schema import LOGITS
from data.shards import write_table
from model import Gemma2, TableModel, gemma2_tiny
from tests.programs.examples import VOCAB, example_job, write_sequences
from training.backends.torch_backend import TorchBackend
from training.config import DistillConfig, TrainingConfig
from training.distill import kinds
from training.distill.audit import tally
from training.distill.kind import Check, Kind, Limits, Tally
from training.distill.kinds import KINDS, KindName, kind_of
from training.distill.teacher import capture
from training.loss import Batch, LossOptions, masked_sum
from training.loss_head import to_weighted_ids
from training.objective import loss_function

CPU = TorchBackend("cpu")
NUMBERS: dict[str, Any] = {"draws": 7, "top": 5, "temperature": 1.5, "proposal": 0.9}


@dataclass(frozen=True, kw_only=True)
class Argmax(Kind):
    """The most likely id alone, as one count."""

    name: ClassVar[str] = "argmax"
    sums: ClassVar[tuple[str, ...]] = ("others",)
    largest: ClassVar[tuple[str, ...]] = ("lead",)

    def codec(self, vocab_size: int) -> CodecSpec:
        return CodecSpec(vocab_size=vocab_size, estimator=self.name, draws=1, temperature=self.temperature)

    def keep(self, logits_PV: Tensor, noise: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        highest_P1, ids_P1 = logits_PV.max(-1, keepdim=True)
        return ids_P1.int(), highest_P1

    def targets(self, *kept: np.ndarray) -> Targets:
        ids_P1, _ = kept
        return {"target_ids": ids_P1, "target_counts": np.ones_like(ids_P1)}

    @classmethod
    def loss(cls, model: TableModel, batch: Batch, codec: CodecSpec, options: LossOptions) -> tuple[Tensor, Tensor]:
        head = options.teacher_head(model, to_weighted_ids)
        weights_BTK = batch["target_counts"] * head.target_mass
        return masked_sum(model, batch, head, [batch["target_ids"].long(), weights_BTK], options.run_head)

    def statistics(self, logits_PV: Tensor, kept: Mapping[str, Tensor], coins_V: Tensor) -> Tensor:
        chosen_P1 = logits_PV.gather(1, kept["target_ids"][:, :1].long())
        lead_P = (logits_PV.amax(-1, keepdim=True) - chosen_P1)[:, 0].double()
        return torch.stack([(lead_P > 0).double(), lead_P], -1)

    def checks(self, total: Tally, limits: Limits) -> list[Check]:
        detail = f"{total.sums['others']:g} of {total.positions} ids are not the most likely"
        return [Check(name="lead", value=total.largest["lead"], limit=limits.log_prob_difference, detail=detail)]


@pytest.mark.parametrize("name", [*KINDS, "argmax"])
def test_a_kind_goes_from_the_capture_to_the_loss_and_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(KINDS, "argmax", Argmax)  # as the name in the import of kinds/__init__ does
    kind = kind_of(name).of(NUMBERS)
    job = write_sequences(tmp_path, example_job(tmp_path / "checkpoints"))
    _, (sequences, *_) = job.sequences[0]
    batch = SequenceReader([sequences], job.sequences[0][0].row_group_rows, VOCAB).read([(0, row) for row in range(8)])
    teacher = Gemma2(gemma2_tiny(vocab_size=VOCAB, init_std=0.3), seed=1).requires_grad_(False)
    (kept,) = capture(teacher, CPU, [batch], kind, seed=0, teacher_hash="t")

    spec, ranking = kind.codec(VOCAB), Ranking.of_tokens(batch["tokens"], VOCAB)
    assert spec.estimator == name
    rows = [
        {"sequence_hash": sequence_hash, **encode(row, spec, ranking)}
        for row, sequence_hash in zip(kept, batch["sequence_hash"].tolist(), strict=True)
    ]
    rows[0]["ranking"] = ranking.to_bytes()
    write_table(str(tmp_path), "logits.parquet", pa.Table.from_pylist(rows, LOGITS), row_group_rows=8)
    width = max(row["target_ids"].shape[1] for row in kept)
    reader = LogitsReader([str(tmp_path / "logits.parquet")], spec, width, padding=kind_of(spec.estimator).padding)
    decoded = [targets for _, targets in reader.read([(0, row) for row in range(8)])]

    columns = reader.empty(*batch["tokens"].shape)
    for row, targets in enumerate(decoded):
        for column, values in reader.columns_of(targets).items():
            columns[column][row, batch["loss_mask"][row]] = values
    config = TrainingConfig(
        model=teacher.config, objective="distill", distill=DistillConfig(temperature=1.5), steps=1, global_batch=8
    )
    arrays = {column: batch[column] for column in ("tokens", "segment_ids", "positions", "loss_mask")}
    on_device = {column: torch.from_numpy(values) for column, values in {**arrays, **columns}.items()}
    student = Gemma2(teacher.config, seed=2)
    loss_sum, count = loss_function(config, spec)(student, on_device)
    assert count == batch["loss_mask"].sum()
    own_sum, _ = loss_function(config, spec)(teacher, on_device)
    assert 0 < own_sum < loss_sum  # the teacher predicts itself better than a model of other weights does

    padded = [targets.padded(width) for targets in decoded]
    together = {column: np.concatenate([part[column] for part in padded]) for column in padded[0]}
    limits = Limits(alpha=1e-5, log_prob_difference=0.01, lost_mass=0.001)
    honest = tally(teacher, CPU, batch, together, kind)
    assert honest.positions == count
    assert all(check.value <= check.limit for check in kind.checks(honest, limits)), kind.checks(honest, limits)
    forged = {**together, "target_ids": (together["target_ids"] + 1) % VOCAB}
    forgery = tally(teacher, CPU, batch, forged, kind)
    assert any(check.value > check.limit for check in kind.checks(forgery, limits))
    twice = Tally()
    twice.add(honest)
    twice.add(honest)
    assert twice.positions == 2 * honest.positions
    assert twice.largest == honest.largest
    assert twice.sums == {statistic: 2 * value for statistic, value in honest.sums.items()}


def test_the_files_of_the_folder_are_the_kinds_and_the_choices_of_the_command_line() -> None:
    files = sorted(path.stem for path in Path(kinds.__file__).parent.glob("[!_]*.py"))
    assert get_args(KindName) == tuple(KINDS) == tuple(files)


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="estimator is 'best'; allowed are full, sample, topk"):
        kind_of("best")


@pytest.mark.parametrize(
    ("name", "change"),
    [("sample", {"draws": 0}), ("topk", {"top": 0}), ("full", {"temperature": 0.0}), ("sample", {"proposal": -1.0})],
)
def test_numbers_that_cannot_be_are_refused(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is {next(iter(change.values()))}"):
        KINDS[name].of(NUMBERS | change)


def test_a_vocabulary_that_a_kind_does_not_allow_is_refused() -> None:
    with pytest.raises(ValueError, match="top is 5, and the vocabulary has 4 ids; give --top 4 or less"):
        KINDS["topk"].of(NUMBERS).codec(4)
    with pytest.raises(ValueError, match="got a vocabulary of 256000 ids for estimator 'full'"):
        KINDS["full"].of(NUMBERS).codec(256_000)
