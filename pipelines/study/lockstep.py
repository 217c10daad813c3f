"""Trains all arms of one seed, step by step over the same rows, with shared targets of the teacher.

    rows of step s -> teacher, half of the rows in each thread -> every arm's train_step, in a pool of threads

Each arm computes in one thread, so its figures depend neither on the other arms nor on the number of threads. Metrics
are JSON lines, one file for each arm and seed. The last line marks a finished arm, which is not run again. An arm that
was interrupted starts over.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from data import storage
from model import Gemma2, Gemma2Config
from pipelines.study.arms import Arm, Teacher, join
from pipelines.study.scores import curve_point, final_scores
from pipelines.study.sizes import Sizes
from pipelines.study.text import Text
from training.backends.torch_backend import TorchBackend
from training.checkpoints.digests import weights_hash
from training.loss import LossFunction
from training.optim import OptimizerState, init_state, step_scalars
from training.step import train_step

METRICS = "metrics"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One student: an arm, its seed, and the shape of the model."""

    name: str
    """name of its metrics file"""
    arm: Arm
    seed: int
    student: Gemma2Config


class Student:
    """A model in training and its measurements."""

    def __init__(self, trial: Trial, sizes: Sizes) -> None:
        self.trial, self.sizes = trial, sizes
        self.model = Gemma2(trial.student, seed=trial.seed)
        self.loss: LossFunction = trial.arm.loss()
        self.state: OptimizerState = init_state(
            {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        )
        self.backend = TorchBackend("cpu")
        self.lines: list[dict[str, Any]] = []
        self.cpu_seconds = 0.0
        self.tokens = 0

    def step(self, step: int, batch: Mapping[str, Tensor]) -> None:
        """Takes one optimizer step; steps count from 0."""
        began = time.thread_time()
        scalars = torch.tensor(step_scalars(self.sizes.student_optimizer, step, self.sizes.student_steps))
        train_step(self.model, self.loss, self.state, [batch], scalars, self.sizes.student_optimizer, self.backend)
        # The time of this thread, which does all work of the arm, so that other programs do not count.
        self.cpu_seconds += time.thread_time() - began
        self.tokens += batch["tokens"].numel()


def trials(sizes: Sizes, arms: Sequence[Arm]) -> list[Trial]:
    """Every arm with every seed."""
    return [
        Trial(name=f"{arm.name}-{seed}", arm=arm, seed=seed, student=sizes.student)
        for seed in sizes.seeds
        for arm in arms
    ]


def run_trials(
    chosen: Sequence[Trial], sizes: Sizes, text: Text, teacher: Gemma2, directory: str,
    tell: Callable[[str], None], threads: int,
) -> None:  # fmt: skip
    """Trains and scores the unfinished trials, all trials of one seed together."""
    left = [trial for trial in chosen if not is_done(directory, trial.name)]
    torch.set_num_threads(1)
    hash_of_teacher = weights_hash(teacher.state_dict())
    with ThreadPoolExecutor(threads) as pool:
        for seed in sorted({trial.seed for trial in left}):
            together = [trial for trial in left if trial.seed == seed]
            arms = tuple({trial.arm.name: trial.arm for trial in together}.values())
            oracle = Teacher(teacher, hash_of_teacher, arms)
            _run_seed([Student(trial, sizes) for trial in together], seed, sizes, text, oracle, directory, tell, pool)


def _run_seed(
    students: list[Student], seed: int, sizes: Sizes, text: Text, teacher: Teacher, directory: str,
    tell: Callable[[str], None], pool: Executor,
) -> None:  # fmt: skip
    rows = sizes.student_rows
    order = text.order(seed, sizes.student_steps * rows)
    for step in range(sizes.student_steps):
        chosen = order[step * rows : (step + 1) * rows]
        halves = [text.students.batch(half) for half in np.array_split(chosen, 2)]
        parts = list(pool.map(teacher.targets, halves))
        batches = {name: join([part[name] for part in parts]) for name in parts[0]}
        list(pool.map(lambda student: student.step(step, batches[student.trial.arm.name]), students))  # noqa: B023
        if (step + 1) % sizes.eval_every_steps == 0 or step + 1 == sizes.student_steps:
            points = list(pool.map(lambda student: curve_point(student.model, text.heldout, sizes), students))
            for student, (loss_sum, targets) in zip(students, points, strict=True):
                point = {"step": step + 1, "tokens": student.tokens, "loss_sum": loss_sum, "targets": targets}
                student.lines.append(point)
            losses = ", ".join(
                f"{student.trial.name} {student.lines[-1]['loss_sum'] / points[0][1]:.3f}" for student in students
            )
            tell(f"seed {seed}: step {step + 1} of {sizes.student_steps}: {losses}")
    scored = final_scores([student.model for student in students], teacher.model, text.heldout, sizes, pool)
    for student, scores in zip(students, scored, strict=True):
        final = {
            "done": True,
            "trial": student.trial.name,
            "arm": student.trial.arm.name,
            "learns_from": student.trial.arm.learns_from,
            "seed": seed,
            "step_cpu_seconds": student.cpu_seconds,
            "tokens": student.tokens,
            "teacher_cpu_seconds": sum(teacher.forward_cpu_seconds),
            "parameters": sum(parameter.numel() for parameter in student.model.parameters()),
            **scores,
        }
        weights = {name: tensor.contiguous() for name, tensor in student.model.state_dict().items()}
        storage.write_bytes(weights_uri(directory, student.trial.name), safetensors.torch.save(weights))
        lines = [*student.lines, final]
        data = "".join(json.dumps(line) + "\n" for line in lines)
        storage.write_bytes(_uri(directory, student.trial.name), data.encode())


def is_done(directory: str, name: str) -> bool:
    """Whether the trial's metrics are complete."""
    return storage.exists(_uri(directory, name))


def read_trial(directory: str, name: str) -> list[dict[str, Any]]:
    """The lines of a trial: points of its curve, then its final measurements."""
    return [json.loads(line) for line in storage.read_bytes(_uri(directory, name)).decode().splitlines()]


def weights_uri(directory: str, name: str) -> str:
    """The URI of the trained student, as safetensors."""
    return storage.join(directory, "weights", name.replace(" ", "_") + ".safetensors")


def _uri(directory: str, name: str) -> str:
    return storage.join(directory, METRICS, name.replace(" ", "_") + ".jsonl")
