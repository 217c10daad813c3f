"""The sizes of a teacher and its students, shared by the recipes on text that is at hand and by the study."""

from dataclasses import dataclass

from model import Gemma2Config


@dataclass(frozen=True, kw_only=True)
class TeacherAndStudents:
    """Vocabulary, rows, and both models with their numbers of steps."""

    vocab_size: int
    """pieces of the tokenizer"""
    sequence_length: int
    """tokens in a row"""
    teacher: Gemma2Config
    """the teacher's shape"""
    teacher_steps: int
    """optimizer steps of the teacher"""
    student: Gemma2Config
    """the students' shape"""
    student_steps: int
    """optimizer steps of every student"""


def shape(vocab_size: int, *, d_model: int, layers: int, heads: int, ffw_dim: int, window: int) -> Gemma2Config:
    """A small Gemma 2 with heads * head_dim = d_model and a key head for two query heads."""
    head_dim = d_model // heads
    return Gemma2Config(
        vocab_size=vocab_size, d_model=d_model, layers=layers, heads=heads, kv_heads=heads // 2, head_dim=head_dim,
        ffw_dim=ffw_dim, window=window, query_scale=head_dim,
    )  # fmt: skip
