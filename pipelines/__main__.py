"""python -m pipelines list [--runs [--root URI]]                     stages and recipes, or the runs below a root
python -m pipelines show NAME                                     a stage's fields, a recipe's steps, a run's manifest
python -m pipelines plan NAME [flags of run]                      what would run, and why
python -m pipelines run NAME [--root URI] [--config FILE] [--field value ...]              a stage or a recipe
python -m pipelines status [--root URI]                           state and progress of every run
python -m pipelines plan RECIPE --prices FILE|default                        cost before a run
python -m pipelines account RECIPE [--root URI] [--prices FILE|default]      cost after a run
python -m pipelines submit NAME --address http://HOST:8265 [--detach] [flags of run]      as a job on a Ray cluster
python -m pipelines trace --checkpoint REF --document ID | --step N | --row SOURCE/SHARD/ROW
python -m pipelines replay --run REF --step N
python -m pipelines fit --model NAME --topology v5p:4x4x4 [--mesh data=16,model=4] --batch ROWS [--search] [--json]
python -m pipelines manifests STAGE --recipe RECIPE --topology v5e:16x16 --root gs://... --image ...   for Kubernetes

Exit codes: 0 done, 1 failed, 2 wrong usage, config or input, 130 stopped by Ctrl-C (training by SIGTERM too). After 1
and 130, the same line resumes the run.
A mistake in the line or a failure around the run, such as a full disk, is one line on stderr. With
PIPELINES_TRACEBACK=1 in the environment, its traceback is printed first. Any other error is a bug of ours: it always
prints its traceback and ends with exit code 1.
"""

import importlib
import io
import sys
from collections.abc import Sequence

try:
    from pipelines.engine.config import no_such
    from pipelines.engine.errors import UserError, run_command
    from pipelines.engine.printed import wrap
except ModuleNotFoundError as missing:
    sys.exit(
        f"error: the package {missing.name!r} is not installed for {sys.executable}; run `make .venv` once, then "
        "`. .venv/bin/activate`"
    )

OWN_HELP = ("fit", "manifests")
"""commands whose parser prints a help of its own"""
NAMED = ("run", "plan")
"""commands that print a help of their own for a stage or recipe"""
COMMANDS = {
    "list": "pipelines.cli.listing:list_",
    "status": "pipelines.cli.listing:status",
    "show": "pipelines.cli.listing:show",
    "plan": "pipelines.cli.commands:plan",
    "account": "pipelines.cli.commands:account",
    "run": "pipelines.cli.commands:run",
    "submit": "pipelines.cluster.submit:submit",
    "fit": "pipelines.fit.command:fit",
    "manifests": "pipelines.cluster.kubernetes:print_objects",
    "trace": "pipelines.checkpoints.trace_rows:trace",
    "replay": "pipelines.checkpoints.replay:replay_",
}
"""command -> its function, imported when the command is given: many import torch, for which a typo should not wait"""


def main(words: Sequence[str]) -> int:
    """Runs one command line; returns the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if words else 2
    return run_command(lambda: _dispatch(words[0], list(words[1:])))


def _dispatch(command: str, words: list[str]) -> int:
    if command not in COMMANDS:
        raise UserError(no_such("command", command, COMMANDS))
    asked = {"-h", "--help"}
    own = command in OWN_HELP or (command in NAMED and not asked & set(words[:1]))
    if asked & set(words) and not own:
        print("\n".join(line for line in __doc__.splitlines() if f"pipelines {command} " in line))
        if command in NAMED:
            print(f"`python -m pipelines {command} NAME --help` prints the flags of a stage or recipe.")
        print("`python -m pipelines --help` prints the lines of all commands, and their exit codes.")
        return 0
    module, _, function = COMMANDS[command].partition(":")
    code: int = getattr(importlib.import_module(module), function)(words)
    return code


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # each line at once, to a file or pipe too
    wrap()
    sys.exit(main(sys.argv[1:]))
