"""`ray WORDS`, with more time for a node to start than the 30 s of Ray: python -m tests.programs.ray_start WORDS.

On a machine whose CPUs are in use, the processes of a node take minutes to start.
"""

import sys
from typing import Any

from infra import ray_private

START_SECONDS = 400.0


def main() -> None:
    with ray_private.patient_start(START_SECONDS):
        from ray.scripts import scripts

        run: Any = scripts.main
        run()


if __name__ == "__main__":
    sys.argv[0] = "ray"
    main()
