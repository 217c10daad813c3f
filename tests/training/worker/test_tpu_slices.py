"""Workers on TPU slices: which environment each gets, and that only whole slices are used (hosts are made up)."""

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.programs.chaos_log import Counts
from tests.training.worker.test_worker import in_process
from training.worker.places import Place, TpuSlices, broken_slices, xla_environments
from training.worker.watch import looking

V5E = TpuSlices(topology="4x4", accelerator_type="TPU-V5LITEPOD", pod_type="v5litepod-16", hosts=4, chips_per_host=4)


def places(*named: tuple[str, int]) -> list[Place]:
    return [Place(address=f"{name}{number}", slice_name=name, worker_id=str(number)) for name, number in named]


def test_a_worker_is_where_its_host_is_and_not_where_its_rank_says() -> None:
    environments = xla_environments("TPU", places(("s", 2), ("s", 0), ("s", 1), ("s", 3)))
    assert [environment["TPU_WORKER_ID"] for environment in environments] == ["2", "0", "1", "3"]
    assert {environment["TPU_WORKER_HOSTNAMES"] for environment in environments} == {"s0,s1,s2,s3"}
    assert all(
        environment["PJRT_DEVICE"] == "TPU" and not any(key.startswith("MEGASCALE") for key in environment)
        for environment in environments
    )


def test_two_slices_are_told_of_each_other() -> None:
    environments = xla_environments("TPU", places(("t", 1), ("s", 0), ("t", 0), ("s", 1)), slices=2)
    assert [environment["MEGASCALE_SLICE_ID"] for environment in environments] == ["1", "0", "1", "0"]
    assert [environment["TPU_WORKER_HOSTNAMES"] for environment in environments] == ["t0,t1", "s0,s1", "t0,t1", "s0,s1"]
    assert {
        (environment["MEGASCALE_NUM_SLICES"], environment["MEGASCALE_COORDINATOR_ADDRESS"])
        for environment in environments
    } == {("2", "s0")}


def test_a_cpu_and_a_single_host_need_no_more_than_the_device() -> None:
    assert xla_environments("CPU", places(("", 0), ("", 0))) == [{"PJRT_DEVICE": "CPU"}] * 2
    assert xla_environments("TPU", [Place(address="here")]) == [{"PJRT_DEVICE": "TPU"}]


@pytest.mark.parametrize(
    ("where", "slices", "message"),
    [
        ([("s", 0), ("s", 0)], 1, r"TPU_WORKER_IDs \['0', '0'\], but a slice of 2 hosts has each id from 0 to 1 once"),
        ([("s", 0), ("t", 0)], 1, "are on the slices s, t, and the run needs 1"),
        ([("s", 0), ("s", 1)], 2, "are on the slices s, and the run needs 2"),
        ([("s", 0), ("s", 1), ("t", 0)], 2, "slices of unequal size: s has 2, t has 1 workers"),
    ],
)
def test_anything_but_whole_equal_slices_is_refused(where: list[tuple[str, int]], slices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        xla_environments("TPU", places(*where), slices)


def test_a_slice_without_one_of_its_hosts_is_broken() -> None:
    def node(name: str, number: int, alive: bool = True, kind: str = "v5litepod-16") -> dict[str, Any]:
        labels = {"ray.io/tpu-slice-name": name, "ray.io/tpu-worker-id": str(number), "ray.io/tpu-pod-type": kind}
        return {"Alive": alive, "Labels": labels}

    whole = [node("whole", number) for number in range(4)]
    lacks_two = [node("lacks 2", number, alive=number != 2) for number in range(4)]
    headless = [node("headless", number) for number in range(1, 4)]  # nobody can choose it
    other = [node("other", 0, kind="v5litepod-8")]
    cpu = [{"Alive": True, "Labels": {}}]
    assert broken_slices([*whole, *lacks_two, *headless, *other, *cpu], V5E) == {"lacks 2"}


@pytest.mark.chaos("training on slices that come and go")
def test_a_slice_goes_and_comes_back_and_the_workers_are_told_of_those_that_are_there(
    tmp_path: Path, counts: Counts
) -> None:
    outcome = in_process("tpu_slices", tmp_path / "elastic")
    both, left, again = outcome["attempts"]  # never on a, which lacks a host
    check_workers(both, left, again)
    for attempt in (both, again):
        seen = {(worker["TPU_NAME"], worker["megascale"]["MEGASCALE_SLICE_ID"]) for worker in attempt}
        assert (len(attempt), seen) == (4, {("b", "0"), ("c", "1")})
        assert {worker["megascale"]["MEGASCALE_NUM_SLICES"] for worker in attempt} == {"2"}
    assert {worker["TPU_NAME"] for worker in left} == {"b", "c"} - {outcome["lost"]}
    check_alone(left)
    counts.add(kills=1, compared=sum(map(len, outcome["attempts"])))


@pytest.mark.chaos("training on a slice that loses a host")
def test_workers_on_a_slice_that_loses_a_host_come_back_on_a_spare_one(tmp_path: Path, counts: Counts) -> None:
    outcome = in_process("tpu_slices", tmp_path / "spare")
    first, second = outcome["attempts"]
    check_workers(first, second)
    (spare,) = {"b", "c"} - {outcome["lost"]}  # a lacks a host
    assert [{worker["TPU_NAME"] for worker in attempt} for attempt in (first, second)] == [{outcome["lost"]}, {spare}]
    for attempt in (first, second):
        check_alone(attempt)
    counts.add(kills=1, compared=sum(map(len, outcome["attempts"])))


def check_workers(*attempts: list[dict[str, Any]]) -> None:
    for attempt in attempts:
        assert [worker["rank"] for worker in attempt] == list(range(len(attempt)))
        assert {worker["PJRT_DEVICE"] for worker in attempt} == {"TPU"}
        assert not any(worker["torch_xla"] for worker in attempt)


def check_alone(attempt: list[dict[str, Any]]) -> None:
    """On one slice of two hosts."""
    assert sorted(worker["TPU_WORKER_ID"] for worker in attempt) == ["0", "1"]
    assert {worker["TPU_WORKER_HOSTNAMES"] for worker in attempt} == {"127.0.0.1,127.0.0.1"}
    assert all(worker["megascale"] == {} for worker in attempt), "left over from another run, or from two slices"


@pytest.mark.slow
def test_ray_is_asked_for_slices_by_its_own_names_for_them(tmp_path: Path) -> None:
    outcome = in_process("tpu_slices", tmp_path / "without_a_cluster")
    assert outcome["pod_types"] == {"v4:2x2x2": True, "v5e:4x4": True, "v5p:2x2x4": True, "v6e:4x4": True}
    assert outcome["one_host"] == [True, 1, {"CPU": 1, "TPU": 4}]
    assert outcome["devices"] == ["TPU", "TPU", "CPU"]


def test_a_watch_goes_on_where_a_look_fails_and_says_each_failure_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = ["away", "away", "away", "full", "", ""]
    looks: list[str] = []
    seen = threading.Event()

    def look() -> None:
        looks.append(failures[len(looks)] if len(looks) < len(failures) else "")
        if len(looks) >= len(failures):
            seen.set()
        if looks[-1]:
            raise RuntimeError(looks[-1])

    with looking("watch", look, 0.001):
        assert seen.wait(10)
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "away",
        "full",
        "looks work again",
    ]
