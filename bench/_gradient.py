"""A gradient through the solver to its times and free numbers, for ``bench.ideas`` and ``bench.free_numbers``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from autodiffusion.models._model import Model


def falling(logits: Tensor, last: int) -> Tensor:
    """``[K + 1]`` logits of the gaps as K falling times in (0, T - 1)."""
    return last * (1 - torch.softmax(logits, 0).cumsum(0)[:-1])


def differentiable(
    model: Model, start: Tensor, times: Tensor, numbers: Mapping[tuple[int, str], Tensor] | None = None
) -> Tensor:
    """``gls`` on ``ddim`` from ``start`` to clean data, differentiable in both; for models without clipping.

    Args:
        times: ``[K]``, float64.
        numbers: by their steps and names, as they are open for each step. Without any it is ``ddim``.

    The exact models take the time as a float, so the derivative of the network in it is a difference quotient here; a
    network's backward pass gives it along with the rest, and so it is not counted.
    """
    log_alphas, last = torch.from_numpy(0.5 * np.log(model.schedule.alphas_cumprod)), len(model.schedule) - 1
    below = times.detach().floor().clamp(0, last - 1).long()
    log_alpha = log_alphas[below] + (times - below) * (log_alphas[below + 1] - log_alphas[below])
    one, zero = torch.ones(1), torch.zeros(1)
    alpha = torch.cat([log_alpha.exp().float(), one])
    sigma = torch.cat([(-torch.expm1(2 * log_alpha)).sqrt().float(), zero])
    x, before = start, start
    for k, t in enumerate(times.tolist()):
        epsilon = model.predict(x, t, None)
        with torch.no_grad():
            low, high = max(t - 0.5, 0.0), min(t + 0.5, float(last))
            slope = (model.predict(x, high, None) - model.predict(x, low, None)) / (high - low)
        epsilon = epsilon + slope * (times[k] - t).float()
        x0 = (x - sigma[k] * epsilon) / alpha[k]
        data, noise = ((numbers or {}).get((k, name), zero).float() for name in ("data1", "noise"))
        x = alpha[k + 1] * (x0 + data * (x0 - before)) + sigma[k + 1] * (epsilon + noise * (start - epsilon))
        before = x0
    return x
