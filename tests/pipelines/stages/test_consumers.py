"""Other programs read an export and get our ids, greedy tokens and logits; those that are not installed are skipped.

CONSUMER_TRANSFORMERS_4=PYTHON     of an environment with transformers 4.57 and torch
CONSUMER_MLX=PYTHON                with mlx-lm
CONSUMER_LM_EVAL=PYTHON            with lm-eval
CONSUMER_LLAMA_CPP=PYTHON,FILE     with xllamacpp, gguf and transformers; FILE is llama.cpp's convert_hf_to_gguf.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import consumers
from tests.programs.places import REPOSITORY

pytestmark = pytest.mark.slow  # Gemma's own tokenizer, and other programs


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("consumers") / "model"
    consumers.write(directory)
    return directory


def checked(export: Path, consumer: str, variable: str) -> str:
    """What the reader's own interpreter prints, each line without the reader's name."""
    given = os.environ.get(variable, sys.executable if consumer == "transformers" and not variable else "")
    if not given:
        pytest.skip(f"{variable} names no environment with {consumer}")
    python, *tool = given.split(",")
    program = REPOSITORY / "tests" / "programs" / "consumers.py"
    command = [python, str(program), "check", str(export), consumer, *tool]
    done = subprocess.run(command, capture_output=True, text=True, cwd=export, check=False)
    assert done.returncode == 0, done.stderr
    return "\n".join(line.partition("): ")[2] for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("consumer", "variable"),
    [
        ("transformers", ""),
        ("transformers", "CONSUMER_TRANSFORMERS_4"),
        ("transformers-slow", "CONSUMER_TRANSFORMERS_4"),
    ],
)
def test_transformers_gives_our_ids_tokens_and_logits(export: Path, consumer: str, variable: str) -> None:
    lines = checked(export, consumer, variable)
    assert lines.startswith("ids differ for 0 of 2")
    assert "named symbols: ids differ for 0 of 3 texts" in lines
    assert "turn marks are left out under skip_special_tokens" in lines
    assert "attention is eager" in lines
    assert "greedy tokens differ at 0 of 72 positions, and at 0 of 24 after" in lines
    assert "texts end at ids [1, 107]" in lines


def test_llama_cpp_gives_our_ids_and_greedy_tokens(export: Path) -> None:
    """It takes the HTML tag </s> for an end of text, which is in three of the texts."""
    lines = checked(export, "llama.cpp", "CONSUMER_LLAMA_CPP")
    assert lines.startswith("ids differ for 3 of 2")
    assert "'</s>', 'x</s>x'" in lines
    assert "named symbols: ids differ for 0 of 3 texts" in lines
    assert "greedy tokens differ at 0 of 72 positions, and at 0 of 24 after" in lines


def test_mlx_gives_our_ids_and_within_the_window_our_tokens(export: Path) -> None:
    lines = checked(export, "mlx", "CONSUMER_MLX")
    assert lines.startswith("ids differ for 0 of 2")
    assert "greedy tokens differ at 0 of 72 positions" in lines
    assert "texts end at ids [1, 107]" in lines


def test_lm_eval_counts_bos_once_as_the_card_says(export: Path) -> None:
    ours, defaults, single = checked(export, "lm-eval", "CONSUMER_LM_EVAL").splitlines()
    nats = [float(re.findall(r"([\d.]+) nats", line)[0]) for line in (ours, defaults, single)]
    assert nats[2] == pytest.approx(nats[0], abs=0.01)
    assert nats[1] > nats[0] + 1
    assert defaults.endswith("True")
    assert single.endswith("False")
