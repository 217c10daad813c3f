"""python -m tests.programs.chaos [PART ...]: kills, flipped bits and false alarms in training, counted. No Ray.

    same_bits   200 steps straight against 200 steps with 5 kill -9, on every device here: lost, doubled, ulp
    saves       30 kill -9 during saves, at seeded moments, 10 of them with two writers: can the run always go on?
    flips       96 planted bit flips: each of the 32 bits of a weight, a moment and a gradient: how many are found?
    alarms      1,000 steps without any: how many alarms?
    save_cost   mean step over 500 steps with a save every 50, against without
    worlds      1, 2, 4 and 4 -> 2 -> 4 workers in the middle of an epoch: the rows of each step

`make chaos` runs all parts except those that passed before on this code. Each part ends with a line of figures. The
exit code is 1 if a target is missed.
"""

import dataclasses
import importlib.util
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.programs import chaos_log
from tests.programs.examples import example_job, made_up_feed, moved
from tests.programs.kills import first_step, in_process
from training import run as run_module
from training.backends.torch_backend import TorchBackend
from training.checkpoints.records import latest_checkpoint, list_checkpoints, read_rows
from training.checkpoints.save_load import load_checkpoint
from training.job import TrainJob
from training.loop import run_training


def ulps(left: np.ndarray, right: np.ndarray) -> int:
    """The largest distance between two arrays, counted in representable float32 numbers."""
    keys = []
    for array in (left, right):
        bits = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.int32).astype(np.int64)
        keys.append(np.where(bits < 0, -(bits & 0x7FFFFFFF), bits))
    return int(np.abs(keys[0] - keys[1]).max(initial=0))


def compared(directory: Path, reference: Path, steps: int) -> dict[str, int]:
    """Steps that a run's record lacks or repeats, and the distance of losses and weights from the reference."""
    runs = [
        {name: read_rows(str(folder), name) for name in ("metrics", "lineage")} for folder in (directory, reference)
    ]
    done = runs[0]["metrics"]["step"].to_numpy()
    newest = [latest_checkpoint(str(folder)) or "" for folder in (directory, reference)]
    weights = [load_checkpoint(uri).weights for uri in newest]
    same_rows = runs[0]["lineage"].equals(runs[1]["lineage"])
    return {
        "lost": len(set(range(1, steps + 1)) - set(done.tolist())) + (0 if same_rows else 1),
        "doubled": len(done) - len(set(done.tolist())),
        "ulp": max(
            ulps(*(run["metrics"]["loss_sum"].to_numpy() for run in runs)),
            *(ulps(tensor.numpy(), weights[1][name].numpy()) for name, tensor in weights[0].items()),
        ),
    }


def devices_here() -> tuple[str, ...]:
    """The devices to test. PyTorch for CUDA and torch_xla for CPUs are seldom installed together."""
    has_xla = importlib.util.find_spec("torch_xla") is not None
    return ("cpu",) + ("xla",) * has_xla + ("cuda",) * torch.cuda.is_available()


def same_bits(devices: tuple[str, ...] = (), steps: int = 200, kills: int = 5, seed: int = 0) -> bool:
    good = True
    devices = devices or devices_here()
    for device in devices:
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as temporary:
            straight, killed = Path(temporary) / "straight", Path(temporary) / "killed"
            assert in_process(straight, steps, device, 20) == 0
            died = 0
            for place in range(kills):
                low = steps * place // kills
                at = rng.randrange(low + 2, low + steps // kills)
                died += in_process(killed, steps, device, 20, kill_at=at) == -signal.SIGKILL
            assert in_process(killed, steps, device, 20) == 0
            damage = compared(killed, straight, steps)
        tell(
            f"same_bits {device}: steps {steps}, runs {kills + 2}, kills {died}, {_figures(damage)}",
            **{"runs": kills + 2, "kills": died, "compared": steps, **damage},
        )
        good = good and died == kills and not any(damage.values())
    return good


def saves(kills: int = 30, seed: int = 0) -> bool:
    """A third of the kills hit one of two workers that each write their part of a checkpoint."""
    pairs = kills // 3
    return saves_of("cpu", kills - pairs, seed) and saves_of("pair", pairs, seed)


def saves_of(device: str, kills: int, seed: int) -> bool:
    """Every process resumes where the last one was killed, and dies during one of its first saves."""
    rng = random.Random(seed)
    steps, every, died, stuck, older = 10 * (kills + 8), 5, 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        straight, killed = Path(temporary) / "straight", Path(temporary) / "killed"
        done = 0
        for number in range(kills + 1):
            at = done + rng.choice((1, 6)) if number < kills else 0
            code = in_process(killed, steps, device, every, kill_at=at, moment=rng.random(), dying=rng.randrange(2))
            died += code == -signal.SIGKILL
            stuck += code not in ((-signal.SIGKILL, 0) if at else (0,))
            older += first_step(killed) != done
            newest = latest_checkpoint(str(killed))
            if newest is not None:
                done = load_checkpoint(newest).step  # raises where what is committed is not whole
        assert in_process(straight, steps, device, every) == 0
        damage = compared(killed, straight, steps)
        kept = [[uri.rpartition("/")[2] for uri in list_checkpoints(str(run))] for run in (killed, straight)]
    figures = f"not resumable {stuck}, begun before the newest {older}, {_figures(damage)}"
    tell(
        f"saves {device}: runs {kills + 2}, kills {died}, {figures}",
        **{"runs": kills + 2, "kills": died, "compared": steps, **damage},
    )
    return died == kills and not stuck and not older and not any(damage.values()) and kept[0] == kept[1]


class FlippingBackend(TorchBackend):
    """Plain PyTorch that flips one bit at one step: of a weight or moment between two steps, or of a gradient."""

    def __init__(self, what: str, bit: int, step: int, rng: random.Random) -> None:
        super().__init__("cpu")
        self.what, self.bit, self.at, self.rng, self.steps = what, bit, step, rng, 0
        self.targets: list[torch.Tensor] = []

    def flip(self, tensors: list[torch.Tensor]) -> None:
        tensor = self.rng.choice([candidate for candidate in tensors if candidate.numel()])
        bits = tensor.detach().view(torch.int32).view(-1)
        place = self.rng.randrange(len(bits))
        bits[place] = bits[place] ^ (1 << self.bit if self.bit < 31 else -(1 << 31))

    def all_reduce_(self, tensors: Any) -> None:
        if self.what == "gradient" and self.steps == self.at:
            self.flip(list(tensors[:-1]))

    def step_boundary(self) -> None:
        self.steps += 1
        if self.steps == self.at and self.what in ("weight", "moment"):
            self.flip(self.targets)


def flips(count: int = 96, seed: int = 0) -> bool:
    """Plants a flip a run: of each of the 32 bits of a weight, a moment and a gradient, the sign's first.

    A run that the watch did not stop is replayed at the ends of its stretches between checkpoints.
    """
    from tests.programs.examples import write_sequences
    from training.faults import BadStep, Corrupted
    from training.replay import replay

    rng = random.Random(seed)
    caught = {"watch": 0, "bad step": 0, "replay": 0}
    kinds = ("weight", "moment", "gradient")
    planted = dict.fromkeys(kinds, 0)
    bits = rng.sample(range(31), 31)
    make_state = run_module.init_state
    for number in range(count):
        what, bit = kinds[number % 3], (31, *bits)[number // 3 % 32]
        planted[what] += 1
        with tempfile.TemporaryDirectory() as temporary:
            job = example_job(Path(temporary) / "checkpoints", config={"steps": 20, "checkpoint_every_steps": 10})
            job = write_sequences(Path(temporary), job)
            backend = FlippingBackend(what, bit, rng.randrange(3, 19), rng)

            def remember(parameters: Any, *rest: Any, backend: FlippingBackend = backend, **named: Any) -> Any:
                state = make_state(parameters, *rest, **named)
                moments = [*state.first.values(), *state.second.values()]
                backend.targets = list(parameters.values()) if backend.what == "weight" else moments
                return state

            run_module.init_state = remember  # type: ignore[assignment]
            try:
                run_training(job, backend, made_up_feed_from(job))
            except Corrupted:
                caught["watch"] += 1
                continue
            except BadStep:
                caught["bad step"] += 1
                continue
            finally:
                run_module.init_state = make_state
            steps = (10, 20)  # the ends of the two stretches between checkpoints
            caught["replay"] += any(replay(job, step).differences for step in steps)
    total = sum(caught.values())
    tell(
        f"flips: planted {count} {planted}, found {total} ({_figures(caught)})",
        runs=count,
        compared=count,
        lost=count - total,
    )
    return total == count


def made_up_feed_from(job: TrainJob) -> Any:
    from training.feed import direct_feed

    return direct_feed(job)


def alarms(steps: int = 1000) -> bool:
    """A run without planted faults, watched, and replayed at the end of each stretch between checkpoints."""
    from tests.programs.examples import write_sequences
    from training.faults import Corrupted
    from training.replay import replay

    raised = replayed = 0
    with tempfile.TemporaryDirectory() as temporary:
        config = {"steps": steps, "checkpoint_every_steps": 100, "spike_sigmas": 8.0}
        job = write_sequences(Path(temporary), example_job(Path(temporary) / "checkpoints", config=config))
        try:
            run_training(job, TorchBackend("cpu"), made_up_feed_from(job))
            for step in range(100, steps + 1, 100):
                result = replay(job, step)
                replayed += result.steps
                raised += bool(result.differences)
        except Corrupted:
            raised += 1
    tell(
        f"alarms: steps {steps}, replayed {replayed}, false alarms {raised}",
        runs=1,
        compared=replayed,
        doubled=raised,
    )
    return raised == 0 and replayed == steps


def save_cost(steps: int = 500, every: int = 50, rounds: int = 3) -> bool:
    """Both in turns, on one thread, so that the other core can write. A step of the model takes about 50 ms."""
    from model import gemma2_tiny

    def mean_step(every: int, directory: Path) -> float:
        model = gemma2_tiny(vocab_size=2048, d_model=128, ffw_dim=512, heads=4, kv_heads=2, head_dim=32, query_scale=32)
        job = example_job(
            directory, config={"model": model, "steps": steps, "checkpoint_every_steps": every, "keep_last": 2}
        )
        job = moved(dataclasses.replace(job, vocab_size=64), threads=1)
        began = time.perf_counter()
        run_training(job, TorchBackend("cpu"), made_up_feed(job))
        return (time.perf_counter() - began) / steps

    means: dict[int, list[float]] = {every: [], steps: []}
    for _ in range(rounds):
        for interval in (steps, every):
            with tempfile.TemporaryDirectory() as temporary:
                means[interval].append(mean_step(interval, Path(temporary)))
    saving, plain = min(means[every]), min(means[steps])
    tell(
        f"save_cost: {steps} steps, a save every {every}: {saving * 1e3:.2f} ms a step, {plain * 1e3:.2f} ms without, "
        f"ratio {saving / plain:.3f} (best of {rounds})",
        runs=2 * rounds,
    )
    return saving / plain <= 1.05


def worlds() -> bool:
    from tests.programs.worlds import rows_by_world

    with tempfile.TemporaryDirectory() as temporary:
        comparison = rows_by_world(Path(temporary))
    tell(f"worlds: {comparison}", runs=4, compared=comparison["rows"])
    return bool(comparison["same_rows"]) and comparison["steps"] > 0


def _figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def tell(line: str, **figures: int) -> None:
    """Prints a line, and keeps the line and its figures for the record of the part."""
    COUNTED.lines += (line,)
    COUNTED.add(**figures)
    print(line, flush=True)


COUNTED = chaos_log.Counts()
PARTS: dict[str, Callable[[], bool]] = {
    "same_bits": same_bits,
    "saves": saves,
    "flips": flips,
    "alarms": alarms,
    "save_cost": save_cost,
    "worlds": worlds,
}


def main(words: list[str]) -> int:
    if unknown := sorted(set(words) - PARTS.keys()):
        raise ValueError(f"no parts {unknown}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    missed = [part for part in words or PARTS if not passed(part, again=bool(words))]
    print(f"missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


def passed(part: str, again: bool) -> bool:
    """Runs the part. If it passed before on this code and is not named, its figures are printed instead."""
    global COUNTED
    before = chaos_log.kept(f"training {part}", "all")
    if before is not None and not again:
        print(*before.lines, sep="\n", flush=True)
        return True
    COUNTED, began = chaos_log.Counts(runs=0), time.monotonic()
    if not PARTS[part]():
        return False
    COUNTED.seconds = time.monotonic() - began
    chaos_log.keep(f"training {part}", "all", COUNTED)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
