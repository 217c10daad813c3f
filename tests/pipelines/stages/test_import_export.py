"""Weights from outside become a checkpoint and go out again, without a change and without Ray."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.manifest import Manifest
from data.tokenizer import train_tokenizer
from infra.ray_session import RaySession
from model import PAPER_VOCAB_SIZE, VOCAB_SIZE, Gemma2, gemma2_tiny, load_hf, save_hf
from pipelines.checkpoints.loaded import check_same_tokenizer, checkpoint_of, model_config_at, open_model
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, future_input, resolve_inputs
from pipelines.stages import export_model, import_model
from tests.model.test_google_weights import Malicious, google_layout
from tests.programs.reference import lively_model, random_tokens
from training.checkpoints.save_load import check_same_model, load_checkpoint
from training.setup import Setup

TOKENIZER = train_tokenizer([f"{word} {word[::-1]}. " * 9 for word in Path(__file__).read_text().split()], 1024)


class Stages:
    """Runs stages under one ROOT, as the command line does."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def task(self, stage: str, config: Any, **inputs: str | Path) -> Task:
        given = {name: (str(text),) for name, text in inputs.items()}
        loaded = load_stage(stage)
        resolved = resolve_inputs(loaded, config, given, str(self.root))
        return Task(stage=loaded, config=config, inputs=resolved, root=str(self.root))

    def run(self, stage: str, config: Any, **inputs: str | Path) -> tuple[Path, Manifest]:
        task = self.task(stage, config, **inputs)
        session = RaySession()
        manifest = run_task(task, Resources(), session, lambda _: None)
        assert session.started_seconds is None
        return Path(task.directory), manifest

    def bring_in(self, weights: Path, *, tokenizer: Path | None = None, **config: Any) -> Path:
        """The checkpoint's directory after import_model."""
        given = {} if tokenizer is None else {"tokenizer": tokenizer}
        directory, _ = self.run("import_model", import_model.Config(**config), weights=weights, **given)
        return directory / "checkpoints" / "step-00000000"

    def take_out(self, checkpoint: Path, **config: Any) -> Path:
        """The Hugging Face directory that export_model makes of what `bring_in` gave."""
        run = checkpoint.parents[1]
        directory, _ = self.run("export_model", export_model.Config(**config), checkpoint=run, tokenizer=run)
        return directory / "model"


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path / "runs")


def write_hf(directory: Path, model: Gemma2, **options: Any) -> Path:
    save_hf(model, directory, **options)
    (directory / "tokenizer.model").write_bytes(TOKENIZER)
    return directory


def hashes(directory: Path, pattern: str = "*") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.glob(pattern))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_out_and_in_again_changes_no_bit(stages: Stages, tmp_path: Path, dtype: torch.dtype) -> None:
    given = write_hf(tmp_path / "hf", lively_model(layers=3, rope_theta=500.0).to(dtype), shard_bytes=60_000)
    first = stages.bring_in(given)
    out = stages.take_out(first, shard_bytes=60_000)
    assert len(list(out.glob("*.safetensors"))) > 2
    assert hashes(out, "*.safetensors") == hashes(given, "*.safetensors")
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.model"):
        assert (out / name).read_bytes() == (given / name).read_bytes()
    assert stages.bring_in(out) == first, "the same files are the same run"
    again = stages.bring_in(stages.take_out(first))  # in one file now
    assert again != first
    assert hashes(again) == hashes(first)


def test_what_was_imported_is_read_by_reference_and_gives_the_same_logits(stages: Stages, tmp_path: Path) -> None:
    given = write_hf(tmp_path / "hf", lively_model().to(torch.bfloat16))
    task = stages.task("import_model", import_model.Config(), weights=given)
    run_task(task, Resources(), RaySession(), lambda _: None)
    checkpoint = future_input(task, "checkpoints")
    loaded = open_model(checkpoint_of(checkpoint), Setup(device="cpu"))
    assert loaded.step == 0
    tokens = random_tokens(2, 12, loaded.model.config)
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens), load_hf(given)(tokens))
    check_same_tokenizer(checkpoint, future_input(task, "tokenizer"))
    assert checkpoint.data.facts["vocab_size"] == 1024
    lower = open_model(checkpoint_of(checkpoint), Setup(device="cpu"), "bfloat16")
    assert {parameter.dtype for parameter in lower.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert lower.weights_sha256 == loaded.weights_sha256, "the hash is that of the weights as they are stored"
    with torch.no_grad():
        logits = lower.model(tokens)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, load_hf(given, dtype=None)(tokens))


def test_googles_layout_gives_the_same_checkpoint(stages: Stages, tmp_path: Path) -> None:
    model = lively_model(layers=2)
    (tmp_path / "tokenizer.model").write_bytes(TOKENIZER)
    torch.save({"model_state_dict": google_layout(model)}, tmp_path / "model.ckpt")
    google = stages.bring_in(tmp_path / "model.ckpt", tokenizer=tmp_path / "tokenizer.model", model=model.config)
    assert hashes(google) == hashes(stages.bring_in(write_hf(tmp_path / "hf", model)))


def test_a_run_that_was_stopped_before_its_manifest_keeps_the_checkpoint(stages: Stages, tmp_path: Path) -> None:
    given = write_hf(tmp_path / "hf", lively_model(layers=1))
    checkpoint = stages.bring_in(given)
    manifest = checkpoint.parents[1] / "_MANIFEST.json"
    before, modified = manifest.read_bytes(), (checkpoint / "COMMIT").stat().st_mtime_ns
    manifest.unlink()
    stages.bring_in(given)
    assert manifest.read_bytes() == before
    assert (checkpoint / "COMMIT").stat().st_mtime_ns == modified


def test_only_the_models_own_files_decide_the_fingerprint(stages: Stages, tmp_path: Path) -> None:
    def fingerprint() -> str:
        return stages.task("import_model", import_model.Config(), weights=given).fingerprint

    given = write_hf(tmp_path / "hf", lively_model(layers=1))
    before = fingerprint()
    (given / "README.md").write_text("Another card.")
    (given / "original").mkdir()
    (given / "original" / "model.ckpt").write_bytes(b"not read")
    assert fingerprint() == before
    (given / "tokenizer.model").write_bytes(TOKENIZER + b"\n")
    assert fingerprint() != before


def test_the_padding_rows_change_only_when_asked(stages: Stages, tmp_path: Path) -> None:
    small = {"d_model": 2, "heads": 1, "kv_heads": 1, "head_dim": 2, "ffw_dim": 2, "layers": 1}
    given = write_hf(tmp_path / "hf", Gemma2(gemma2_tiny(vocab_size=PAPER_VOCAB_SIZE, **small)))
    as_stored, cut = stages.bring_in(given), stages.bring_in(given, vocab_size=VOCAB_SIZE)
    rows = {path: load_file(path / "model.safetensors")["model.embed_tokens.weight"] for path in (as_stored, cut)}
    assert len(rows[as_stored]) == PAPER_VOCAB_SIZE
    assert torch.equal(rows[cut], rows[as_stored][:VOCAB_SIZE])
    out = stages.take_out(as_stored, vocab_size=VOCAB_SIZE)
    assert hashes(out, "*.safetensors") == hashes(stages.take_out(cut), "*.safetensors")
    grown = load_hf(stages.take_out(cut, vocab_size=PAPER_VOCAB_SIZE)).model.embed_tokens.weight
    assert not grown[VOCAB_SIZE:].any()
    with pytest.raises(ValueError, match="rows are changed only between 256000 and 256128"):
        stages.bring_in(given, vocab_size=256_001)


def test_weights_can_leave_as_another_type(stages: Stages, tmp_path: Path) -> None:
    checkpoint = stages.bring_in(write_hf(tmp_path / "hf", lively_model(layers=1)))
    out = stages.take_out(checkpoint, dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert "Weights are bfloat16" in (out / "README.md").read_text()


def drop_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "config", "message"),
    [
        (drop_a_tensor, {}, r"model\.norm\.weight is missing"),
        (lambda directory: (directory / "tokenizer.model").unlink(), {}, r"there is no tokenizer\.model in"),
        (lambda directory: (directory / "config.json").unlink(), {}, r"safetensors and no config\.json; give"),
        (lambda directory: (directory / "model.safetensors").unlink(), {}, "holds no weights"),
        (lambda _: None, {"model": gemma2_tiny()}, r"has the model's sizes in config\.json; leave --model out"),
        (lambda directory: (directory / "tokenizer.model").write_bytes(b"no"), {}, "not a SentencePiece model"),
        (lambda directory: swap_for_adapter(directory), {}, r"no model\.safetensors.*holds an adapter: merge"),
        (
            lambda directory: swap_for_bins(directory, "b.bin", "c.bin"),
            {},
            r"b\.bin, c\.bin and no pytorch_model\.bin\.",
        ),
        (lambda directory: of_google(directory), {}, r"config\.json has no model_type; give --model gemma2_2b"),
        (
            lambda directory: swap_for_bins(directory, "pytorch_model.bin"),
            {"model": gemma2_tiny()},
            "leave --model out",
        ),
        (lambda directory: unfinished(directory), {}, r"there is no .*two\.bin"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_its_name(
    stages: Stages, tmp_path: Path, spoil: Callable[[Path], None], config: dict[str, Any], message: str
) -> None:
    given = write_hf(tmp_path / "hf", lively_model(layers=1))
    spoil(given)
    with pytest.raises(ValueError, match=message) as refused:
        stages.bring_in(given, **config)
    if "SentencePiece" not in message:
        assert str(given) in str(refused.value)
    assert not list(stages.root.glob("import_model/*/_MANIFEST.json"))


def swap_for_adapter(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")


def swap_for_bins(directory: Path, *names: str, legacy: bool = False) -> dict[str, str]:
    """The weights as pickles of these names; name of a tensor -> file."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = {tensor: names[number % len(names)] for number, tensor in enumerate(tensors)}
    for name in names:
        part = {tensor: tensors[tensor].clone() for tensor in files if files[tensor] == name}
        torch.save(part, directory / name, _use_new_zipfile_serialization=not legacy)
    return files


def of_google(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model.ckpt")
    (directory / "config.json").write_text('{"vocab_size": 256000}')


def unfinished(directory: Path) -> None:
    files = swap_for_bins(directory, "one.bin", "two.bin")
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    (directory / "two.bin").unlink()


@pytest.mark.parametrize("kind", ["one file", "before PyTorch 1.6", "shards", "one file alone", "google's names"])
def test_pickled_weights_give_the_same_checkpoint_as_safetensors(stages: Stages, tmp_path: Path, kind: str) -> None:
    model = lively_model(layers=2)
    wanted = hashes(stages.bring_in(write_hf(tmp_path / "safe", model)))
    given = write_hf(tmp_path / "pickled", model)
    if kind == "shards":
        files = swap_for_bins(given, "one.bin", "two.bin")
        (given / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        swap_for_bins(given, "pytorch_model.bin", legacy=kind == "before PyTorch 1.6")
    if kind == "google's names":
        torch.save({"model_state_dict": google_layout(model)}, given / "pytorch_model.bin")
    (given / "training_args.bin").write_bytes(b"a pickle that is not opened")
    if kind == "one file alone":
        brought = stages.bring_in(given / "pytorch_model.bin", tokenizer=given / "tokenizer.model", model=model.config)
    else:
        brought = stages.bring_in(given)
    assert hashes(brought) == wanted


def test_a_pickle_that_would_run_code_is_refused(stages: Stages, tmp_path: Path) -> None:
    given = write_hf(tmp_path / "hf", lively_model(layers=1))
    swap_for_bins(given, "pytorch_model.bin")
    torch.save(Malicious(), given / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        stages.bring_in(given)


def test_another_tokenizer_than_the_one_beside_the_weights_is_refused(stages: Stages, tmp_path: Path) -> None:
    given = write_hf(tmp_path / "hf", lively_model(layers=1))
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer([Path(__file__).read_text() * 9], 1024))
    with pytest.raises(ValueError, match="the tokenizer beside the weights; leave --tokenizer out"):
        stages.bring_in(given, tokenizer=other)
    checkpoint = stages.bring_in(given)
    with pytest.raises(ValueError, match=r"got tokenizer \w+ .*was trained with \w+; give the tokenizer"):
        stages.run("export_model", export_model.Config(), checkpoint=checkpoint.parents[1], tokenizer=other)


def test_a_model_with_fewer_rows_than_the_tokenizer_has_ids_is_refused(stages: Stages, tmp_path: Path) -> None:
    given = write_hf(tmp_path / "hf", lively_model(layers=1, vocab_size=1000))
    with pytest.raises(ValueError, match="the tokenizer has 1024 ids and the model has 1000 rows"):
        stages.bring_in(given)


def test_a_snapshot_made_of_links_is_a_directory_like_others(stages: Stages, tmp_path: Path) -> None:
    given = write_hf(tmp_path / "blobs", lively_model(layers=1))
    (tmp_path / "snapshot").mkdir()
    for path in given.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert stages.bring_in(tmp_path / "snapshot") == stages.bring_in(given)


@pytest.mark.slow  # imports transformers
def test_transformers_reads_what_was_exported(stages: Stages, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from data.tokenizer import BOS, Tokenizer

    model = lively_model(query_scale=20, window=7)
    out = stages.take_out(stages.bring_in(write_hf(tmp_path / "hf", model)), shard_bytes=100_000)
    theirs = AutoModelForCausalLM.from_pretrained(out)
    tokens = random_tokens(2, 20, model.config)
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() <= 1e-4
    assert GenerationConfig.from_pretrained(out).eos_token_id == [1, 107]

    text = Path(__file__).read_text()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer(text).input_ids == [BOS, *Tokenizer.from_bytes(TOKENIZER).encode(text)]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    (out / "tokenizer.json").unlink()  # what others write: the SentencePiece model alone
    assert AutoTokenizer.from_pretrained(out)(text).input_ids == tokenizer(text).input_ids


def test_another_runs_step_put_in_place_is_refused_by_name(stages: Stages, tmp_path: Path) -> None:
    """Its COMMIT fits its files, but it is not the COMMIT of the manifest."""
    first, second = (stages.bring_in(write_hf(tmp_path / str(n), lively_model(layers=n))) for n in (1, 2))
    aside = tmp_path / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    message = rf"{first}/COMMIT has sha256 \w+, and the manifest of its run lists \w+: it is damaged, or the checkpoint"
    with pytest.raises(ValueError, match=message):
        stages.take_out(first)
    checkpoint = stages.task(
        "export_model", export_model.Config(), checkpoint=first.parents[1], tokenizer=first.parents[1]
    ).inputs["checkpoint"][0]
    uri = checkpoint_of(checkpoint)
    for opened in (
        lambda: open_model(uri, Setup(device="cpu")),
        lambda: model_config_at(uri),
        lambda: load_checkpoint(uri),
        lambda: check_same_model(uri, gemma2_tiny()),
        lambda: open_model(pickle.loads(pickle.dumps(uri)), Setup(device="cpu")),  # as a worker gets it
    ):
        with pytest.raises(ValueError, match=message):
            opened()


def test_weights_that_change_after_their_fingerprint_are_refused(stages: Stages, tmp_path: Path) -> None:
    given = write_hf(tmp_path / "hf", lively_model(layers=1))
    task = stages.task("import_model", import_model.Config(), weights=given)
    save_hf(lively_model(layers=1, norm_eps=1e-5), tmp_path / "other")
    for name in ("config.json", "model.safetensors"):
        before = (given / name).read_bytes()
        (given / name).write_bytes((tmp_path / "other" / name).read_bytes()[:-1] + b"\n")
        with pytest.raises(ValueError, match=rf"{name} changed after the run began"):
            run_task(task, Resources(), RaySession(), lambda _: None)
        (given / name).write_bytes(before)
    assert not list(stages.root.glob("import_model/*/_MANIFEST.json"))
