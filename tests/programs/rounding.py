"""What bfloat16 does to a teacher's distribution: `python -m tests.programs.rounding` prints docs/numerics.md's table.

A teacher is trained in float32 on Python's standard library, and gives its distributions at the targets of held-out
rows twice: in float32, and with weights and activations in bfloat16. Cost: three minutes of one core.
"""

import copy
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import schema, shards, storage
from data.order import MixturePhase, SequenceDataset
from data.packing import Document, pack_documents
from data.tokenizer import Tokenizer, train_tokenizer
from model import Gemma2, gemma2_tiny
from training.backends.torch_backend import TorchBackend
from training.checkpoints.save_load import load_checkpoint
from training.config import OptimizerConfig, TrainingConfig
from training.feed import direct_feed
from training.job import TrainJob
from training.loop import run_training
from training.setup import Setup

VOCAB, LENGTH, BATCH, STEPS = 4096, 256, 8, 300
HELDOUT_ROWS = 32


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="g2r-rounding-") as folder:
        teacher, rows = trained(Path(folder))
    print(f"{'trained steps':>13} {'entropy':>8} {'KL mean':>9} {'99 %':>9} {'largest':>9} {'best id':>8}")
    for steps, weights in teacher.items():
        figures = compared(weights, rows)
        print(
            f"{steps:>13} {figures['entropy']:>8.3f} {figures['mean']:>9.2e} {figures['99']:>9.2e} "
            f"{figures['largest']:>9.2e} {figures['best']:>8.2%}"
        )


def trained(folder: Path) -> tuple[dict[int, dict[str, Tensor]], np.ndarray]:
    """The teacher's weights by number of steps, and held-out rows of tokens [rows, LENGTH]."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for path in sorted(library.glob("[a-t]*.py"))]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(texts, VOCAB))
    documents = [
        Document(id=str(number), tokens=np.array(tokenizer.encode_document(text), np.int32), text_bytes=1)
        for number, text in enumerate(texts)
    ]
    table = pack_documents(documents, LENGTH)
    seen = table.slice(0, table.num_rows - HELDOUT_ROWS)
    shards.write_table(str(folder), "rows.parquet", seen, row_group_rows=BATCH)
    dataset = SequenceDataset(name="rows", shard_rows=(seen.num_rows,), row_group_rows=BATCH)
    job = TrainJob(
        config=TrainingConfig(
            model=config(), steps=STEPS, global_batch=BATCH, checkpoint_every_steps=STEPS // 3,
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=20),
        ),
        checkpoints_uri=storage.join(str(folder), "checkpoints"),
        sequences=((dataset, (storage.join(str(folder), "rows.parquet"),)),),
        phases=(MixturePhase(start_step=0, weights=(("rows", 1.0),)),),
        sequence_length=LENGTH,
        vocab_size=VOCAB,
        setup=Setup(device="cpu"),
    )  # fmt: skip
    run_training(job, TorchBackend("cpu"), direct_feed(job))
    steps = (STEPS // 3, STEPS)
    weights = {
        step: load_checkpoint(storage.join(job.checkpoints_uri, f"step-{step:08d}"), with_optimizer=False).weights
        for step in steps
    }
    heldout = table.slice(table.num_rows - HELDOUT_ROWS)
    return weights, np.array(heldout.select(schema.SEQUENCES.names)["tokens"].to_pylist(), np.int32)


def config() -> Any:
    return gemma2_tiny(
        vocab_size=VOCAB, d_model=256, layers=6, heads=4, kv_heads=2, head_dim=64, ffw_dim=1024, window=128,
        query_scale=64,
    )  # fmt: skip


@torch.no_grad()
def compared(weights: dict[str, Tensor], rows: np.ndarray) -> dict[str, float]:
    """KL(float32 to bfloat16) in nats over all positions but the last of a row; the share of equal best ids."""
    exact = Gemma2(config())
    exact.load_state_dict(weights)
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    kl, entropy, best = [], [], []
    for tokens in torch.from_numpy(rows):
        logits, others = (model(tokens[None])[0, :-1] for model in (exact, rounded))
        log_p, log_q = (torch.log_softmax(part.double(), -1) for part in (logits, others))
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
        entropy.append(-(log_p.exp() * log_p).sum(-1))
        best.append(logits.argmax(-1) == others.argmax(-1))
    all_kl = torch.cat(kl)
    return {
        "mean": all_kl.mean().item(),
        "99": all_kl.quantile(0.99).item(),
        "largest": all_kl.max().item(),
        "entropy": torch.cat(entropy).mean().item(),
        "best": torch.cat(best).double().mean().item(),
    }


if __name__ == "__main__":
    main()
