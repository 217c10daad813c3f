"""The parts of the time of tokenize_text: python -m tests.benchmarks.tokenize_parts MODEL

It times each part of the work in workers that have not seen the texts before. The rest of the cores' time is Ray's. It
needs its own process with its own Ray. Prints {part: share of the cores' time}.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import shards
from data.tokenizer import Tokenizer
from pipelines.stages import tokenize_text
from tests.benchmarks import corpus
from tests.benchmarks.stage_runs import warm_session
from tests.benchmarks.step_speed import Row

SHARDS, CORES = 16, 2


def rows(model: Path) -> Iterator[Row]:
    words = [sys.executable, "-m", "tests.benchmarks.tokenize_parts", str(model)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}  # not our Ray
    done = subprocess.run(words, cwd=corpus.REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")
    for part, share in json.loads(done.stdout.splitlines()[-1]).items():
        yield Row(what=f"  of which {part}", ours=f"{share:.1%}", rival="", ratio="")


def shares(model: Path) -> dict[str, float]:
    whole = corpus.corpus()
    with warm_session() as (session, folder):
        local = folder / "tokenizer.model"
        local.write_bytes(model.read_bytes())
        work = Clocked(tokenize_text._Tokenize(tokenize_text.Config(), str(local), Tokenizer.load(str(local)).sha256))
        small = corpus.cut_run(whole, 1_000_000, CORES, folder / "small")
        list(session.map(dict(enumerate(corpus.uris_of(small))), work))
        tasks = dict(enumerate(corpus.uris_of(corpus.subset(whole, SHARDS, folder / "text"))))
        began = time.perf_counter()
        total: dict[str, float] = {}
        for row in session.map(tasks, work):
            for part, seconds in json.loads(row["seconds"]).items():
                total[part] = total.get(part, 0.0) + seconds
        cores = CORES * (time.perf_counter() - began)
    total["Ray, and cores without work"] = cores - sum(total.values())
    return {part: seconds / cores for part, seconds in sorted(total.items(), key=lambda item: -item[1])}


@dataclass(frozen=True)
class Clocked:
    """The work of tokenize_text, with the seconds of its parts in the worker as facts."""

    work: Any

    def __call__(self, number: int, uri: str) -> dict[str, Any]:
        seconds: dict[str, float] = {}
        places = [
            ("read", shards, "read_table"),
            ("encode", Tokenizer, "encode_documents"),
            ("check", tokenize_text._Tokenize, "_check"),
        ]
        before = [(owner, name, getattr(owner, name)) for _, owner, name in places]
        began = time.perf_counter()
        try:
            for part, owner, name in places:
                setattr(owner, name, _clocked(getattr(owner, name), part, seconds))
            table = self.work(uri).parts["tokens"].table
        finally:
            for owner, name, plain in before:
                setattr(owner, name, plain)
        made = time.perf_counter()
        data = shards.parquet_bytes(table)
        written = time.perf_counter()
        target = Path(self.work.tokenizer_uri).parent / f"written-{number}"
        shards.write_file(str(target), "tokens.parquet", data)
        ended = time.perf_counter()
        seconds |= {"parquet and zstd": written - made, "write and sha256": ended - written}
        seconds["rest of the work"] = made - began - sum(seconds[part] for part, _, _ in places)
        return {"seconds": json.dumps(seconds), "error": "", "is_input": False}


def _clocked(plain: Callable[..., Any], part: str, seconds: dict[str, float]) -> Callable[..., Any]:
    def clocked(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(*arguments, **named)
        finally:
            seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - began

    return clocked


if __name__ == "__main__":
    print(json.dumps(shares(Path(sys.argv[1]))))
