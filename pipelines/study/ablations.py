"""The ablations of `--full`: those of the Gemma 2 paper (arXiv 2408.00118, section 5) at the study's size, and T.

    T7   distillation for students of several sizes        scratch and sample50 at half, once and twice the width
    T8   grouped queries against one key head per query    kv_heads
    T9   deep against wide, with equal parameters          layers and ffw_dim
    T10  the window at inference                           a finished student with shorter windows, not trained again
    T    temperature of full distillation

An ablation consists of trials like those of the study, with the same rows, seeds and kind of metrics.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import safetensors.torch

from data import storage
from model import Gemma2, Gemma2Config, parameter_count
from pipelines.study.arms import Arm, arms, at_temperatures
from pipelines.study.lockstep import Trial, run_trials, trials, weights_uri
from pipelines.study.scores import final_scores
from pipelines.study.sizes import Sizes
from pipelines.study.text import Text

LEARNERS = (Arm(name="scratch"), Arm(name="sample50", draws=50))
"""arms that are trained in every shape; their names are those of the study's arms"""
TEMPERATURES = (0.7, 1.5, 2.0)
WINDOWS = "windows.json"
"""file with window -> held-out loss of each seed's sample50"""


def shapes(student: Gemma2Config) -> dict[str, Gemma2Config]:
    """Name -> shape of the student with one change; the number of heads stays if the width changes."""
    wide = dataclasses.replace(student, layers=max(2, student.layers), ffw_dim=student.ffw_dim * 2)
    return {
        "half width": _scaled(student, 1, 2),
        "twice the width": _scaled(student, 2, 1),
        "a key head a query": dataclasses.replace(student, kv_heads=student.heads),
        "wide": wide,
        "deep": _as_large(wide, dataclasses.replace(student, layers=student.layers * 2)),
    }


def ablation_trials(sizes: Sizes) -> list[Trial]:
    """All trials of `--full`."""
    of_shapes = [
        Trial(name=f"{arm.name} {name}-{seed}", arm=arm, seed=seed, student=student)
        for seed in sizes.seeds
        for name, student in shapes(sizes.student).items()
        for arm in LEARNERS
    ]
    return of_shapes + [
        Trial(name=f"{arm.name}-{seed}", arm=arm, seed=seed, student=sizes.student)
        for seed in sizes.seeds
        for arm in at_temperatures(TEMPERATURES)
    ]


def run_ablations(
    sizes: Sizes, text: Text, teacher: Gemma2, root: str, tell: Callable[[str], None], threads: int
) -> None:
    """Trains the unfinished ablations and the arms that they are compared with, then scores the finished students with
    shorter windows."""
    directory = sizes.directory(root)
    compared = (*LEARNERS, *(arm for arm in arms(sizes.alpha) if arm.name == "full"))
    chosen = [*trials(sizes, compared), *ablation_trials(sizes)]
    run_trials(chosen, sizes, text, teacher, directory, tell, threads)
    windows = [sizes.student.window // part for part in (1, 2, 4, 8) if sizes.student.window >= part]
    seen = [read_through(windows, f"sample50-{seed}", sizes, text, teacher, directory, threads) for seed in sizes.seeds]
    losses = {window: [of_seed[window] for of_seed in seen] for window in windows}
    for window, of_seeds in losses.items():
        tell(f"window {window} at inference: held-out loss {sum(of_seeds) / len(of_seeds):.4f}")
    storage.write_bytes(storage.join(directory, WINDOWS), json.dumps(losses).encode())


def read_through(
    windows: Sequence[int], trial: str, sizes: Sizes, text: Text, teacher: Gemma2, directory: str, threads: int
) -> dict[int, float]:
    """Window -> held-out loss of one finished student with that window in its local layers."""
    weights = safetensors.torch.load(storage.read_bytes(weights_uri(directory, trial)))
    models = []
    for window in windows:
        model = Gemma2(dataclasses.replace(sizes.student, window=window))
        model.load_state_dict(weights)
        models.append(model)
    with ThreadPoolExecutor(threads) as pool:
        scores = final_scores(models, teacher, text.heldout, sizes, pool)
    return {window: score["loss"] for window, score in zip(windows, scores, strict=True)}


def _scaled(student: Gemma2Config, up: int, down: int) -> Gemma2Config:
    """The student with another width, the same number of heads, and heads scaled like the width."""
    head_dim = max(2, student.head_dim * up // down)
    return dataclasses.replace(
        student,
        d_model=student.d_model * up // down,
        head_dim=head_dim,
        query_scale=head_dim,
        ffw_dim=student.ffw_dim * up // down,
    )


def _as_large(like: Gemma2Config, student: Gemma2Config) -> Gemma2Config:
    """The student with the ffw_dim for which its number of parameters is nearest to that of `like`."""
    wanted = sum(parameter_count(like))

    def off(ffw_dim: int) -> int:
        return abs(sum(parameter_count(dataclasses.replace(student, ffw_dim=ffw_dim))) - wanted)

    return dataclasses.replace(student, ffw_dim=min(range(1, like.ffw_dim + 1), key=off))
