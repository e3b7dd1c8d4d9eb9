r"""Training: what a network is trained for, the loop that survives a kill, and models of few steps.

Everything random in a step (which rows, which times, which noise, what dropout drops) is a pure function of
(seed, step). So a checkpoint is the weights, their average, Adam's moments and a step number, and a run that was killed
and resumed ends with the same bits as one that was not, on the same machine with the same number of threads.
"""

from sdekit.checkpoint import Checkpoint
from sdekit.training.averages import Snapshot, decay_at, exponent, reconstructed
from sdekit.training.consistency import Consistency, consistency_loss, train_consistency
from sdekit.training.couplings import COUPLINGS, coupling
from sdekit.training.denoiser import Batches, Denoising, HeldOut, batch_rows, train_denoiser
from sdekit.training.loop import Optimisation, fit, lerp_weights
from sdekit.training.mean_flow import MeanFlow, mean_flow_loss, mean_flow_steps, train_mean_flow
from sdekit.training.objectives import denoising_loss, denoising_risk, score_matching_loss
from sdekit.training.progressive import train_progressive, two_steps
from sdekit.training.reflow import pairs, train_reflow
from sdekit.training.times import (
    TIME_SAMPLERS,
    importance_times,
    log_normal_times,
    stratified,
    time_sampler,
    uniform_times,
)
from sdekit.training.watching import Watch
from sdekit.training.weightings import WEIGHTINGS, weighting

__all__ = [
    "COUPLINGS", "TIME_SAMPLERS", "WEIGHTINGS", "Batches", "Checkpoint", "Consistency", "Denoising", "HeldOut",
    "MeanFlow", "Optimisation", "Snapshot", "Watch", "batch_rows", "consistency_loss", "coupling", "decay_at",
    "denoising_loss", "denoising_risk", "exponent", "fit", "importance_times", "lerp_weights", "log_normal_times",
    "mean_flow_loss", "mean_flow_steps", "pairs", "reconstructed", "score_matching_loss", "stratified",
    "time_sampler", "train_consistency", "train_denoiser", "train_mean_flow", "train_progressive", "train_reflow",
    "two_steps", "uniform_times", "weighting",
]  # fmt: skip
