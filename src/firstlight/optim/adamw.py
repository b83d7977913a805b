"""AdamW, one pass over memory per parameter.

Per element, with t the number of this update (Loshchilov & Hutter, arXiv 1711.05101, as torch.optim.AdamW does it):

    w <- w - lr * weight_decay * w                                   decay first, on the old weight
    m <- beta1 * m + (1 - beta1) * g
    v <- beta2 * v + (1 - beta2) * g^2
    w <- w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)    eps after the bias correction

The arithmetic is torch's fused kernel: it reads and writes each tensor once (28 bytes a parameter), where the formula
spelled out with tensor operations passes about ten times.
"""

from __future__ import annotations

import torch
from torch.optim.adamw import adamw

# Devices for which torch 2.13 has the fused kernel; elsewhere the same function runs its foreach version.
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def adamw_update_(
    parameters: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    steps: list[torch.Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_divisor: torch.Tensor | None = None,
) -> None:
    """Update ``parameters``, ``exp_avgs`` and ``exp_avg_sqs`` in place. All float32.

    steps: one 0-d float32 tensor per parameter, the number of updates *before* this one; each is raised by 1.
    grad_divisor: 0-d float32 tensor that divides every gradient first (scaling and clipping without another pass over
    memory); the fused kernel leaves the divided gradients in ``grads``.
    """
    if not parameters:
        return
    fused = parameters[0].device.type in FUSED_DEVICES
    if grad_divisor is not None and not fused:
        torch._foreach_div_(grads, grad_divisor)
        grad_divisor = None
    adamw(
        parameters,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=fused,
        foreach=not fused,
        grad_scale=grad_divisor,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
