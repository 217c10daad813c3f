"""The sizes of a teacher and its students, for the small recipes (`demo`, `smoke`) and the study."""

from dataclasses import dataclass

from model import Gemma2Config


@dataclass(frozen=True, kw_only=True)
class TeacherAndStudents:
    """Vocabulary, row length, and the shape and steps of teacher and students."""

    vocab_size: int
    """number of pieces of the tokenizer"""
    sequence_length: int
    """number of tokens in a row"""
    teacher: Gemma2Config
    """shape of the teacher"""
    teacher_steps: int
    """number of optimizer steps of the teacher"""
    student: Gemma2Config
    """shape of the students"""
    student_steps: int
    """number of optimizer steps of each student"""


def shape(vocab_size: int, *, d_model: int, layers: int, heads: int, ffw_dim: int, window: int) -> Gemma2Config:
    """A small Gemma 2 with heads * head_dim = d_model and one key head for every two query heads."""
    head_dim = d_model // heads
    return Gemma2Config(
        vocab_size=vocab_size, d_model=d_model, layers=layers, heads=heads, kv_heads=heads // 2, head_dim=head_dim,
        ffw_dim=ffw_dim, window=window, query_scale=head_dim,
    )  # fmt: skip
