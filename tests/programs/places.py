"""Paths for tests and their programs: the repository, its environments, files that tests may use."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RIVAL_PYTHON = REPOSITORY / ".venv-rival" / "bin" / "python"
"""of the environment with datatrove (`make rival-env`)"""
GEMMA_TOKENIZERS = (
    REPOSITORY / ".cache" / "gemma_tokenizer.model",
    REPOSITORY.parent / "shared" / "data" / "gemma_tokenizer.model",
)
"""where Gemma's own SentencePiece model may be: after `make tokenizer`, or beside the repository"""
