"""The size of the study: every setting that decides its figures, in one frozen dataclass.

The directory of a study is named by the hash of this dataclass, so figures of two sizes never mix.
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
"""version of the code, raised if it computes other figures from the same sizes"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(TeacherAndStudents):
    """Text, teacher, students and measurements of the study."""

    vocab_size: int = 4096
    """number of pieces of the tokenizer"""
    sequence_length: int = 128
    """number of tokens in a row"""
    batch_rows: int = 16
    """number of rows in a step of the teacher, and in a forward pass for scores"""
    student_rows: int = 8
    """number of rows in a step of a student"""
    max_files: int | None = None
    """number of files of the standard library that are read; None: all"""
    teacher_optimizer: OptimizerConfig
    """schedule of the teacher, on rows that no student sees"""
    student_optimizer: OptimizerConfig
    """schedule of the students, the same in all arms"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of the initial weights and of the order of rows; all arms share them"""
    alpha: float = 0.2
    """weight of the next token in the arm sample50+next"""
    eval_every_steps: int = 40
    """number of steps between points of the curves"""
    eval_rows: int = 64
    """number of held-out rows for a point of the curves"""
    heldout_rows: int = 512
    """number of held-out rows for the final figures"""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"got seeds {self.seeds}; give at least one seed, and no seed twice")
        if self.eval_rows > self.heldout_rows:
            raise UserError(f"got eval_rows={self.eval_rows}; allowed are at most heldout_rows={self.heldout_rows}")

    def directory(self, root: str) -> str:
        """The directory of this study under `root`."""
        return storage.join(root, "study", digest(self))

    def teacher_directory(self, root: str) -> str:
        """The directory of text and teacher, which studies of other students share."""
        shared = ("vocab_size", "sequence_length", "batch_rows", "max_files", "teacher", "teacher_steps",
                  "teacher_optimizer", "heldout_rows")  # fmt: skip
        return storage.join(root, "study", "teacher-" + digest({name: getattr(self, name) for name in shared}))


def digest(value: Any) -> str:
    """The first 12 hex digits of the sha256 over a dataclass or plain value and VERSION."""
    plain = json.dumps([VERSION, value], sort_keys=True, default=present)
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


def standard() -> Sizes:
    """The size of `make study`: a teacher trained well past its students, on two cores in at most 90 minutes."""
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=32)
    return dataclasses.replace(short(), student_steps=640, student_optimizer=optimizer, eval_every_steps=80)


def short() -> Sizes:
    """The same teacher, and students of less than a third of the steps, because there are many ablations."""
    return Sizes(
        teacher=shape(4096, d_model=192, layers=4, heads=4, ffw_dim=576, window=64),
        teacher_steps=900,
        teacher_optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50),
        student=shape(4096, d_model=64, layers=2, heads=4, ffw_dim=192, window=64),
        student_steps=200,
        student_optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
    )


def for_ablations(sizes: Sizes) -> Sizes:
    """The size of the ablations that belong to a study of these sizes."""
    return short() if sizes == standard() else sizes


def tiny() -> Sizes:
    """A study of seconds, for tests; its figures mean nothing."""
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
