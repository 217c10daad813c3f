"""A wrong word of a command line is one line: what was got, what is allowed, what to do next; exit code 2."""

import re

import pytest
from tyro import _errors

from pipelines.engine import flags
from tests.programs import here

TRAIN = "plan train_model --sequences a --steps 1 --global-batch 1 --model gemma2_tiny"
HELP = "as `python -m pipelines"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        # a wrong type: of a stage, of a step of a recipe, of a field in a field, of an option that may be None
        ("plan collect_text --input . --shard-bytes many", "got 'many' for --shard-bytes; give a whole number, or"),
        ("plan demo --teacher.steps=x", "got 'x' for --teacher.steps; give a whole number, or leave it out ("),
        (f"{TRAIN} --model.layers x", "got 'x' for --model.layers; give a whole number, or leave it out (default: "),
        ("plan demo --teacher.optimizer.learning_rate fast", "got 'fast' for --teacher.optimizer.learning-rate; give"),
        ("plan demo --min-workers two", "got 'two' for --min-workers; give None or a whole number, or leave it out"),
        ("fit --model gemma2_2b --topology v6e:4x4 --batch x", "got 'x' for --batch; give None or a whole number"),
        ("trace --checkpoint a --step x", "got 'x' for --step; give None or a whole number"),
        # a wrong choice
        ("plan demo --device tpu", "got 'tpu' for --device; give one of xla, cuda, cpu, auto, or leave"),
        ("plan demo --tensorboard maybe", "got 'maybe' for --tensorboard; give one of True, False, or leave it out"),
        ("plan cache_logits --estimator most", "got 'most' for --estimator; give one of "),
        # too few values, too many
        ("plan demo --teacher.steps", "got --teacher.steps without a value; give a whole number after it"),
        ("plan demo --teacher.steps --workers 2", "got --teacher.steps without a value"),
        ("plan demo --teacher.steps 3 4", "got '4', which belongs to no flag; `python -m pipelines run demo --help` "),
        # missing
        ("plan train_model --sequences a", "got no --steps, no --global-batch, no --model gemma2_2b|"),
        ("plan train_model --model gemma2_tiny", f"got no --steps, no --global-batch; give all of them, {HELP} "),
        ("fit --model gemma2_2b", f"got no --topology; give it, {HELP} fit --help` describes"),
        ("manifests", "got no STAGE, no --recipe, no --root, no --image; give all of them"),
        ("replay --run a", f"got no --step; give it, {HELP} replay --help` describes"),
        # a value that the dataclass refuses, with the name of its step
        ("plan demo --teacher.steps 0", "--teacher: steps is 0; it must be "),
        (f"{TRAIN} --model.window -5", "--model: window is -5, but must be a whole number of at least 1"),
        ("plan demo --workers 0", "got workers=0; it must be at least 1"),
        # unknown
        (f"{TRAIN} --model.layerz 2", "no field 'model.layerz'; did you mean 'model.layers'?"),
        ("trace --chekpoint a", "no field 'chekpoint'; did you mean 'checkpoint'?"),
        ("replay --run a --stp 1", "no field 'stp'; did you mean 'step'?"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_line_is_one_line(line: str, sentence: str) -> None:
    done = here.done(line.split())
    assert (done.returncode, done.stdout) == (2, "")
    (error,) = done.stderr.splitlines()
    assert error.startswith(f"error: {sentence}")
    assert len(error) < 300


def test_what_a_flag_takes_is_said_in_words() -> None:
    """tyro's words for types stand in no message."""
    done = here.done(["plan", "collect_text", "--input", ".", "--source", "--shard-bytes", "1"])
    assert "got --source without a value; give text after it" in done.stderr
    assert re.search(r"\b(INT|FLOAT|STR|NoneType)\b", done.stderr) is None
    assert flags.KINDS.keys() == {"INT", "FLOAT", "STR", "{None}"}


def test_help_fills_its_lines() -> None:
    """tyro would break the line where the docstring in collect_text.py does: after "crosses"."""
    lines = here.done(["run", "collect_text", "--help"]).stdout.splitlines()
    assert [line for line in lines if "in any case (* crosses folders)." in line]


def test_tyro_passes_every_kind_of_mistake_to_us() -> None:
    """A new kind in a new version of tyro would get the general sentence."""
    kinds = {kind.__name__ for kind in _errors.ParseErrorEvent.__subclasses__()}
    used = {"BadValue", "InstantiationFailure", "InvalidChoice", "MissingArgs", "UnrecognizedArgs"}
    never = {"MissingMutexGroup", "MissingSubcommand", "MutexConflict", "SubcommandConflict"}
    assert kinds == used | never, "commands of ours have neither subcommands nor groups of flags"
