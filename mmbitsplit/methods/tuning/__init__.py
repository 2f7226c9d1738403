"""Stages that change the whole model once all layers are solved; one a file."""

from mmbitsplit.methods.tuning.base import (
    STAGES,
    STEP_IMAGES,
    Learned,
    TuningStage,
    build_stages,
    register_stage,
)
from mmbitsplit.methods.tuning.bias_tuning import BiasTuning
from mmbitsplit.methods.tuning.norm_reestimation import NormReestimation
from mmbitsplit.methods.tuning.output_tuning import OutputTuning
from mmbitsplit.methods.tuning.problem import NormProblem, TuningProblem

__all__ = ['BiasTuning', 'Learned', 'NormProblem', 'NormReestimation', 'OutputTuning', 'STAGES',
           'STEP_IMAGES', 'TuningProblem', 'TuningStage', 'build_stages', 'register_stage']
