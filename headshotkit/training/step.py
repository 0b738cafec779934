"""Make one training step: examples, noise, prediction, loss, backward, clipping, optimizer.

All randomness of a step comes from (seed, step), so on a CPU a killed training resumes to the same LoRA.
On CUDA it does so to rounding: the backward of attention and of upsampling adds in no fixed order there.
"""

from __future__ import annotations

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from headshotkit.config import TrainConfig
from headshotkit.core import runtime
from headshotkit.families import Family
from headshotkit.planning.schedule import Pacing
from headshotkit.training.examples import Batch, TrainingSet, in_epochs
from headshotkit.training.optimizers import learning_rate_at
from headshotkit.training.state import TrainState

MAX_GRAD_NORM = 1.0
STEP = 1
"""Index of the seed for all randomness in a step."""


def train_step(state: TrainState, data: TrainingSet, pacing: Pacing) -> None:
    """Make the next step, one optimizer update, and note its loss in the state.

    A step whose loss or gradients are not finite changes no weights.
    """
    step, config, px = state.step, pacing.at(state.step), pacing.px_at(state.step)
    generator = torch.Generator().manual_seed(runtime.seed_for(config.seed, STEP, step))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(step, config) * group.get("factor", 1.0)

    # The person's photos: each once an epoch. Some captions are left out, so that guidance has a bare picture to use.
    photos = data.person[px]
    chosen = in_epochs(photos.count, pacing.pictures_before(step), pacing.pictures_before(step + 1), config.seed)
    batch = photos.batch(chosen, data.conditions, generator, config.caption_dropout, config.face_weight)
    loss = denoising_loss(state.family, batch, config, generator).mean()

    # Prior preservation: the loss of class images, so that the base does not forget other faces.
    class_images = data.class_images[px]
    if class_images.count:
        chosen = torch.randint(class_images.count, (config.batch,), generator=generator).tolist()
        batch = class_images.batch(chosen, data.conditions, generator)
        loss = loss + config.prior_weight * denoising_loss(state.family, batch, config, generator).mean()

    state.scaler.scale(loss).backward()

    state.updating = True
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.parameters, MAX_GRAD_NORM)
    finite = bool((norm + loss.detach()).isfinite())
    if finite or state.scaler.is_enabled():  # a scaler skips such a step, and lowers its scale
        state.scaler.step(state.optimizer)
        state.scaler.update()
    if state.average:  # faster at first, so that the first steps soon count for little
        decay = min(config.ema, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(state.average, [p.detach() for p in state.parameters], step)
    state.updating = False

    state.optimizer.zero_grad(set_to_none=True)
    value = float(loss.detach())
    if not finite:
        state.skipped.append(step)
    state.losses.append(value)


def denoising_loss(family: Family, batch: Batch, config: TrainConfig, generator: torch.Generator) -> torch.Tensor:
    """Return the loss of each picture, shape (N,): how far the predicted noise, or velocity, is from the true one.

    Source: Ho et al. 2020, arXiv:2006.11239; for velocities Lipman et al. 2022, arXiv:2210.02747.
    """
    noised = family.add_noise(batch.latents, config, generator)
    predicted = family.predict(noised, batch.condition, batch.sizes).float()
    error = (predicted - noised.target.to(predicted.device)).pow(2)
    if batch.weights is not None:
        error = error * batch.weights.to(error.device)
    error = error.mean((1, 2, 3))
    return error if noised.weights is None else error * noised.weights.to(error.device)
