"""The loss of a training run: to the next token, or to the kind of distribution in its cache of logits."""

from functools import partial

from data.logits import CodecSpec
from training.config import TrainingConfig
from training.distill.kinds import kind_of
from training.errors import UserError
from training.loss import LossFunction, LossOptions, next_token_loss
from training.loss_head import RunHead, loop_head


def loss_function(config: TrainingConfig, codec: CodecSpec | None, run_head: RunHead = loop_head) -> LossFunction:
    """The loss for the config's objective and the cache. Raises UserError for `distill` without a cache."""
    options = LossOptions(distill=config.distill, z_loss=config.z_loss, run_head=run_head)
    if config.objective == "next_token":
        return partial(next_token_loss, options=options)
    if codec is None:
        raise UserError("got no codec for objective 'distill', which needs the codec of the cached logits; pass it")
    return partial(kind_of(codec.estimator).loss, codec=codec, options=options)
