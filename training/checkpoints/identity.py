"""Whether a job may continue from a checkpoint: what must be equal, and what may differ when a run is carried on.

An option that a checkpoint does not name had its absent value when the checkpoint was made (`data/absent.py`).

A run is resumed from its own checkpoints only if everything that decides the result is equal. Carrying on starts a new
run after a checkpoint of another run, with the checkpoint's weights, moments and place in the order; the new run may
have other steps, another schedule or other phases.
"""

from collections.abc import Iterable
from typing import Any

from data.absent import with_absent
from data.logits import CodecSpec
from data.order import MixturePhase, SequenceDataset
from training.checkpoints.records import entry_of, read_commit, read_state
from training.checkpoints.save_load import Checkpoint
from training.errors import UserError
from training.job import TrainJob


def check_identity(checkpoint: Checkpoint, job: TrainJob) -> None:
    """Raises UserError, naming what differs, if the checkpoint is of another config or other data."""
    saved, ours = _whole(checkpoint.state["identity"], job), _whole(job.identity(), job)
    differing = sorted(_differences(saved, ours))
    if differing:
        raise UserError(
            f"{checkpoint.uri} belongs to another run: {'; '.join(differing)}; "
            "give this run another directory of checkpoints, or the config and inputs of that run"
        )


def _whole(identity: dict[str, Any], job: TrainJob) -> dict[str, Any]:
    """The identity with every option, also those at their absent value: older and newer ones can then be compared."""
    logits = identity["logits"]
    return {
        **identity,
        "config": with_absent(type(job.config), identity["config"]),
        "datasets": [with_absent(SequenceDataset, dataset) for dataset in identity["datasets"]],
        "phases": [with_absent(MixturePhase, phase) for phase in identity["phases"]],
        "logits": None if logits is None else with_absent(CodecSpec, logits),
    }


def _differences(saved: Any, ours: Any, path: str = "") -> Iterable[str]:
    if isinstance(saved, dict) and isinstance(ours, dict):
        for name in saved.keys() | ours.keys():
            yield from _differences(saved.get(name), ours.get(name), f"{path}.{name}" if path else name)
    elif saved != ours:
        yield f"{path} was {saved!r} and is {ours!r}"


def check_can_be_carried_on(uri: str, job: TrainJob) -> None:
    """Raises UserError if the job cannot continue at the checkpoint's place in the order of rows.

    Up to the checkpoint's step both orders must be the same: equal batch, seed and phases over the same rows. Datasets
    that gave no rows until then may be added. Reads the checkpoint's records and none of its tensors, so that a run is
    refused before Ray starts.
    """
    state = read_state(uri)
    step = int(entry_of(state, uri, "step"))
    if not any(name.startswith("optimizer") for name in (read_commit(uri) or {"files": ()})["files"]):
        raise UserError(f"{uri} has no moments to carry on with; give it as --initial to start from its weights")
    if step >= job.config.steps:
        raise UserError(
            f"{uri} has done {step} steps, and this run ends after {job.config.steps}, counted from "
            f"the start of the first run; give --steps more than {step}"
        )
    saved, ours = _whole(entry_of(state, uri, "identity"), job), _whole(job.identity(), job)
    wrong = [
        f"{name} was {saved[name]!r} and is {ours[name]!r}"
        for name in ("sequence_length", "order_seed")
        if saved[name] != ours[name]
    ]
    if saved["config"]["global_batch"] != ours["config"]["global_batch"]:
        wrong.append(f"global_batch was {saved['config']['global_batch']} and is {ours['config']['global_batch']}")
    by_name = {dataset["name"]: dataset for dataset in ours["datasets"]}
    for dataset in saved["datasets"]:
        if by_name.get(dataset["name"]) != dataset:
            wrong.append(f"the rows of {dataset['name']!r} differ from the rows of that run; name the same sequences")
    before = [[phase for phase in identity["phases"] if phase["start_step"] < step] for identity in (saved, ours)]
    if before[0] != before[1]:
        wrong.append(f"the mixture before step {step} was {before[0]} and is {before[1]}; later phases may differ")
    if wrong:
        raise UserError(f"{uri} cannot be carried on by this run: {'; '.join(wrong)}")
