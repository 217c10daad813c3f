"""What a run held, from what its logs say; the names of chips."""

import json
from pathlib import Path

import pytest

from training.log.chips import chips_held, kind_of
from training.log.run_log import held_seconds


def lines(folder: Path, name: str, *records: dict[str, object]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_chips_are_held_from_the_begin_of_an_attempt_to_its_last_line(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    step = {"kind": "step", "step": 1}
    lines(
        logs, "metrics-00000000-1.jsonl",
        {"kind": "began", "since": 90.0, "time": 100.0, "chips": {"v5e": 16}},
        {**step, "time": 150.0},
        {"kind": "summary", "time": 190.0},
    )  # fmt: skip
    lines(
        logs, "metrics-00000010-2.jsonl",
        {"kind": "began", "since": 1000.0, "time": 1001.0, "chips": {"v5e": 32}},
        {**step, "time": 1010.0},
    )  # fmt: skip
    assert held_seconds(str(logs)) == {"v5e": 16 * 100.0 + 32 * 10.0}, "not the time between the attempts"


def test_an_attempt_on_a_cpu_after_one_on_chips_holds_none(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    lines(
        logs, "metrics-0.jsonl",
        {"kind": "began", "since": 0.0, "time": 0.0, "chips": {"NVIDIA H200": 1}}, {"kind": "summary", "time": 5.0},
    )  # fmt: skip
    lines(
        logs, "metrics-1.jsonl",
        {"kind": "began", "since": 9.0, "time": 9.0, "chips": {}}, {"kind": "summary", "time": 20.0},
    )  # fmt: skip
    assert held_seconds(str(logs)) == {"NVIDIA H200": 5.0}
    assert held_seconds(str(tmp_path / "none")) == {}


@pytest.mark.parametrize(
    ("accelerator_type", "kind"),
    [("v5litepod-16", "v5litepod"), ("v4-8", "v4"), ("v5p-128", "v5p"), ("v6e-4", "v6e"), ("", "TPU")],
)
def test_a_tpu_is_called_as_its_pod_type_begins(accelerator_type: str, kind: str) -> None:
    assert kind_of(accelerator_type) == kind


def test_a_process_without_accelerator_holds_none() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert chips_held(2) == {}
