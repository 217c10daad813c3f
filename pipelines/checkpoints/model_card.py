"""The model card of an exported checkpoint, written from manifests: data, tokens, teacher, losses, and every run.

    checkpoint's manifest -> manifests of its inputs -> manifests of their inputs -> ... -> README.md

Every manifest on the way must exist and must list the bytes that its reader recorded, so that a checkpoint always gets
the same card. Cost: a small file per run, and the metrics tables of each training run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data import storage
from data.manifest import MANIFEST_NAME, Manifest, read_manifest
from model import Gemma2Config
from pipelines.engine.errors import UserError
from pipelines.engine.inputs import REFERENCE, Input
from pipelines.engine.stage import declared, load_stages

COUNTED = ("text", "tokens", "sequences", "logits")
"""datasets whose rows a card counts"""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The properties of the exported files that the card states."""

    name: str
    license: str
    parameters: int
    config: Gemma2Config
    dtype: str
    tokenizer_sha256: str
    tokenizer_vocab_size: int


def model_card(exported: Exported, checkpoint: Input, step: int, evaluations: Sequence[Input], root: str) -> str:
    """The text of README.md for Hugging Face.

    Raises UserError if a manifest that the checkpoint depends on is missing or lists other bytes, or if an evaluation
    belongs to another checkpoint.
    """
    runs = ancestry(checkpoint, root)
    config = exported.config
    lines = [
        *_header(exported),
        f"# {_line(exported.name)}",
        "",
        f"A Gemma 2 of {exported.parameters:,} parameters: {config.layers} layers of width {config.d_model}, "
        f"{config.heads} query and {config.kv_heads} key heads of {config.head_dim}, {config.vocab_size:,} rows of "
        f"embedding, window {config.window}. Weights are {exported.dtype}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".", attn_implementation="eager")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        "```",
        "",
        "The tokenizer begins each text with `<bos>`. lm-evaluation-harness puts one more before a text whose "
        "perplexity it measures: for such tasks give `add_bos_token=False` among its model arguments. For tasks with "
        "questions leave the argument out, as they would have no `<bos>` at all.",
        "",
        "## Training",
        "",
        *_training(checkpoint, step, runs),
        *_models_before(checkpoint, runs),
        "## Data and runs",
        "",
        "| run | rows | tokens | bytes of text | left out |",
        "|---|--:|--:|--:|---|",
        *(f"| {' | '.join(_run(manifest))} |" for manifest in _manifests(runs)),
        "",
        "Runs are named by stage and fingerprint (sha256 over config and inputs); a run's `_MANIFEST.json` lists every "
        "file with its hash. Rows of `collect_text` to `tokenize_text` are documents.",
        "",
        f"Tokenizer: {exported.tokenizer_vocab_size:,} pieces, sha256 `{exported.tokenizer_sha256}`.",
        "",
        "## Evaluation",
        "",
        *_evaluations(evaluations, checkpoint, step),
    ]
    return "\n".join(lines) + "\n"


def ancestry(checkpoint: Input, root: str) -> dict[str, Input]:
    """Reference -> input, for every input that `checkpoint` was made from (sources first) and for `checkpoint`.

    A run is looked for beside the run that read it, then below `root`. Raises UserError if a run is missing, or holds
    other bytes than its reader recorded.
    """
    ancestors: dict[str, Input] = {}

    def visit(reader: Input) -> None:
        for records in reader.manifest.inputs.values():
            for recorded in records:
                match = REFERENCE.match(recorded["reference"])
                if match is None or recorded["reference"] in ancestors:
                    continue
                roots = [reader.directory.rstrip("/").rsplit("/", 2)[0], root]
                before = _find(recorded["reference"], match["stage"], match["fingerprint"], roots, reader)
                if before.content() != recorded["content"]:
                    raise UserError(
                        f"got other bytes of {before.reference} in {before.directory} than {reader.reference} was made "
                        f"from (the same config was run on another set-up); run {reader.reference} again"
                    )
                visit(before)
        ancestors[reader.reference] = reader

    visit(checkpoint)
    return ancestors


def _find(reference: str, stage: str, fingerprint: str, roots: list[str], reader: Input) -> Input:
    match = REFERENCE.match(reference)
    assert match is not None
    for root in roots:
        directory = storage.join(root, stage, fingerprint)
        if read_manifest(directory) is not None:
            return Input(
                reference=reference,
                given=reference,
                directory=directory,
                dataset=match["dataset"],
                step=None if match["step"] is None else int(match["step"]),
            )
    raise UserError(
        f"no {MANIFEST_NAME} of {stage}/{fingerprint}, from which {reader.reference} was made; the model card needs "
        f"it, so copy that run (or its {MANIFEST_NAME} and metrics) to {storage.join(roots[-1], stage, fingerprint)}"
    )


def _header(exported: Exported) -> Iterator[str]:
    """The YAML header for Hugging Face; JSON strings are valid YAML strings."""
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation")
    if exported.license:
        yield f"license: {json.dumps(exported.license)}"
    yield from ("tags:", "- gemma2", "---", "")


def _training(checkpoint: Input, step: int, runs: Mapping[str, Input]) -> Iterator[str]:
    """A list of the origin of a checkpoint's weights."""
    manifest = checkpoint.manifest
    yield f"- Checkpoint: `{checkpoint.reference}`, after step {step:,}"
    yield from declared(manifest.stage).card(checkpoint, step, runs)
    yield ""


def _models_before(checkpoint: Input, runs: Mapping[str, Input]) -> Iterator[str]:
    """A section for each model that this model learned from or began as, and for the models before those models."""
    inputs = checkpoint.manifest.inputs
    before = [("Initial weights", initial["reference"]) for initial in inputs.get("initial", ())]
    for cached in inputs.get("logits", ()):
        teachers = runs[cached["reference"]].manifest.inputs.get("teacher", ())
        before += [("Teacher", teacher["reference"]) for teacher in teachers]
    for role, reference in dict.fromkeys(before):
        before_it = runs[reference]
        step = before_it.step if before_it.step is not None else before_it.data.facts["steps"][-1]
        yield from (f"## {role}", "", *_training(before_it, step, runs), *_models_before(before_it, runs))


def _manifests(runs: Mapping[str, Input]) -> list[Manifest]:
    """The manifest of each run once, even if several datasets of the run were read."""
    return list({run.directory: run.manifest for run in runs.values()}.values())


def _run(manifest: Manifest) -> Iterator[str]:
    """The cells of one run: name, rows, tokens, bytes of text, dropped rows."""
    name = next((name for name in COUNTED if name in manifest.datasets), None)
    dataset = manifest.datasets[name] if name else None
    source = manifest.config.get("source")
    yield f"`{manifest.stage}/{manifest.fingerprint}`" + (f" ({_line(str(source))})" if source else "")
    yield f"{dataset.rows:,}" if dataset else ""
    yield f"{dataset.tokens:,}" if dataset and dataset.tokens else ""
    yield f"{dataset.facts['text_bytes']:,}" if dataset and "text_bytes" in dataset.facts else ""
    yield ", ".join(f"{count:,} {_line(reason.replace('_', ' '))}" for reason, count in manifest.dropped.items())


def _evaluations(evaluations: Sequence[Input], checkpoint: Input, step: int) -> Iterator[str]:
    if not evaluations:
        yield "None was given to this export."
        return
    yield "| held-out rows | targets | loss (nats a token) | perplexity | bits a byte | unigram loss |"
    yield "|---|--:|--:|--:|--:|--:|"
    for evaluation in evaluations:
        _check_evaluation(evaluation, checkpoint, step)
        facts = evaluation.data.facts
        unigram = f"{facts['unigram_loss_per_token']:.4f}" if "unigram_loss_per_token" in facts else ""
        yield (
            f"| `{evaluation.manifest.inputs['heldout'][0]['reference']}` | {facts['targets']:,} | "
            f"{facts['loss_per_token']:.4f} | {facts['perplexity']:.2f} | {facts['bits_per_byte']:.4f} | {unigram} |"
        )


def _check_evaluation(evaluation: Input, checkpoint: Input, step: int) -> None:
    manifest = evaluation.manifest
    if not declared(manifest.stage).report.evaluates:
        stages = ", ".join(stage.name for stage in load_stages() if stage.declares.report.evaluates)
        raise UserError(f"got {evaluation.reference}, which is no evaluation; give runs of {stages}")
    (evaluated,) = manifest.inputs["checkpoint"]
    if evaluated["content"] != checkpoint.content() or evaluation.data.facts["step"] != step:
        raise UserError(
            f"got {evaluation.reference}, which evaluated step {evaluation.data.facts['step']} of "
            f"{evaluated['reference']}; give an evaluation of step {step} of {checkpoint.reference}, which is exported"
        )


def _line(text: str) -> str:
    """The text on one line and within one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
