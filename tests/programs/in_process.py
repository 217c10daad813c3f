"""The data stages in this process, without Ray: the same work, the same sink, the same commits.

python -m tests.programs.in_process ROOT CORPUS [KILL_AT]: runs every data stage over CORPUS and prints the number of
places to die at: just before and just after each rename, link and removal. With KILL_AT, it dies there by kill -9.
"""

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from data.manifest import Manifest
from infra.ray_session import RaySession
from pipelines.engine.resources import Resources
from pipelines.engine.runner import run_task
from pipelines.engine.stage import load_stage
from pipelines.engine.task import Task, future_input, resolve_texts

CHAIN: tuple[tuple[str, dict[str, Any], dict[str, tuple[str, str]]], ...] = (
    ("collect_text", {"source": "corpus", "shard_bytes": 100_000}, {"input": ("", "documents")}),
    ("filter_text", {}, {"text": ("collect_text", "text")}),
    ("deduplicate_text", {"part_rows": 400}, {"text": ("filter_text", "text")}),
    (
        "decontaminate_text",
        {"action": "mask"},
        {"text": ("deduplicate_text", "text"), "evaluation": ("", "evaluation")},
    ),
    ("train_tokenizer", {"vocab_size": 1024}, {"text": ("decontaminate_text", "text")}),
    ("tokenize_text", {}, {"text": ("decontaminate_text", "text"), "tokenizer": ("train_tokenizer", "tokenizer")}),
    (
        "pack_sequences",
        {"sequence_length": 64, "shard_tokens": 50_000, "require_heldout": False},
        {"tokens": ("tokenize_text", "tokens")},
    ),
)
"""stage, config, inputs: (earlier stage, its dataset), or ("", a folder beside the corpus)"""


class InProcess(RaySession):
    """Runs tasks one after another in this process. Objects that Ray would send are turned into bytes and back."""

    def start(self) -> None:
        self.started_seconds = 0.0

    def map(
        self,
        tasks: Mapping[int, Any],
        work: Callable[[int, Any], dict[str, Any]],
        *,
        whole_node: bool = False,
        mesh: str = "",
    ) -> Iterator[dict[str, Any]]:
        for number, task in tasks.items():
            yield {**work(number, pickle.loads(pickle.dumps(task))), "node": "here"}

    def close(self) -> None:
        pass


def chain(root: str, corpus: str, changed: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> dict[str, Task]:
    """The tasks of all data stages, by stage. `changed`: stage -> changed fields of its config."""
    tasks: dict[str, Task] = {}
    for name, fields, sources in CHAIN:
        stage = load_stage(name)
        config = stage.config(**{**fields, **changed.get(name, {})})
        inputs = {
            key: (future_input(tasks[source], dataset),)
            if source
            else resolve_texts(stage.reads[key], config, [f"{corpus}/{dataset}"], root)
            for key, (source, dataset) in sources.items()
        }
        tasks[name] = Task(stage=stage, config=config, inputs=inputs, root=root)
    return tasks


def run_chain(root: str, corpus: str, session: RaySession) -> dict[str, Manifest]:
    """Manifests of all data stages, by stage. Runs the stages that have none."""
    tasks = chain(root, corpus)
    return {name: run_task(task, Resources(), session, say=lambda _: None) for name, task in tasks.items()}


def count_places(kill_at: int | None) -> Callable[[], int]:
    """Counts the places to die at from here on, and dies at one of them. A call returns the count."""
    seen = 0

    def place() -> None:
        nonlocal seen
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    for name in ("replace", "link", "unlink"):
        plain = getattr(os, name)

        def watched(*arguments: Any, plain: Callable[..., None] = plain, **named: Any) -> None:
            place()
            plain(*arguments, **named)
            place()

        setattr(os, name, watched)
    return lambda: seen


def main(root: str, corpus: str, kill_at: str = "") -> None:
    count = count_places(int(kill_at) if kill_at else None)
    run_chain(root, corpus, InProcess())
    print(count())


if __name__ == "__main__":
    main(*sys.argv[1:])
