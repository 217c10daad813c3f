"""From a config and its inputs to a job: that the inputs fit each other, the model and the config is checked here.

    TrainingInputs (rows, cached logits, checkpoints) + TrainingConfig + mixture -> TrainJob

Where the run writes besides its checkpoints, and how it runs, are fields of `TrainJob` that the caller replaces.
"""

from collections.abc import Sequence

from training.checkpoints.save_load import check_same_model
from training.config import DistillConfig, TrainingConfig
from training.distill.kinds import kind_of
from training.errors import UserError
from training.inputs import TrainingInputs, check_logits, check_one_tokenizer
from training.job import TrainJob
from training.mixture import phases_of, source_of
from training.setup import Setup


def make_job(
    config: TrainingConfig,
    inputs: TrainingInputs,
    *,
    checkpoints_uri: str,
    setup: Setup,
    mixture: Sequence[str] = (),
    order_seed: int = 0,
) -> TrainJob:
    """All that decides the weights, and where they are computed. Raises UserError where the inputs do not fit."""
    sequences, logits, carried = inputs.sequences, inputs.logits, inputs.carried
    facts = [dataset.facts for dataset in sequences]
    for name in ("sequence_length", "vocab_size"):
        if len({fact[name] for fact in facts}) > 1:
            values = ", ".join(
                f"{dataset.reference} has {fact[name]}" for dataset, fact in zip(sequences, facts, strict=True)
            )
            raise UserError(f"sequences of different {name} cannot be mixed: {values}; pack them alike")
    if len({dataset.tokenizer_sha256 for dataset in sequences}) > 1:
        values = ", ".join(f"{dataset.reference} by {dataset.tokenizer_sha256}" for dataset in sequences)
        raise UserError(f"sequences of different tokenizers cannot be mixed: {values}; tokenize them with one")
    if config.objective == "next_token" and logits:
        raise UserError("objective 'next_token' takes no logits; leave --logits out, or set --objective distill")
    checked = [check_logits(dataset, cached) for dataset, cached in zip(sequences, logits, strict=False)]
    if len({spec for spec, _ in checked}) > 1:
        values = ", ".join(f"{cached.reference} is {spec}" for cached, (spec, _) in zip(logits, checked, strict=True))
        raise UserError(f"logits of different kinds cannot be mixed: {values}; cache them alike")
    if checked and not kind_of(checked[0][0].estimator).has_tail and config.distill.tail != DistillConfig().tail:
        raise UserError(
            f"distill.tail {config.distill.tail!r} is about the mass outside of a top-k, and {logits[0].reference} "
            f"holds estimator {checked[0][0].estimator!r}; leave it out"
        )
    if inputs.initial and carried:
        raise UserError(
            "--initial starts a run from weights, --from carries one on with its moments; give one of the two"
        )
    for checkpoint in inputs.checkpoints:
        check_one_tokenizer(checkpoint, sequences[0])
        check_same_model(checkpoint.uri, config.model)
    sources = [source_of(dataset) for dataset in sequences]
    return TrainJob(
        config=config,
        checkpoints_uri=checkpoints_uri,
        sequences=tuple((source, dataset.uris) for source, dataset in zip(sources, sequences, strict=True)),
        phases=phases_of(mixture, sources, carried.uri if carried else None),
        order_seed=order_seed,
        sequence_length=facts[0]["sequence_length"],
        vocab_size=facts[0]["vocab_size"],
        logits=tuple(cached.uris for cached in logits) if logits else None,
        codec=checked[0][0] if checked else None,
        logits_made_as=tuple(cached.facts["made_as"] for cached in logits) if logits else None,
        max_unique=max(unique for _, unique in checked) if checked else None,
        input_fingerprints=inputs.fingerprints(),
        initial_uri=inputs.initial.uri if inputs.initial else None,
        carried_uri=carried.uri if carried else None,
        setup=setup,
    )
