"""Which error of a training worker comes out of the driver, without a cluster: Ray's wrappings are made here."""

import json
import pickle
from pathlib import Path
from typing import Any

from data.changes import Changes, LeaseLost
from data.errors import UserError
from data.storage import FullError
from tests.programs.examples import example_job


def own_error(*failures: Exception, used_up: str = "") -> Any:
    """What the driver makes of these errors of its workers, in the order of their ranks."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    from training.worker.driver import _own_error

    wrapped = [UserExceptionWithTraceback(failure, traceback_str=f"Traceback: {failure!r}") for failure in failures]
    return _own_error(WorkerGroupError("; ".join(map(str, wrapped)), dict(enumerate(wrapped))), used_up)


def test_a_users_mistake_keeps_its_own_words_and_its_class() -> None:
    mistake = UserError("the logits were computed on other sequences; run cache_logits")
    error = own_error(mistake)
    assert error is mistake
    assert str(error) == "the logits were computed on other sequences; run cache_logits"


def test_what_led_to_a_users_mistake_does_not_hide_it() -> None:
    mistake = UserError("a.json is not JSON")
    mistake.__cause__ = json.JSONDecodeError("Expecting value", "x", 0)
    assert own_error(mistake) is mistake


def test_an_error_with_an_exit_code_counts_before_what_other_workers_raised() -> None:
    full = FullError("cannot write a; make room")
    assert own_error(RuntimeError("connection closed by peer"), full) is full


def test_a_plain_value_error_is_a_bug_with_the_workers_traceback() -> None:
    error = own_error(ValueError("invalid literal"))
    assert type(error) is ValueError
    (note,) = error.__notes__
    assert note.startswith("a training worker failed:\n")
    assert "Traceback: ValueError('invalid literal')" in note


def test_a_worker_that_died_too_often_is_no_bug() -> None:
    from ray.exceptions import RayError

    from training.worker.budgets import UsedUp

    error = own_error(RuntimeError("connection closed by peer"), RayError("gone"), used_up="failures of this run: 2")
    assert isinstance(error, UsedUp)
    assert error.exit_code == 1


def test_the_workers_of_a_driver_that_lost_its_lease_end_before_they_read_anything(tmp_path: Path) -> None:
    """The error is returned, not raised: Ray would start the workers again, up to --max-failures times."""
    from training.worker.on_worker import Group, train_in_group

    changes = Changes(directory=str(tmp_path), lease_uri=str(tmp_path / "_LEASE.000001.json"), token="ours")
    job = example_job(tmp_path / "checkpoints", changes=changes, workers=2)
    config = {"job": pickle.dumps(job), "ask_key": b"", "progress_key": b""}
    for rank in range(2):
        outcome = pickle.loads(train_in_group(config, Group(rank=rank, world_size=2)))
        assert isinstance(outcome, LeaseLost)
        assert str(outcome).startswith("lease lost: ")
    assert list(tmp_path.iterdir()) == []
