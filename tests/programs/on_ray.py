"""The data stages on the Ray that RAY_ADDRESS names: python -m tests.programs.on_ray ROOT CORPUS."""

import sys

from infra.ray_session import RaySession
from tests.programs.in_process import run_chain


def main(root: str, corpus: str) -> None:
    session = RaySession()
    try:
        run_chain(root, corpus, session)
    finally:
        session.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
