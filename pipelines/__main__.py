"""python -m pipelines list | status | show NAME | plan NAME | run NAME [--root URI] [--config FILE] [--field value ...]
python -m pipelines plan RECIPE --prices FILE|default          and afterwards: account RECIPE [--root URI]
python -m pipelines submit NAME --address http://HOST:8265 [--detach] [as for run]      as a job on a Ray cluster
python -m pipelines trace --checkpoint REF --document ID | --step N | --row SOURCE/SHARD/ROW
python -m pipelines replay --run REF --step N
python -m pipelines fit --model NAME --topology v5p:4x4x4 [--mesh data=16,model=4] --batch ROWS [--search] [--json]
python -m pipelines manifests STAGE --recipe RECIPE --topology v5e:16x16 --root gs://... --image ...   for Kubernetes

Exit codes: 0 done, 1 failed, 2 wrong usage, config or input, 130 stopped by Ctrl-C (training by SIGTERM too): the same
line goes on where it was.
"""

import os
import sys
import traceback
from collections.abc import Sequence

from data.storage import FullError
from pipelines.engine.config import no_such
from pipelines.engine.errors import UserError
from pipelines.engine.stage import StoppedError, VerdictError

COMMANDS = ("list", "status", "show", "plan", "account", "run", "submit", "fit", "manifests", "trace", "replay")


def main(words: Sequence[str]) -> int:
    """Runs one command line; returns the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if words else 2
    try:
        if words[0] not in COMMANDS:
            raise UserError(no_such("command", words[0], COMMANDS))
        return _dispatch(words[0], list(words[1:]))
    except ValueError as error:
        if os.environ.get("PIPELINES_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (VerdictError, StoppedError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        print(f"error: {error}; check that the path exists and that you may use it", file=sys.stderr)
        return 2
    except FullError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # a ConnectionError too: the reader of our output left
        return 1
    except ConnectionError as error:
        print(f"failed: {error}; is the cluster at RAY_ADDRESS up? unset it to run here", file=sys.stderr)
        return 1
    except Exception as error:
        from data import storage

        if (told := storage.what_failed(error)) is None or os.environ.get("PIPELINES_TRACEBACK") == "1":
            raise
        print(f"failed: {told}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(
            f"stopped: {stop}" if str(stop) else "stopped; the same command goes on where this one was", file=sys.stderr
        )
        return 130


def _dispatch(command: str, words: list[str]) -> int:
    # Imported late: a typo in the command should not wait for torch.
    if command == "fit":
        from pipelines.fit.command import fit

        return fit(words)
    if command == "submit":
        from pipelines.cluster.submit import submit

        return submit(words)
    if command == "manifests":
        from pipelines.cluster.kubernetes import print_objects

        return print_objects(words)
    if command == "trace":
        from pipelines.checkpoints.trace_rows import trace

        return trace(words)
    if command == "replay":
        from pipelines.checkpoints.replay import replay_

        return replay_(words)
    from pipelines.cli import commands

    return {
        "list": commands.list_,
        "status": commands.status,
        "show": commands.show,
        "plan": commands.plan,
        "account": commands.account,
        "run": commands.run,
    }[command](words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
