"""Whether this machine has the device of `--device`: `plan` prints it, and `run` refuses before its first step."""

from collections.abc import Iterable, Iterator

from infra.ray_session import on_cluster
from pipelines.engine import damage
from pipelines.engine.errors import UserError
from pipelines.engine.task import Task
from training.backends.make import abilities_of
from training.backends.names import Device


def device_lines(device: Device, tasks: Iterable[Task]) -> Iterator[str]:
    """A line of a plan if `--device` names a device that is not here. Workers of a cluster may have it."""
    if device == "auto" or on_cluster():
        return
    if not _run_a_model(tasks):
        yield f"note: --device {device} changes nothing: no step that would run computes with a model"
    elif missing := abilities_of(device).lacking():
        yield (
            f"note: --device {device}: {missing}, so `run` refuses this line here; on a machine that has the device, "
            "and on a cluster, the plan is the same"
        )
    elif stand_in := abilities_of(device).stands_in():
        yield f"note: --device {device}: {stand_in}"


def refuse_device(device: Device, tasks: Iterable[Task]) -> None:
    """Raises UserError, before anything runs, if a step would run a model on a device that this machine lacks.

    On a cluster nothing is refused: its workers are on other machines.
    """
    if device == "auto" or on_cluster():
        return
    if (missing := abilities_of(device).lacking()) and _run_a_model(tasks):
        raise UserError(
            f"got --device {device}, but {missing}; leave --device out, which takes the fastest device of this machine"
        )


def _run_a_model(tasks: Iterable[Task]) -> bool:
    """Whether a task that is not done runs a model. A damaged task is not done."""
    return any(task.stage.declares.places is not None and not _is_done(task) for task in tasks)


def _is_done(task: Task) -> bool:
    with damage.named(task.directory, lambda line: None):
        return task.manifest() is not None
    return False
