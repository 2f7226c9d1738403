"""The whole model as a tuning stage sees it, see ``methods.tuning``."""

from mmbitsplit.solving.tuning.inner_loss import InnerLoss
from mmbitsplit.solving.tuning.learned_values import LearnedValues
from mmbitsplit.solving.tuning.output_loss import OutputLoss
from mmbitsplit.solving.tuning.renormalised_model import RenormalisedModel, norms_of_float
from mmbitsplit.solving.tuning.tuned_model import (
    TunedModel,
    as_float,
    record_float,
    split_batches,
    spreads_of,
)

__all__ = ['InnerLoss', 'LearnedValues', 'OutputLoss', 'RenormalisedModel', 'TunedModel',
           'as_float', 'norms_of_float', 'record_float', 'split_batches', 'spreads_of']
