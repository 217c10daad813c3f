"""Whatever the files decide is refused before Ray starts."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data.logits import CodecSpec
from data.manifest import Dataset, Manifest, Shard, publish_manifest
from data.tokenizer import Tokenizer, train_tokenizer
from infra.ray_session import RaySession
from model import gemma2_tiny
from pipelines.checkpoints.loaded import committed_files
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, resolve_inputs
from pipelines.stages import audit_logits, cache_logits, evaluate_model, generate_text, train_model
from tests.programs.reference import lively_model
from training.checkpoints.save_load import save_checkpoint

TOKENIZER = train_tokenizer([f"{word} {word[::-1]}. " * 9 for word in Path(__file__).read_text().split()], 1024)
SHA256 = Tokenizer.from_bytes(TOKENIZER).sha256
SIZES = gemma2_tiny(layers=2)


class NoRay(RaySession):
    """A session that must not be asked for anything."""

    def start(self) -> None:
        raise AssertionError("Ray was started")

    def map(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("Ray was started")


class Root:
    """A folder of runs whose manifests are there and whose shards are not, so that nothing can read a row."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def publish(
        self, stage: str, fingerprint: str, datasets: dict[str, Any], config: Any = None, shards: Sequence[Shard] = ()
    ) -> str:
        unread = Shard(name="unread", rows=8, bytes=1, tokens=512, sha256="0" * 64)
        manifest = Manifest(
            stage=stage,
            version=1,
            fingerprint=fingerprint * 16,
            config=config or {},
            inputs={},
            datasets={name: Dataset(shards=(unread, *shards), facts=facts) for name, facts in datasets.items()},
            tokenizer_sha256=SHA256,
        )
        publish_manifest(str(self.directory / stage / (fingerprint * 16)), manifest)
        return f"{stage}/{fingerprint * 16}"

    def sequences(self) -> str:
        facts = {"vocab_size": 1024, "sequence_length": 64, "row_group_rows": 8, "source": "web"}
        rows = {**facts, "targets": 8, "text_bytes": 8}
        return self.publish("pack_sequences", "a", {"sequences": rows, "heldout": rows})

    def checkpoint(self, vocab_size: int = 1024, **identity: Any) -> str:
        sizes = replace(SIZES, vocab_size=vocab_size)
        state = {"step": 0, "tokens_seen": 0, "identity": {"config": {"model": asdict(sizes)}, **identity}}
        directory = self.directory / "import_model" / ("b" * 16)
        save_checkpoint(
            str(directory / "checkpoints"),
            step=0,
            weights=lively_model(sizes).state_dict(),
            optimizer=None,
            state=state,
            tables={},
        )
        files, steps = committed_files(str(directory))
        facts = {"steps": steps, "vocab_size": 1024}
        return self.publish("import_model", "b", {"checkpoints": facts}, shards=files["checkpoints"])

    def logits(self, sequences: str) -> str:
        codec = asdict(CodecSpec(vocab_size=1024, estimator="sample", draws=50))
        facts = {"codec": codec, "max_unique": 3, "teacher_sha256": "0", "made_as": "0", "targets": 8}
        cached = {name: value for name, value in vars(cache_logits.Config()).items() if name != "proposal"}
        return self.publish("cache_logits", "c", {"logits": {**facts, "sequences_reference": sequences}}, cached)

    def refused(self, stage: str, config: Any, message: str, resources: Resources, **given: str) -> None:
        loaded = load_stage(stage)
        inputs = resolve_inputs(loaded, config, {name: (text,) for name, text in given.items()}, str(self.directory))
        task = Task(stage=loaded, config=config, inputs=inputs, root=str(self.directory))
        with pytest.raises(ValueError, match=message):
            run_task(task, resources, NoRay(), lambda _: None)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "runs")


CPU = Resources(device="cpu")


def test_a_teacher_of_another_vocabulary(root: Root) -> None:
    sequences, teacher = root.sequences(), root.checkpoint(vocab_size=1152)
    message = "the teacher's vocabulary has 1152 ids and the sequences' vocabulary has 1024"
    root.refused("cache_logits", cache_logits.Config(), message, CPU, sequences=sequences, teacher=teacher)
    logits = root.logits(sequences)
    config = audit_logits.Config()
    root.refused("audit_logits", config, message, CPU, sequences=sequences, teacher=teacher, logits=logits)


def test_a_model_with_fewer_ids_than_its_rows_or_its_tokenizer(root: Root, tmp_path: Path) -> None:
    heldout, checkpoint = root.sequences(), root.checkpoint(vocab_size=1000)
    message = "ids up to 1023, beyond the model's vocabulary of 1000"
    root.refused("evaluate_model", evaluate_model.Config(), message, CPU, checkpoint=checkpoint, heldout=heldout)
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(TOKENIZER)
    message = "the tokenizer has 1024 ids and the model has 1000"
    config = generate_text.Config(prompt=("a",))
    root.refused("generate_text", config, message, CPU, checkpoint=checkpoint, tokenizer=str(tokenizer))


@pytest.mark.parametrize("prompt", ["many words " * 100_000, "x" * 1_000_000, "🙂" * 9000], ids=["words", "x", "bytes"])
def test_a_prompt_that_is_longer_than_the_context(root: Root, tmp_path: Path, prompt: str) -> None:
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(TOKENIZER)
    given = {"checkpoint": root.checkpoint(), "tokenizer": str(tokenizer)}
    message = r"prompt 2 \(.*\) has [0-9,]+ tokens; allowed are 8,128, so that it and max_new_tokens 64 fit in 8,192"
    root.refused("generate_text", generate_text.Config(prompt=("a", prompt)), message, CPU, **given)
    (tmp_path / "prompts.txt").write_text("a\n" + "b " * 9000)
    config = generate_text.Config(max_new_tokens=8191)
    root.refused(
        "generate_text", config, "prompt 1 .* allowed are 1,", CPU, prompts=str(tmp_path / "prompts.txt"), **given
    )


@pytest.mark.parametrize("count", [0, -1, 8192, 10**9])
def test_a_continuation_that_is_longer_than_the_context(count: int) -> None:
    with pytest.raises(ValueError, match="allowed are 1 to 8,191"):
        generate_text.Config(max_new_tokens=count)


def test_a_checkpoint_that_is_not_whole(root: Root) -> None:
    sequences, teacher = root.sequences(), root.checkpoint()
    (root.directory / teacher / "checkpoints" / "step-00000000" / "COMMIT").unlink()
    message = "is not a committed checkpoint"
    root.refused("cache_logits", cache_logits.Config(), message, CPU, sequences=sequences, teacher=teacher)
    root.refused("evaluate_model", evaluate_model.Config(), message, CPU, checkpoint=teacher, heldout=sequences)


@pytest.mark.parametrize(
    ("mesh", "rows", "message"),
    [("model=3", 8, "mesh axis model=3 does not divide"), ("data=4", 6, "got 6 rows in a step for replica=1 x data=4")],
)
def test_a_mesh_that_divides_neither_the_model_nor_the_rows(root: Root, mesh: str, rows: int, message: str) -> None:
    sequences, teacher = root.sequences(), root.checkpoint()
    chips = Resources(device="xla", mesh=mesh)
    config = cache_logits.Config(forward_rows=rows)
    root.refused("cache_logits", config, message, chips, sequences=sequences, teacher=teacher)
    evaluation = evaluate_model.Config(forward_rows=rows)
    root.refused("evaluate_model", evaluation, message, chips, checkpoint=teacher, heldout=sequences)


def test_a_mesh_that_does_not_divide_the_model_that_is_trained(root: Root) -> None:
    config = train_model.Config(model=SIZES, steps=4, global_batch=4)
    chips = Resources(device="xla", mesh="model=3")
    root.refused("train_model", config, "mesh axis model=3 does not divide", chips, sequences=root.sequences())


@pytest.mark.parametrize(
    ("mixture", "message"),
    [("0:nosuch=1", "names unknown datasets"), ("3:web=1", "start the first at 0"), ("0:web=0", "finite weights")],
)
def test_a_mixture_of_other_sources(root: Root, mixture: str, message: str) -> None:
    config = train_model.Config(model=SIZES, steps=4, global_batch=4, mixture=(mixture,))
    root.refused("train_model", config, message, CPU, sequences=root.sequences())


def test_a_checkpoint_that_cannot_be_carried_on(root: Root) -> None:
    sequences = root.sequences()
    carried = root.checkpoint(phases=[{"start_step": 0, "weights": [["web", 1.0]]}])
    config = train_model.Config(model=SIZES, steps=4, global_batch=4)
    given = {"sequences": sequences, "from": carried}
    root.refused("train_model", config, "has no moments to carry on with; give it as --initial", CPU, **given)
