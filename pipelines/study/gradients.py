"""Compares each estimator's gradient with the gradient of full distillation, with the teacher in the step (online).

    one batch -> full: g;  an estimator: its gradient, and for draws the mean over many redraws -> cosine, angle, norm

A gradient is taken over all parameters of the student, at the weights of the finished `scratch` arm, which has begun to
learn. Draws of one batch differ only in their seed. The cosine of an unbiased estimator approaches 1 as draws are
averaged; a biased estimator keeps its angle.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import safetensors.torch
import torch
from torch import Tensor

from data import storage
from model import Gemma2
from pipelines.engine.errors import UserError
from pipelines.study.arms import TAILS, Arm, counted, top_columns
from pipelines.study.lockstep import weights_uri
from pipelines.study.sizes import Sizes
from pipelines.study.teacher import load_teacher
from pipelines.study.text import COLUMNS, load_text
from training.checkpoints.digests import weights_hash
from training.config import DistillConfig
from training.loss import Batch

REDRAWS = 32
"""number of seeds whose gradients are averaged"""
NAME = "gradients.json"


@dataclass(frozen=True, kw_only=True)
class Angle:
    """One estimator's gradient against full distillation's."""

    what: str
    redraws: int
    """number of gradients that were averaged"""
    cosine: float
    norm_ratio: float
    """ratio of its length to the length of the full gradient"""

    @property
    def degrees(self) -> float:
        return math.degrees(math.acos(min(1.0, self.cosine)))


def measure_gradients(sizes: Sizes, root: str, tell: Callable[[str], None]) -> list[Angle]:
    """Measures, prints and stores the angles. Raises UserError if no `scratch` arm is finished."""
    directory = sizes.directory(root)
    weights = weights_uri(directory, f"scratch-{sizes.seeds[0]}")
    if not storage.exists(weights):
        raise UserError(f"no {weights}; train the arm `scratch` first by `python -m pipelines.study run`")
    text = load_text(sizes, root)
    teacher = load_teacher(sizes, text, root, tell, 1)
    student = Gemma2(sizes.student)
    student.load_state_dict(safetensors.torch.load(storage.read_bytes(weights)))
    batch = text.students.batch(slice(-sizes.student_rows, None))
    base = {name: torch.from_numpy(batch[name]) for name in COLUMNS}
    with torch.no_grad():
        logits_BTV = teacher(base["tokens"], base["positions"], base["segment_ids"])
    full = _gradient(student, Arm(name="full", full=True), base | {"target_probs": logits_BTV.softmax(-1)})
    angles = [_angle("next token", 1, _gradient(student, Arm(name="scratch"), base), full)]
    digest = weights_hash(teacher.state_dict())
    for draws in (12, 50):
        arm = Arm(name="sample", draws=draws)
        total = torch.zeros_like(full)
        for seed in range(REDRAWS):
            columns = counted(draws, logits_BTV, batch["sequence_hash"], digest, seed)
            total += _gradient(student, arm, base | columns)
            if seed == 0:
                angles.append(_angle(f"{draws} draws", 1, total, full))
        angles.append(_angle(f"{draws} draws", REDRAWS, total / REDRAWS, full))
    for kept in (12, 50):
        columns = top_columns(logits_BTV, kept)
        for tail, words in TAILS.items():
            arm = Arm(name="topk", kept=kept, distill=DistillConfig(tail=tail))
            angles.append(_angle(f"top {kept}, {words}", 1, _gradient(student, arm, base | columns), full))
    for angle in angles:
        tell(
            f"{angle.what}, mean of {angle.redraws}: cosine {angle.cosine:.4f}, angle {angle.degrees:.1f} degrees, "
            f"length {angle.norm_ratio:.2f}"
        )
    storage.write_bytes(storage.join(directory, NAME), json.dumps([asdict(angle) for angle in angles]).encode())
    return angles


def read_gradients(directory: str) -> list[Angle]:
    """The angles that `measure_gradients` stored; empty if it has not run."""
    uri = storage.join(directory, NAME)
    return [Angle(**entry) for entry in json.loads(storage.read_bytes(uri))] if storage.exists(uri) else []


def _gradient(student: Gemma2, arm: Arm, batch: Batch) -> Tensor:
    loss_sum, targets = arm.loss()(student, batch)
    parts = torch.autograd.grad(loss_sum, list(student.parameters()))
    return torch.cat([part.flatten() for part in parts]).double() / targets


def _angle(what: str, redraws: int, gradient: Tensor, full: Tensor) -> Angle:
    cosine = torch.dot(gradient, full) / (gradient.norm() * full.norm())
    return Angle(what=what, redraws=redraws, cosine=float(cosine), norm_ratio=float(gradient.norm() / full.norm()))
