"""A run continues its checkpoints after options were added, and refuses those of another config by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data.absent import absent
from data.logits import CodecSpec
from model import Gemma2Config
from tests.programs.examples import example_job, made_up_feed
from training.backends.torch_backend import TorchBackend
from training.checkpoints.identity import check_can_be_carried_on, check_identity
from training.checkpoints.records import latest_checkpoint
from training.checkpoints.save_load import Checkpoint, check_same_model
from training.config import OptimizerConfig, TrainingConfig
from training.job import TrainJob
from training.loop import run_training


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownModel(Gemma2Config):
    qk_norm: bool = dataclasses.field(default=False, metadata={"absent": False})


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownOptimizer(OptimizerConfig):
    muon: bool = absent(False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownConfig(TrainingConfig):
    model: GrownModel
    optimizer: GrownOptimizer = dataclasses.field(default_factory=GrownOptimizer)
    label_smoothing: float = absent(0.0)


def grown(job: TrainJob, *, qk_norm: bool = False, muon: bool = False, **options: Any) -> TrainJob:
    """The job after three options were added, one on each floor."""
    fields = {field.name: getattr(job.config, field.name) for field in dataclasses.fields(TrainingConfig)}
    fields["model"] = GrownModel(**vars(job.config.model), qk_norm=qk_norm)
    fields["optimizer"] = GrownOptimizer(**vars(job.config.optimizer), muon=muon)
    return dataclasses.replace(job, config=GrownConfig(**fields, **options))


def checkpoint_with(identity: dict[str, Any]) -> Checkpoint:
    return Checkpoint(uri="there", step=2, weights={}, optimizer=None, state={"identity": identity}, tables={})


def as_kept_before(job: TrainJob) -> dict[str, Any]:
    """The identity that checkpoints held when every field was kept."""
    whole = {
        **job.identity(),
        "config": dataclasses.asdict(job.config),
        "logits": dataclasses.asdict(job.codec) if job.codec else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(whole))
    return plain


def test_an_identity_names_no_absent_option(tmp_path: Path) -> None:
    identity = example_job(tmp_path).identity()
    assert "z_loss" not in identity["config"]
    assert identity["config"]["optimizer"]["warmup_steps"] == 2
    assert "average_decay" not in identity["config"]["optimizer"]
    assert grown(example_job(tmp_path)).identity() == identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, "config.label_smoothing was 0.0 and is 0.1"),
        ({"muon": True}, "config.optimizer.muon was False and is True"),
        ({"qk_norm": True}, "config.model.qk_norm was False and is True"),
    ],
)
@pytest.mark.parametrize("kept", [TrainJob.identity, as_kept_before], ids=["now", "before"])
def test_a_checkpoint_from_before_an_option_is_continued_without_it_alone(
    tmp_path: Path, kept: Any, options: dict[str, Any], message: str
) -> None:
    job = example_job(tmp_path)
    checkpoint = checkpoint_with(kept(job))
    check_identity(checkpoint, job)
    check_identity(checkpoint, grown(job))
    with pytest.raises(ValueError, match=f"there belongs to another run: {message}; give this run another"):
        check_identity(checkpoint, grown(job, **options))


def test_a_checkpoint_with_an_option_that_this_version_does_not_have_is_refused(tmp_path: Path) -> None:
    job = example_job(tmp_path)
    check_identity(checkpoint_with(grown(job).identity()), job)
    with pytest.raises(ValueError, match=r"config\.label_smoothing was 0\.1 and is None"):
        check_identity(checkpoint_with(grown(job, label_smoothing=0.1).identity()), job)


def test_a_codec_from_before_an_option_is_the_same_codec(tmp_path: Path) -> None:
    logits = (("unread", "unread"), ("unread",))
    codec = CodecSpec(vocab_size=64, estimator="sample", draws=50)
    job = example_job(tmp_path, config={"objective": "distill"}, codec=codec, logits=logits)
    check_identity(checkpoint_with(as_kept_before(job)), job)
    other = dataclasses.replace(job, codec=dataclasses.replace(codec, weighted=True))
    with pytest.raises(ValueError, match=r"logits\.weighted was False and is True"):
        check_identity(checkpoint_with(as_kept_before(job)), other)


def test_training_goes_on_where_it_stopped_after_options_were_added(tmp_path: Path) -> None:
    job = example_job(tmp_path, config={"steps": 4, "checkpoint_every_steps": 2})
    backend = TorchBackend("cpu")
    whole = run_training(job, backend, made_up_feed(job))
    newest = latest_checkpoint(str(tmp_path))
    assert newest is not None
    (Path(newest) / "COMMIT").unlink()
    later = grown(job)
    again = run_training(later, backend, made_up_feed(later))
    assert (again.first_step, again.steps) == (2, 4)
    assert latest_checkpoint(str(tmp_path)) == newest
    assert again.loss == whole.loss

    longer = dataclasses.replace(later, config=dataclasses.replace(later.config, steps=8))
    check_can_be_carried_on(newest, longer)
    check_same_model(newest, later.config.model)
    with pytest.raises(ValueError, match="qk_norm is False there and True here"):
        check_same_model(newest, grown(job, qk_norm=True).config.model)
