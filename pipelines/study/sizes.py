"""How large the study is: everything that decides its figures, in one frozen dataclass.

A study lives in a directory named by the hash of that, so figures of two sizes never mix.
"""

import dataclasses
import hashlib
import json
from typing import Any

from data import storage
from data.absent import present
from pipelines.engine.errors import UserError
from pipelines.recipes.sizes import TeacherAndStudents, shape
from training.config import OptimizerConfig

VERSION = 1
"""raised where the code computes something else from the same sizes"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(TeacherAndStudents):
    """Text, teacher, students and what is measured of them."""

    vocab_size: int = 4096
    """pieces of the tokenizer"""
    sequence_length: int = 128
    """tokens in a row"""
    batch_rows: int = 16
    """rows in a step of the teacher, and in a forward pass of the scoring"""
    student_rows: int = 8
    """rows in a step of a student"""
    max_files: int | None = None
    """files of the standard library that are read (None: all)"""
    teacher_optimizer: OptimizerConfig
    """the teacher's schedule, on rows that no student sees"""
    student_optimizer: OptimizerConfig
    """the students' schedule, the same in all arms"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each gives initial weights and an order of rows, shared by all arms"""
    alpha: float = 0.2
    """weight of the next token in the arm that mixes it in"""
    eval_every_steps: int = 40
    """steps between points of the curves"""
    eval_rows: int = 64
    """held-out rows of a point of the curves"""
    heldout_rows: int = 512
    """held-out rows of the final figures, from as many documents as there are"""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds are {self.seeds}; give at least one, and none twice")
        if self.eval_rows > self.heldout_rows:
            raise UserError(f"eval_rows is {self.eval_rows}; it can be at most heldout_rows = {self.heldout_rows}")

    def directory(self, root: str) -> str:
        """Where this study lies under `root`."""
        return storage.join(root, "study", digest(self))

    def teacher_directory(self, root: str) -> str:
        """Where text and teacher lie, which studies of several students share."""
        shared = ("vocab_size", "sequence_length", "batch_rows", "max_files", "teacher", "teacher_steps",
                  "teacher_optimizer", "heldout_rows")  # fmt: skip
        return storage.join(root, "study", "teacher-" + digest({name: getattr(self, name) for name in shared}))


def digest(value: Any) -> str:
    """12 hex digits of dataclasses or plain values, and of VERSION."""
    plain = json.dumps([VERSION, value], sort_keys=True, default=present)
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


def standard() -> Sizes:
    """What `make study` runs: a teacher trained well past its students, for two cores and at most 90 minutes."""
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=32)
    return dataclasses.replace(short(), student_steps=640, student_optimizer=optimizer, eval_every_steps=80)


def short() -> Sizes:
    """The same teacher, and students of less than a third of the steps: for ablations, which are many."""
    return Sizes(
        teacher=shape(4096, d_model=192, layers=4, heads=4, ffw_dim=576, window=64),
        teacher_steps=900,
        teacher_optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50),
        student=shape(4096, d_model=64, layers=2, heads=4, ffw_dim=192, window=64),
        student_steps=200,
        student_optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
    )


def for_ablations(sizes: Sizes) -> Sizes:
    """The size of the ablations beside a study of that size."""
    return short() if sizes == standard() else sizes


def tiny() -> Sizes:
    """The same in seconds, for tests: its figures say nothing."""
    return Sizes(
        vocab_size=1024,
        sequence_length=32,
        batch_rows=4,
        student_rows=2,
        max_files=60,
        teacher=shape(1024, d_model=32, layers=2, heads=2, ffw_dim=64, window=16),
        teacher_steps=6,
        teacher_optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1),
        student=shape(1024, d_model=16, layers=2, heads=2, ffw_dim=32, window=16),
        student_steps=4,
        student_optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=1),
        seeds=(0, 1),
        eval_every_steps=2,
        eval_rows=4,
        heldout_rows=16,
    )
