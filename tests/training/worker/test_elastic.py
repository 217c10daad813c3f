"""A run that grows and shrinks with its cluster takes the rows and losses of one that does not."""

from pathlib import Path

import numpy as np
import pytest

from model import gemma2_tiny
from model.sharding import MeshShape
from tests.programs.chaos_log import Counts
from tests.programs.examples import VOCAB, example_job
from tests.training.worker.test_worker import in_process, losses, table
from training.worker.sizes import allowed_workers, job_at


@pytest.mark.chaos("training elastic")
def test_a_run_grows_without_a_lost_step_and_shrinks_to_its_last_checkpoint(tmp_path: Path, counts: Counts) -> None:
    outcome = in_process("elastic_run", tmp_path)
    first, grown, again = outcome["first_steps"]
    assert [grown] == outcome["drains"], "the steps before a growth are in its checkpoint"
    assert first == 0 < grown <= again  # equal where the node went before a regular checkpoint
    assert again % 200 == 0 or again == grown
    workers = {int(step): number for step, number in outcome["workers"].items()}
    assert {number for step, number in workers.items() if grown < step <= again} <= {2}
    assert {number for step, number in workers.items() if step <= grown or step > again} == {1}
    assert outcome["last"] == 1
    assert table(tmp_path, "elastic", "lineage").equals(table(tmp_path, "straight", "lineage"))
    # Of two workers the sums have another order: what that does to losses grows with the steps, as of any two set-ups.
    for stop, apart in ((grown, 0.0), (grown + 20, 1e-5)):
        pair = [losses(tmp_path, name)[:stop] for name in ("elastic", "straight")]
        np.testing.assert_allclose(*pair, rtol=apart)
    counts.add(kills=1, compared=len(losses(tmp_path, "elastic")))


def test_sizes_are_those_that_share_the_rows_of_a_step(tmp_path: Path) -> None:
    job = example_job(tmp_path, config={"global_batch": 24}, workers=6)
    assert allowed_workers(job, 2) == (2, 3, 4, 6)
    assert allowed_workers(job, 6) == (6,)
    assert allowed_workers(job, 2, hosts=2) == (2, 4, 6)
    small = example_job(tmp_path, config={"global_batch": 24}, workers=4, microbatch_rows=6)
    assert allowed_workers(small, 1) == (1, 2, 4)


def test_a_smallest_size_that_does_not_share_them_is_refused(tmp_path: Path) -> None:
    job = example_job(tmp_path, config={"global_batch": 24}, workers=6)
    with pytest.raises(
        ValueError, match=r"may go down to 5 workers; global_batch 24 can be shared .* by 1, 2, 3, 4, 6 workers"
    ):
        allowed_workers(job, 5)
    with pytest.raises(ValueError, match="may go down to 7 workers; global_batch"):
        allowed_workers(job, 7)


def test_the_mesh_has_a_copy_for_each_slice_that_is_left(tmp_path: Path) -> None:
    job = example_job(tmp_path, config={"global_batch": 64}, device="xla", workers=8, mesh="replica=2,data=16")
    assert allowed_workers(job, 4, hosts=4) == (4, 8)
    assert (job_at(job, 4).setup.workers, job_at(job, 4).setup.mesh) == (4, MeshShape(data=16))
    assert job_at(job, 8) == job
    sizes = {"d_model": 32, "ffw_dim": 64, "heads": 8, "kv_heads": 8, "head_dim": 16, "query_scale": 16}
    config = {"global_batch": 4, "model": gemma2_tiny(vocab_size=VOCAB, **sizes)}
    together = example_job(
        tmp_path, config=config, device="xla", workers=8, mesh="replica=2,data=2,model=8"
    )  # of 4 chips each: two workers read the same rows
    assert (together.worker_rows, allowed_workers(together, 4, hosts=4)) == (1, (4, 8))
    across = example_job(tmp_path, config={"global_batch": 64}, device="xla", workers=8, mesh="data=32")
    with pytest.raises(
        ValueError, match=r"down to 1 slices of 4 workers; global_batch 64 on mesh data=32 .* by 2 slices"
    ):
        allowed_workers(across, 4, hosts=4)
