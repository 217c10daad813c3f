"""From a config and its inputs to a job; checks that the inputs fit each other, the model and the config.

    TrainingInputs (rows, cached logits, checkpoints) + TrainingConfig + mixture -> TrainJob

The fields of `TrainJob` for the run's other outputs, and for how it runs, are set by the caller afterwards.
"""

from collections.abc import Sequence

from data.order import Order
from training.checkpoints.identity import check_can_be_carried_on
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
    """The job, with all that decides the weights and where they are computed. Raises UserError if inputs do not fit."""
    sequences, logits, carried = inputs.sequences, inputs.logits, inputs.carried
    facts = [dataset.facts for dataset in sequences]
    for name in ("sequence_length", "vocab_size"):
        if len({fact[name] for fact in facts}) > 1:
            values = ", ".join(
                f"{dataset.reference} has {fact[name]}" for dataset, fact in zip(sequences, facts, strict=True)
            )
            raise UserError(f"got sequences of different {name}: {values}; pack them with the same {name}")
    if len({dataset.tokenizer_sha256 for dataset in sequences}) > 1:
        values = ", ".join(f"{dataset.reference} by {dataset.tokenizer_sha256}" for dataset in sequences)
        raise UserError(f"got sequences of different tokenizers: {values}; tokenize all of them with the same one")
    if config.objective == "next_token" and logits:
        raise UserError("got logits for objective 'next_token'; leave --logits out, or set --objective distill")
    checked = [check_logits(dataset, cached) for dataset, cached in zip(sequences, logits, strict=False)]
    if len({spec for spec, _ in checked}) > 1:
        values = ", ".join(f"{cached.reference} is {spec}" for cached, (spec, _) in zip(logits, checked, strict=True))
        raise UserError(f"got logits of different kinds: {values}; run cache_logits with the same settings for all")
    if checked and not kind_of(checked[0][0].estimator).has_tail and config.distill.tail != DistillConfig().tail:
        raise UserError(
            f"got --distill.tail {config.distill.tail}, which is for the mass outside of a top-k, but "
            f"{logits[0].reference} holds estimator {checked[0][0].estimator!r}; leave --distill.tail out"
        )
    if inputs.initial and carried:
        raise UserError(
            "got --initial, which starts a run from weights, and --from, which carries a run on with its moments; "
            "give one of the two"
        )
    for checkpoint in inputs.checkpoints:
        check_one_tokenizer(checkpoint, sequences[0])
        check_same_model(checkpoint.uri, config.model)
    sources = [source_of(dataset) for dataset in sequences]
    phases = phases_of(mixture, sources, carried.uri if carried else None)
    Order(sources, phases, config.global_batch, order_seed)  # refuses phases that do not fit the sources
    job = TrainJob(
        config=config,
        checkpoints_uri=checkpoints_uri,
        sequences=tuple((source, dataset.uris) for source, dataset in zip(sources, sequences, strict=True)),
        phases=phases,
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
    if carried:
        check_can_be_carried_on(carried.uri, job)
    return job
