"""The fit check: refusals before any compile, figures of a cell, the search, and the TPU compiler as judge."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from model import (
    Gemma2Config,
    forward_flops_per_token,
    gemma2_2b,
    gemma2_27b,
    parameter_count,
    train_flops_per_token,
)
from model.sharding import MeshShape
from pipelines.__main__ import main
from pipelines.fit import cells as fit_cells
from pipelines.fit import command
from pipelines.fit import table as fit_table
from pipelines.fit.cells import Cell, FitRequest, run_cell
from pipelines.fit.figures import describe, figures, shape_in_words

SMALL = Gemma2Config(
    vocab_size=8192, d_model=512, layers=12, heads=4, kv_heads=4, head_dim=128, ffw_dim=4096, window=256,
    query_scale=128,
)  # fmt: skip


def request(**overrides: Any) -> FitRequest:
    given: dict[str, Any] = {
        "name": "small", "model": SMALL, "topology": "v5e:2x2", "mesh": MeshShape(data=4), "seq": 512, "batch": 128,
    }  # fmt: skip
    return FitRequest(**given | overrides)


def answered(asked: FitRequest, fits: bool) -> Cell:
    """A cell as the compiler would leave it."""
    compiled = {
        "fits": fits, "compile_seconds": 1.0, "peak_memory_bytes": 2**30, "versions": {"jax": "1", "libtpu": "2"},
        "hbm_limit_bytes": 16 * 2**30, "peak_bytes": (8 if fits else 20) * 2**30, "code_bytes": int(fits),
        "matrix_flops": 1e12, "hbm_bytes": 1e10, "kernels": 48, "unknown_loops": [], "error": "",
        "collectives": [{"kind": "all-gather", "calls": 2, "operand_bytes": 1, "ici_bytes": 3, "dcn_bytes": 0}],
        "largest": [
            {"bytes": 2**30, "shape": "f32[6,32,512,4096]", "kind": "HLO temp", "operator": "a/b", "label": ""},
        ],
    }  # fmt: skip
    trace = {"parameter_bytes_per_chip": 2**30, "optimizer_bytes_per_chip": 2**31, "process_seconds": 2.0}
    return Cell(request=asked, code=fit_cells.code_digest(), trace=trace, compiled=compiled)


def keep(cell: Cell, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts an answer where `run_cell` keeps its own."""
    monkeypatch.setattr(fit_cells, "_answer", lambda *_: cell)
    monkeypatch.setattr(fit_cells, "FIT_PYTHON", Path(__file__))
    assert run_cell(cell.request, cache=cache) == cell
    monkeypatch.setattr(fit_cells, "FIT_PYTHON", cache / "missing")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model gemma2_3b --topology v5e:4x4 --batch 16", "no model 'gemma2_3b'.*path of a config.json"),
        ("--model none/config.json --topology v5e:4x4 --batch 16", "no file 'none/config.json'"),
        ("--model gemma2_2b --topology v9:4x4 --batch 16", "there are v4, v5e, v5p, v6e"),
        ("--model gemma2_2b --topology v5e:4x4 --mesh data=8 --batch 16", "data=16,model=1"),
        ("--model gemma2_2b --topology v5e:4x4 --mesh data=2,model=8 --batch 16", "choose 1, 2, 4"),
        ("--model gemma2_2b --topology v5e:16x16 --slices 2 --mesh data=512 --batch 512", "put the rest.*on replica"),
        ("--model gemma2_2b --topology v5e:4x4 --batch 17", "try --batch 16"),
        ("--model gemma2_2b --topology v5e:4x4 --batch 16 --seq 1000", "try --seq 1024"),
        ("--model gemma2_2b --topolgy v5e:4x4 --batch 16", "did you mean 'topology'"),
        ("--model gemma2_2b --topology v5e:4x4", "got no --batch"),
        ("--model gemma2_2b --topology v5e:4x4 --batch 16 --dtype bfloat16", "got --dtype for a training step"),
        ("--stage cache_logit --model gemma2_2b --topology v5e:4x4", "did you mean 'cache_logits'"),
        ("--stage pack_sequences --model gemma2_2b --topology v5e:4x4", "cache_logits, evaluate_model, train_model"),
        ("--stage cache_logits --model gemma2_2b --topology v5e:4x4 --batch 16", "it takes --forward-rows and --dtype"),
        ("--stage cache_logits --model gemma2_27b --topology v5e:2x4 --forward-rows 4", "try --batch 8"),
    ],
)
def test_a_question_without_sense_is_refused_before_any_compile(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_cell", lambda *_, **__: pytest.fail("it went on to compile"))
    assert main(["fit", *words.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_heads_that_the_kernel_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got head_dim=64.*multiple of 128"):
        request(model=dataclasses.replace(SMALL, head_dim=64))


def test_without_the_compilers_environment_the_command_that_makes_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_cells, "FIT_PYTHON", tmp_path / "python")
    with pytest.raises(ValueError, match="make fit-env"):
        run_cell(request(), cache=tmp_path)


def test_a_model_is_read_from_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(gemma2_2b())))
    asked = command.request_of(command.Command(model=str(path), topology="v5e:4x4", batch=16))
    assert asked.model == gemma2_2b()
    assert asked.mesh == MeshShape(data=16)


def test_without_a_mesh_each_slice_is_a_replica() -> None:
    asked = command.request_of(command.Command(model="gemma2_2b", topology="v5e:16x16", slices=2, batch=512))
    assert asked.mesh == MeshShape(replica=2, data=256)


def test_figures_follow_from_the_cell() -> None:
    asked = request(topology="v5e:2x2")
    derived = figures(answered(asked, fits=True))
    tokens = 128 * 512 / 4
    assert derived.model_flops == tokens * train_flops_per_token(SMALL, 512)
    assert derived.bounds is not None
    assert derived.bounds.memory_seconds == 1e10 / 819e9
    assert derived.best_tokens_per_second == tokens / derived.bounds.best_seconds
    assert derived.worst_mfu < derived.best_mfu == derived.model_flops / (derived.bounds.best_seconds * 197e12)
    assert derived.peak_bytes == 8 * 2**30


def test_a_forward_pass_counts_two_operations_a_parameter_and_attention_once() -> None:
    words = {"stage": "cache_logits", "model": "gemma2_27b", "topology": "v6e:2x4", "mesh": "model=8"}
    asked = command.request_of(command.Command(**words, forward_rows=4, dtype="bfloat16"))
    assert (asked.batch, asked.parameter_dtype, asked.keeps) == (4, "bfloat16", "draws")
    assert asked.trace_request()["keeps"] == "draws"
    assert command.request_of(command.Command(**words)).batch == 8, "the stage's own default"
    cell = answered(dataclasses.replace(asked, model=SMALL, mesh=MeshShape(data=2, model=4)), fits=True)
    derived, tokens = figures(cell), 4 * 8192 / 8
    assert derived.model_flops == tokens * forward_flops_per_token(SMALL, 8192)
    assert derived.executed_flops - derived.matrix_flops == pytest.approx(
        tokens * (forward_flops_per_token(SMALL, 8192) - 2 * matrices(SMALL)) * 48 / 12
    )
    assert derived.matrix_ratio == pytest.approx(1e12 / (tokens * 2 * matrices(SMALL)))
    assert "forward pass to draws, 4 rows x 8192 tokens" in describe(cell)[0]


def matrices(config: Gemma2Config) -> int:
    """Parameters that are factors of products with a token's state."""
    return sum(parameter_count(config)) - config.layers * 4 * config.d_model - config.d_model


def test_what_was_refused_needs_its_arguments_too() -> None:
    cell = answered(request(), fits=False)
    batch = 13 * 512 * 128 // 4
    assert figures(cell).peak_bytes == (20 + 1 + 2) * 2**30 + batch
    text = "\n".join(describe(cell))
    assert "DOES NOT FIT" in text
    assert "6 pairs of layers x 32 rows of a chip x 512 tokens x 4096 ffw" in text


def test_sides_that_are_not_known_stay_numbers() -> None:
    assert shape_in_words("bf16[7,512]", request()) == "bf16[7 x 512 tokens]"
    assert shape_in_words("f32[]", request()) == "f32[]"


def test_the_search_goes_from_near_to_far_and_never_needs_more() -> None:
    asked = request(remat="none", batch=16)
    requests = list(command.nearest(asked))
    assert requests[0].mesh == asked.mesh
    assert (requests[0].remat, requests[0].batch) == ("projections", 16)
    assert len(set(map(repr, requests))) == len(requests)
    assert asked not in requests
    assert all(candidate.batch <= 16 and candidate.mesh.chips == 4 for candidate in requests)
    assert {candidate.mesh.model for candidate in requests} == {1, 2, 4}
    assert {candidate.remat for candidate in command.nearest(request(remat="full"))} == {"full"}


def test_a_search_takes_up_what_was_answered_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "config.json"
    model.write_text(json.dumps(dataclasses.asdict(SMALL)))
    words = ["--model", str(model), "--topology", "v5e:2x2", "--seq", "512", "--batch", "16", "--remat", "none"]
    asked = command.request_of(command.Command(model=str(model), topology="v5e:2x2", seq=512, batch=16, remat="none"))
    keep(answered(asked, fits=False), tmp_path, monkeypatch)
    assert main(["fit", *words, "--cache", str(tmp_path)]) == 1
    assert "`--search` looks" in capsys.readouterr().out
    candidates = list(command.nearest(asked))
    for candidate in candidates[:2]:
        keep(answered(candidate, fits=False), tmp_path, monkeypatch)
    keep(answered(candidates[2], fits=True), tmp_path, monkeypatch)
    assert main(["fit", *words, "--cache", str(tmp_path), "--search"]) == 1
    assert "nearest setting that fits, of 3 tried" in capsys.readouterr().out
    assert main(["fit", *words, "--cache", str(tmp_path), "--search", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is False
    assert [attempt["fits"] for attempt in document["search"]] == [False, False, True]


def test_an_answer_of_other_code_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(answered(request(), fits=True), tmp_path, monkeypatch)
    assert run_cell(request(), cache=tmp_path).fits
    monkeypatch.setattr(fit_cells, "code_digest", lambda *_: "other")
    with pytest.raises(ValueError, match="make fit-env"):
        run_cell(request(), cache=tmp_path)


def test_what_ran_out_of_time_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(request=request(), code=fit_cells.code_digest(), error="the compiler was stopped")
    keep(cell, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="make fit-env"):
        run_cell(request(), cache=tmp_path)
    assert describe(cell)[1].endswith("the compiler was stopped")


def test_the_table_has_the_reports_slices_and_three_that_are_rented() -> None:
    cells = fit_table.requests()
    assert len(cells) == 3 * 2 * 4
    own = cells["gemma2_27b-next_token-v5p-8x24x32"]
    assert (own.model, own.place.chips, own.mesh) == (gemma2_27b(), 6144, MeshShape(data=768, model=8))


def test_the_page_is_what_the_cells_say() -> None:
    assert fit_table.TABLE.read_text() == fit_table.table(), "run `make fit-table`"


@pytest.mark.chaos("the TPU compiler")
def test_the_tpu_compiler_refuses_a_step_without_remat_and_takes_it_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "config.json"
    model.write_text(json.dumps(dataclasses.asdict(SMALL)))
    words = ["--model", str(model), "--topology", "v5e:2x2", "--seq", "512", "--batch", "128", "--cache", str(tmp_path)]
    assert main(["fit", *words, "--remat", "none", "--json"]) == 1
    refused = json.loads(capsys.readouterr().out)
    assert not refused["problem"]
    assert refused["figures"]["peak_bytes"] > refused["figures"]["hbm_bytes"]
    assert refused["compiled"]["largest"][0]["bytes"] > 2**30
    assert main(["fit", *words, "--remat", "full", "--json"]) == 0
    taken = json.loads(capsys.readouterr().out)
    assert taken["figures"]["peak_bytes"] < taken["figures"]["hbm_bytes"] / 2
    # The program multiplies what the formula says, and its loops are all counted.
    assert taken["figures"]["matrix_ratio"] == pytest.approx(1.0, abs=0.01)
    assert taken["compiled"]["unknown_loops"] == []
    assert taken["compiled"]["kernels"] == 4 * SMALL.layers, "forward, once more for the backward pass, two gradients"
    # Every parameter is gathered at least once, and its gradient scattered.
    kinds = {collective["kind"]: collective for collective in taken["compiled"]["collectives"]}
    whole = 4 * taken["trace"]["parameter_bytes_per_chip"]
    assert kinds["all-gather"]["ici_bytes"] >= 0.7 * whole
    # Donated: parameters and moments are not held twice.
    assert taken["compiled"]["alias_bytes"] >= 0.99 * 3 * taken["trace"]["parameter_bytes_per_chip"]
