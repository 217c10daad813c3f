"""Where the seconds of a fit under Ray Train go: python -m tests.programs.fit_seconds

Two fits of twelve steps on one small Ray, the second with warm disk caches. A process is seen when its title appears.
"""

import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray

from tests.programs.examples import job_named
from tests.programs.ray_runs import ray_processes
from training.worker.driver import train_under_ray

FITS = 2
WATCHED = {"TrainController": "controller is up", "RayTrainWorker": "worker is up"}


def timed(directory: Path, name: str) -> dict[str, float]:
    """Event -> seconds after the fit began."""
    job = job_named(directory, name)
    before = {title: set(ray_processes(title)) for title in WATCHED}
    seconds: dict[str, float] = {}
    over = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        while not over.wait(0.05):
            for title, event in WATCHED.items():
                if event not in seconds and set(ray_processes(title)) - before[title]:
                    seconds[event] = time.monotonic() - began

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        train_under_ray(
            job, on_progress=lambda metrics: seconds.setdefault("first metrics arrive", time.monotonic() - began)
        )
    finally:
        over.set()
        watcher.join()
    return {**seconds, "fit ends": time.monotonic() - began}


def main() -> None:
    temporary = tempfile.mkdtemp(prefix="g2r-", dir="/tmp")  # Unix sockets below it: a short name
    began = time.monotonic()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    print(f"Ray starts: {time.monotonic() - began:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FITS):
            events = sorted(timed(Path(folder), f"fit{number}").items(), key=lambda event: event[1])
            print(f"fit {number + 1}: " + ", ".join(f"{event} {at:.1f} s" for event, at in events), flush=True)
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
