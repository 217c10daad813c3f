"""python -m pipelines manifests train_model --recipe gemma2_2b_distill --root gs://bucket/runs --image IMAGE

Prints Kubernetes objects (YAML) for one stage of a recipe: a job with a cluster of its own, which ends with the job.
The cluster runs `python -m pipelines run RECIPE --only STEP`. It finds the outputs of earlier jobs by their
fingerprints and does not run finished steps again. The words after `--` go to `run`: inputs and fields that decide the
fingerprint, or `--config` with a run's recipe.json. They are checked here as in the job, so that no cluster starts for
a line that ends with exit code 2. The command starts nothing and asks no bucket.
"""

import dataclasses
import importlib.metadata
import json
import re
import shlex
from collections.abc import Sequence
from typing import Literal

import tyro
import yaml

from data import storage
from infra.kubernetes import Request, kubernetes_objects, rented_slice
from infra.slices import Topology
from pipelines.cli.arguments import parse_run, refuse_missing
from pipelines.cli.words import take
from pipelines.engine.config import no_such
from pipelines.engine.errors import UserError
from pipelines.engine.flags import parse, refuse_unknown
from pipelines.engine.inputs import REFERENCE
from pipelines.engine.placement import place
from pipelines.engine.stage import load_stage
from pipelines.recipes import registry as recipes
from pipelines.recipes.recipe import Place, Recipe, Step
from training.backends.devices import TPU_DEVICE

BUCKET = re.compile(r"gs://[\w.-]+(/.*)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The words after `manifests`."""

    stage: tyro.conf.Positional[str]
    """stage of the recipe, or name of a step"""
    recipe: str
    """recipe that the stage belongs to"""
    root: str
    """root of all runs: gs://bucket/path"""
    image: str
    """container image that was built from infra/Dockerfile, by its digest or by a tag that is never moved"""
    topology: str = ""
    """chips of one slice, such as v5e:16x16; empty: the recipe's topology, none for a stage without a model"""
    slices: int = 0
    """number of slices of that topology; 0: the recipe's number, otherwise 1"""
    kind: Literal["RayJob", "RayCluster"] = "RayJob"
    """kind of the object: a job with its cluster, or a cluster to submit jobs to"""
    cpu_workers: str = "0:16"
    """smallest and largest number of CPU pods"""
    spot: bool = False
    """whether workers run on spot machines"""
    name: str = ""
    """name of the objects; empty: made from recipe and step"""
    namespace: str = "ray"
    """Kubernetes namespace"""
    google_service_account: str = ""
    """account of the pods: NAME@PROJECT.iam.gserviceaccount.com, bound to the Kubernetes account of the same name"""
    token_secret: str = "ray-token"
    """Kubernetes secret that holds Ray's token as auth_token"""
    deadline_hours: int = 24 * 14
    """largest number of hours that the job may take"""


def print_objects(words: list[str]) -> int:
    """Prints the objects. Raises UserError if a stage, slice or input does not exist or does not fit."""
    words, further = _parted(words)
    flags = {field.name for field in dataclasses.fields(Command)} - {"stage"}
    refuse_unknown(words, sorted(flags | {"no_spot"}))
    command = parse(Command, words, program="python -m pipelines manifests", description=__doc__)
    request, place = request_of(command, further)
    # Through JSON: YAML would write a value that two places share as an anchor, which few readers expect.
    objects = yaml.safe_dump_all(json.loads(json.dumps(kubernetes_objects(request))), sort_keys=False, width=120)
    print(_heading(command, request, place))  # printed last, so that a refused line leaves `> train.yaml` empty
    print(objects, end="")
    return 0


def _parted(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, and the words after it."""
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def request_of(command: Command, further: Sequence[str] = ()) -> tuple[Request, Topology | None]:
    """The request for objects, and the slices; `further` words go to `run`. Raises UserError like `print_objects`."""
    recipe = recipes.load(command.recipe)
    step = _step(recipe, command.stage)
    declares = load_stage(step.stage).declares
    place = _place(command, step)
    if not BUCKET.fullmatch(command.root):
        raise UserError(f"got --root {command.root!r}, which not all pods see; give gs://bucket/path")
    if command.kind == "RayCluster" and further:
        raise UserError(
            f"got {shlex.join(further)!r} after -- for a RayCluster, which runs no line of its own; give these words "
            "to the job that you submit to the cluster, or make a RayJob"
        )
    if not command.image:
        raise UserError("got an empty --image; build infra/Dockerfile, push the image and give it by its digest")
    fewest, _, most = command.cpu_workers.partition(":")
    if not all(re.fullmatch("[0-9]{1,9}", number) for number in (fewest, most)):
        raise UserError(f"got --cpu-workers {command.cpu_workers!r}; give FEWEST:MOST, such as 0:16")
    words = ["python", "-m", "pipelines", "run", recipe.name, "--only", step.name, "--root", command.root]
    if place is not None and declares.places is not None:
        words += ["--device", TPU_DEVICE]
        has_mesh = any(word.partition("=")[0] == "--mesh" for word in further)
        if declares.places.several_hosts:
            words += ["--topology", place.name, "--slices", str(place.slices)]
            if not has_mesh and step.place is not None and step.place.mesh and _is(place, step.place):
                words += ["--mesh", step.place.mesh]
        elif declares.places.mesh and not has_mesh:
            words += ["--mesh", f"data={place.chips}"]
    if command.kind == "RayJob":
        _check_line(recipe, [*words[5:], *further], command.root)
    name = command.name or f"{recipe.name}-{step.name}".replace("_", "-")
    request = Request(
        name=name,
        namespace=command.namespace,
        entrypoint=shlex.join([*words, *further]),
        image=command.image,
        ray_version=importlib.metadata.version("ray"),
        kind=command.kind,
        topology=place,
        cpu_workers=(int(fewest), int(most)),
        head_gigabytes=declares.driver_gigabytes,
        spot=command.spot,
        google_service_account=command.google_service_account,
        token_secret=command.token_secret,
        deadline_hours=command.deadline_hours,
    )
    return request, place


def _is(place: Topology, of_recipe: Place) -> bool:
    return (place.name, place.slices) == (of_recipe.topology, of_recipe.slices)


def _step(recipe: Recipe, name: str) -> Step:
    matches = [step for step in recipe.steps if name in (step.name, step.stage)]
    named = [step for step in matches if step.name == name] or matches
    if not named:
        known = [*(step.name for step in recipe.steps), *(step.stage for step in recipe.steps)]
        raise UserError(f"{recipe.name}: {no_such('stage or step', name, set(known))}")
    if len(named) > 1:
        names = ", ".join(step.name for step in named)
        raise UserError(f"got {name!r}, the stage of several steps of {recipe.name}; give one of the steps: {names}")
    return named[0]


def _check_line(recipe: Recipe, words: Sequence[str], root: str) -> None:
    """Raises UserError if the job would end with exit code 2: a word that `run` does not take, a missing input, or a
    path that pods do not see. With a --config, which may be in a bucket and is not read, missing inputs are allowed."""
    if asked := [word for word in words if word in ("-h", "--help")]:
        raise UserError(
            f"got {asked[0]} after --, with which a job runs nothing; leave it out, and see `show {recipe.name}`"
        )
    words, saved = take(list(words), "--config")
    if saved is not None and not BUCKET.fullmatch(saved):
        raise UserError(f"got --config {saved!r}, which not all pods see; give the recipe.json in a bucket, gs://...")
    command, chosen = parse_run(recipe, words)
    place(command.resources)
    if command.root != root.rstrip("/"):
        raise UserError(f"got --root {command.root!r} after -- and {root!r} before --; give --root once, before --")
    given = set(_outside(command.recipe)) - set(_outside(recipe))
    if unseen := sorted(path for path in given if not (storage.is_remote(path) or REFERENCE.match(path))):
        raise UserError(
            f"got input {unseen[0]!r}, which not all pods see; copy it to a bucket and give gs://bucket/path"
        )
    if saved is None:
        refuse_missing(command.recipe, chosen)


def _outside(recipe: Recipe) -> list[str]:
    """All paths from outside that the recipe reads."""
    inputs = [sources for step in recipe.steps for sources in step.inputs.values()]
    return [source for sources in inputs for source in sources if isinstance(source, str)]


def _place(command: Command, step: Step) -> Topology | None:
    places = load_stage(step.stage).declares.places
    if places is None:
        for flag, value in (("--topology", command.topology), ("--slices", command.slices)):
            if value:
                raise UserError(f"got {flag} {value} for {step.stage}, which runs no model; leave {flag} out")
        return None
    text, slices = command.topology, command.slices
    if not text and step.place is not None:
        text, slices = step.place.topology, slices or step.place.slices
    if not text:
        raise UserError(
            f"got no --topology for {step.name}, which has no slice of its own in {command.recipe}; give --topology, "
            "such as v5e:2x2"
        )
    place = rented_slice(text, slices or 1)
    if place.hosts > 1 and not places.several_hosts:
        one_host = f"{place.chip.name}:{'2x2' if place.chip.dimensions == 2 else '2x2x1'}"
        raise UserError(
            f"got {place.slices} x {place.name} of {place.hosts} hosts for {step.stage}, which is one process on one "
            f"host; give one slice of one host, such as --topology {one_host} (several replicas are not built)"
        )
    return place


def _heading(command: Command, request: Request, place: Topology | None) -> str:
    lines = [
        f"# {request.kind} for {command.stage} of {command.recipe}, for KubeRay 1.6 or later. Not run here.",
        "# Create the token once (no file keeps it):",
        f"#   kubectl -n {request.namespace} create secret generic {request.token_secret} "
        "--from-literal=auth_token=$(openssl rand -hex 32)",
    ]
    if request.kind == "RayCluster":
        lines.append(f"# It runs nothing until you submit: ray job submit --address ... -- {request.entrypoint}")
    if place is not None:
        chips = f"{place.slices} x {place.name}: {place.hosts} hosts of {place.chips // place.hosts} chips"
        lines.append(f"# {chips}." + (" Training on several hosts has not run on TPUs yet." if place.hosts > 1 else ""))
    if request.google_service_account:
        lines.append(
            f"# Workload identity: gcloud iam service-accounts add-iam-policy-binding {request.google_service_account} "
            f"--role roles/iam.workloadIdentityUser "
            f'--member "serviceAccount:PROJECT.svc.id.goog[{request.namespace}/{request.name}]"'
        )
    return "\n".join(lines)
