"""A model whose logits are not finite stops every stage that runs it, by the name of the checkpoint."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data import schema
from data.manifest import listed
from data.shards import write_table
from data.tokenizer import train_tokenizer
from model import Gemma2Config, gemma2_tiny
from pipelines.checkpoints.loaded import open_model
from pipelines.stages import audit_logits, cache_logits, evaluate_model, generate_text
from tests.programs.reference import lively_model
from training.checkpoints.save_load import save_checkpoint
from training.distill.kinds import KindName
from training.setup import Setup

ROWS, LENGTH = 4, 16
CPU = Setup(device="cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A checkpoint with one weight that is not a number."""
    sizes: Gemma2Config = gemma2_tiny(layers=1)
    weights = lively_model(layers=1).state_dict()
    weights["model.norm.weight"][3] = float("nan")
    state = {"step": 0, "identity": {"config": {"model": vars(sizes)}}}
    open_model.cache_clear()
    return save_checkpoint(str(tmp_path), step=0, weights=weights, optimizer=None, state=state, tables={})


@pytest.fixture
def sequences(tmp_path: Path) -> str:
    tokens = np.arange(ROWS * LENGTH, dtype=np.int32).reshape(ROWS, LENGTH) + 3
    ones, mask = np.ones_like(tokens), np.ones(tokens.shape, bool)
    mask[:, -1] = False
    columns = {
        "tokens": tokens.tolist(),
        "segment_ids": ones.tolist(),
        "positions": [list(range(LENGTH))] * ROWS,
        "loss_mask": mask.tolist(),
        "documents": [[]] * ROWS,
        "text_bytes": [LENGTH] * ROWS,
        "sequence_hash": schema.sequence_hashes(tokens, ones, mask),
    }
    shard = write_table(str(tmp_path), "sequences/0.parquet", pa.table(columns, schema=schema.SEQUENCES))
    return listed(str(tmp_path), shard)


def test_it_is_not_evaluated(checkpoint: str, sequences: str) -> None:
    work = evaluate_model._Evaluate(evaluate_model.Config(), checkpoint, CPU, (), 1024)
    with pytest.raises(ValueError, match=rf"{checkpoint}: the model's logits are not finite .its loss is nan"):
        work([sequences])


@pytest.mark.parametrize("kind", ["sample", "topk"])
def test_its_logits_are_not_cached(checkpoint: str, sequences: str, kind: KindName) -> None:
    config = cache_logits.Config(estimator=kind)
    spec = cache_logits.kept_kind(config).codec(1024)
    with pytest.raises(ValueError, match=rf"{checkpoint}: the teacher's logits are not finite; check"):
        cache_logits._Cache(config, checkpoint, CPU, spec)(sequences)


def test_it_audits_no_cache(checkpoint: str, sequences: str) -> None:
    config = cache_logits.Config()
    spec = cache_logits.kept_kind(config).codec(1024)
    work = audit_logits._Audit(config, checkpoint, CPU, spec, 50, "0", 0, "made as")
    task = audit_logits._Task(logits=sequences, sha256="", sequences=sequences, passes=(0,))
    with pytest.raises(ValueError, match=rf"{checkpoint}: the teacher's logits are not finite; check"):
        work(task)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_continues_no_prompt(checkpoint: str, tmp_path: Path, temperature: float) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_tokenizer([Path(__file__).read_text() * 9], 1024))
    config = generate_text.Config(max_new_tokens=2, temperature=temperature)
    work = generate_text._Generate(config, checkpoint, str(tmp_path / "tokenizer.model"), CPU, "source")
    with pytest.raises(ValueError, match=rf"{checkpoint}: the model's logits are not finite after 0 tokens"):
        work(["a prompt"])
