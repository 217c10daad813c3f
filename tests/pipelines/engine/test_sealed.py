"""Saved configs, logs and receipts say which run they belong to, and are refused if they were edited or exchanged."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.changes import Changes
from data.errors import UserError
from data.manifest import RUN_NAME
from data.sealed import SEAL, seal, unseal, unsealed
from pipelines.cli.arguments import _read_json
from pipelines.engine.runner import read_run
from pipelines.engine.shard_map import RECEIPTS, ShardOutput, Sink, _finished

RUN, OTHER = "0" * 16, "1" * 16
DOCUMENT: dict[str, Any] = {"b": [1, {"c": "\n é"}], "a": {SEAL: "x"}}


def test_a_sealed_document_is_read_back() -> None:
    text = seal(DOCUMENT)
    assert unseal(text, json.loads(text)) == DOCUMENT
    assert seal(dict(reversed(DOCUMENT.items()))) == text


def test_any_changed_byte_is_found() -> None:
    text = seal(DOCUMENT)
    for place in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            try:
                document = json.loads(bytes(changed))
            except ValueError:
                continue
            with pytest.raises(UserError, match=r"here is damaged, or was edited: it.*; do this"):
                unsealed(bytes(changed), document, "here", "do this")


def test_a_file_without_a_seal_is_of_a_person_or_an_earlier_version() -> None:
    text = json.dumps(DOCUMENT).encode()
    assert unsealed(text, json.loads(text), "here", "do this") == DOCUMENT


def test_a_saved_config_that_was_edited_is_refused_until_its_seal_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "_CONFIG.json"
    path.write_bytes(seal({"stage": "train_model", "config": {"steps": 10}}))
    assert _read_json(str(path))["config"] == {"steps": 10}
    path.write_text(path.read_text().replace("10", "20"))
    with pytest.raises(ValueError, match=r"_CONFIG\.json is damaged, or was edited.*remove its line self_sha256"):
        _read_json(str(path))
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if SEAL not in line))
    assert _read_json(str(path))["config"] == {"steps": 20}


def test_the_log_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / RUN / RUN_NAME
    path.parent.mkdir()
    path.write_bytes(seal({"fingerprint": RUN, "seconds": 3.0}))
    assert read_run(str(path.parent))["seconds"] == 3.0
    path.write_bytes(path.read_bytes().replace(b"3.0", b"4.0"))
    with pytest.raises(ValueError, match=r"_RUN\.json is damaged, or was edited"):
        read_run(str(path.parent))
    path.write_bytes(seal({"fingerprint": OTHER, "seconds": 3.0}))
    with pytest.raises(ValueError, match=rf"_RUN\.json of the run {OTHER}, exchanged"):
        read_run(str(path.parent))
    path.write_text('{"seconds": 5}')  # of an earlier version
    assert read_run(str(path.parent)) == {"seconds": 5}


@pytest.mark.parametrize("change", ["edited", "of another shard", "of another run", "of another phase"])
def test_a_receipt_that_is_not_its_own_is_refused(tmp_path: Path, change: str) -> None:
    """The facts of a shard become facts of the manifest."""
    run = tmp_path / RUN
    for directory, phase in ((run, "work-0"), (run, "other-0"), (tmp_path / OTHER, "work-0")):
        sink = Sink(
            Changes(directory=str(directory)), phase, lambda task: ShardOutput(parts={}, facts={"rows": task}), None
        )
        for index in range(2):
            sink.publish(index, 10 + index)
    assert [receipt.facts["rows"] for receipt in _finished(str(run), "work-0", 2).values()] == [10, 11]
    path = run / RECEIPTS / "work-0" / "00000.json"
    if change == "edited":
        path.write_bytes(path.read_bytes().replace(b'"rows": 10', b'"rows": 12'))
    else:
        sources = {
            "of another shard": path.with_name("00001.json"),
            "of another run": tmp_path / OTHER / RECEIPTS / "work-0" / "00000.json",
            "of another phase": run / RECEIPTS / "other-0" / "00000.json",
        }
        path.write_bytes(sources[change].read_bytes())
    with pytest.raises(ValueError, match=rf"{path}.*(was edited|was exchanged).*; remove it and run the same line"):
        _finished(str(run), "work-0", 2)
