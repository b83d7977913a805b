"""The loss layer: head, soft cap and cross-entropy, without ever holding the logits of a whole batch.

The logits of a batch are its largest tensor by far: 16 rows of 2,048 tokens at 32,768 ids are 4.3 GB in float32. Here a
chunk of tokens at a time gets its logits, its losses and at once its gradients, in one buffer that the next chunk
reuses. The three matrix products are those that any implementation needs; nothing is computed twice.

    z = h W^T        c = s tanh(z / s)        loss = w (log sum_v exp c_v  -  c_y)
    dz_v = w (softmax(c)_v - [v = y]) (1 - (c_v / s)^2)        dh = dz W        dW += dz^T h

Products run in the compute dtype; the cap, the exponentials and all sums in float32.

Shapes: B rows, T tokens in a row, N = B T tokens, R tokens of a chunk, V ids, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import torch

from firstlight.data.batch import IGNORE
from firstlight.errors import DataError
from firstlight.train.native.loss import native_loss, native_loss_and_grad_, why_not_native_loss

# Bytes of one chunk's logits, if they were float32. More rows mean fewer passes over dW, fewer rows less memory;
# from 32 MiB on, malloc fetches a buffer from the system anew in every step, page by page (lab/LOG.md).
CHUNK_BYTES = 24 * 2**20
MIN_CHUNK_ROWS = 128
# On a CPU torch's operations between the products work on slices whose float32 temporaries stay in the cores' own caches: whole
# chunks cost twice as much (1.5 against 3.4 ns an element, 128 rows of 32,768 ids, one Zen 5 core).
SLICE_BYTES_PER_THREAD = 2 * 2**20
# On a CPU the head's gradient is made and added in blocks of this many float32 bytes: adding a 16-bit product to float32
# goes through a copy, which for the whole of 32,768 x 256 took half as long as the product.
BLOCK_BYTES = 4 * 2**20
# Below this cap exp(c) can neither overflow nor vanish in float32, so no maximum has to be found first.
LARGEST_UNSHIFTED_CAP = 40.0

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


def default_chunk_rows(vocab_size: int) -> int:
    """Tokens in a chunk: as many as keep a chunk's float32 logits within CHUNK_BYTES, at least MIN_CHUNK_ROWS."""
    return max(MIN_CHUNK_ROWS, CHUNK_BYTES // (4 * vocab_size))


def summed_cross_entropy(
    x_BTD: torch.Tensor,
    head_weight_VD: torch.Tensor,
    targets_BT: torch.Tensor,
    weights_BT: torch.Tensor | None = None,
    *,
    softcap: float,
    compute_dtype: torch.dtype,
    chunk_rows: int | None = None,
    compiled: bool = False,
    native: bool = True,
) -> torch.Tensor:
    """Sum over the batch of weight times cross-entropy in nats: 0-d float32, differentiable in ``x`` and head weight.

    Divide by the number of targets (over all micro-batches and ranks) to get the mean: a mean per micro-batch would
    weigh targets unequally. A target of IGNORE has loss 0 and gradient 0; if all are ignored the sum is 0.

    softcap: logits are capped to (-softcap, softcap); 0 is off. chunk_rows: see `default_chunk_rows`.
    native: take native code between the products where there is such (`choose_loss_kernel`).
    compiled: where it is torch's operations, run them through torch.compile.

    Raises DataError for a target outside the vocabulary (on a CPU; a GPU stops with a device assertion).
    """
    _check_targets(targets_BT, head_weight_VD.size(0))
    x_ND = x_BTD.flatten(0, -2)
    targets_N = targets_BT.flatten()
    weights_N = (targets_N != IGNORE).float()
    if weights_BT is not None:
        weights_N = torch.where(targets_N != IGNORE, weights_BT.flatten().float(), 0.0)
    needs_grad = torch.is_grad_enabled() and (x_BTD.requires_grad or head_weight_VD.requires_grad)
    rows = chunk_rows or default_chunk_rows(head_weight_VD.size(0))
    kernel = choose_loss_kernel(
        x_ND.device.type, compute_dtype, with_gradient=needs_grad, compiled=compiled, native=native
    )
    if not needs_grad:
        losses_N = _losses(x_ND, head_weight_VD, targets_N, weights_N, softcap, compute_dtype, rows, kernel)
        return losses_N.sum()
    loss = _SummedCrossEntropy.apply(x_ND, head_weight_VD, targets_N, weights_N, softcap, compute_dtype, rows, kernel)
    assert isinstance(loss, torch.Tensor)
    return loss


@torch.no_grad()
def token_losses(
    x_BTD: torch.Tensor,
    head_weight_VD: torch.Tensor,
    targets_BT: torch.Tensor,
    *,
    softcap: float,
    compute_dtype: torch.dtype,
    chunk_rows: int | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """Cross-entropy of every token in nats, (B, T) float32, 0 where the target is IGNORE. No gradient.

    Raises DataError for a target outside the vocabulary (on a CPU; a GPU stops with a device assertion).
    """
    _check_targets(targets_BT, head_weight_VD.size(0))
    targets_N = targets_BT.flatten()
    losses_N = _losses(
        x_BTD.flatten(0, -2),
        head_weight_VD,
        targets_N,
        (targets_N != IGNORE).float(),
        softcap,
        compute_dtype,
        chunk_rows or default_chunk_rows(head_weight_VD.size(0)),
        choose_loss_kernel(x_BTD.device.type, compute_dtype, with_gradient=False, compiled=compiled),
    )
    return losses_N.view(targets_BT.shape)


class _SummedCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, while a chunk's logits are at hand; backward only scales them."""

    @staticmethod
    def forward(ctx, x_ND, head_weight_VD, targets_N, weights_N, softcap, compute_dtype, chunk_rows, kernel):
        weight_VD = head_weight_VD.to(compute_dtype)
        h_ND = x_ND.to(compute_dtype)
        dx_ND = torch.empty_like(h_ND)
        dweight_VD = torch.empty_like(head_weight_VD, dtype=torch.float32)
        loss = torch.zeros((), dtype=torch.float32, device=x_ND.device)
        buffer_RV = weight_VD.new_empty(min(chunk_rows, len(targets_N)), weight_VD.size(0))
        if len(targets_N) == 0:
            dweight_VD.zero_()
        for rows in _chunks(len(targets_N), chunk_rows):
            h_RD = h_ND[rows]
            z_RV = buffer_RV[: len(h_RD)]
            torch.mm(h_RD, weight_VD.T, out=z_RV)
            loss += kernel(z_RV, targets_N[rows], weights_N[rows], softcap).sum()
            torch.mm(z_RV, weight_VD, out=dx_ND[rows])
            _add_product_(dweight_VD, z_RV, h_RD, is_first=rows.start == 0)
        ctx.grads = dx_ND.to(x_ND.dtype), dweight_VD.to(head_weight_VD.dtype)
        return loss

    @staticmethod
    def backward(ctx, *grad_outputs):
        (grad_output,) = grad_outputs
        if ctx.grads is None:
            raise RuntimeError("the gradients of the loss layer were used up by an earlier backward pass")
        dx_ND, dweight_VD = ctx.grads
        ctx.grads = None
        # Reading a GPU's value would stall it, so only a CPU checks for the factor 1 that train_step uses.
        if grad_output.device.type != "cpu" or grad_output.item() != 1.0:
            dx_ND.mul_(grad_output)
            dweight_VD.mul_(grad_output)
        return dx_ND, dweight_VD, None, None, None, None, None, None


def loss_kernel(z_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor, softcap: float) -> torch.Tensor:
    """Weighted losses in nats, (R,) float32, of logits before the cap."""
    c_RV, _ = _softcapped(z_RV, softcap)
    target_logits_R = c_RV.gather(1, targets_R.clamp_min(0)[:, None]).squeeze(1)
    _, logsumexp_R, _ = _exp_(c_RV, softcap)
    return (logsumexp_R - target_logits_R) * weights_R


def loss_and_grad_kernel_(
    z_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor, softcap: float
) -> torch.Tensor:
    """Weighted losses in nats, (R,) float32; ``z_RV``, logits before the cap, is overwritten by the loss's gradient."""
    index_R1 = targets_R.clamp_min(0)[:, None]
    c_target_R1, slope_target_R1 = _softcapped(z_RV.gather(1, index_R1), softcap)
    c_RV, slope_RV = _softcapped(z_RV, softcap)
    exp_RV, logsumexp_R, sum_R = _exp_(c_RV, softcap)
    dz_RV = exp_RV.mul_((weights_R / sum_R)[:, None])
    # At the target, p - 1 is formed before anything is rounded to 16 bits: there p may be within rounding of 1.
    dz_target_R1 = torch.expm1(c_target_R1 - logsumexp_R[:, None]) * weights_R[:, None]
    if slope_RV is not None and slope_target_R1 is not None:
        dz_RV.mul_(slope_RV)
        dz_target_R1 = dz_target_R1 * slope_target_R1
    z_RV.copy_(dz_RV)
    z_RV.scatter_(1, index_R1, dz_target_R1.to(z_RV.dtype))
    return (logsumexp_R - c_target_R1.squeeze(1)) * weights_R


def choose_loss_kernel(
    device_type: str, dtype: torch.dtype, *, with_gradient: bool, compiled: bool, native: bool = True
) -> Kernel:
    """What is run between the products of logits in ``dtype``: native code where there is such, else torch's operations."""
    if native and why_not_native_loss(device_type=device_type, dtype=dtype) is None:
        return native_loss_and_grad_ if with_gradient else native_loss
    if compiled:
        kernel = compiled_loss_and_grad_kernel_() if with_gradient else compiled_loss_kernel()
    else:
        kernel = loss_and_grad_kernel_ if with_gradient else loss_kernel
    return partial(_sliced, kernel) if device_type == "cpu" else kernel


@lru_cache(maxsize=1)
def compiled_loss_kernel() -> Kernel:
    """`loss_kernel` through torch.compile, made at the first call."""
    return torch.compile(loss_kernel)


@lru_cache(maxsize=1)
def compiled_loss_and_grad_kernel_() -> Kernel:
    """`loss_and_grad_kernel_` through torch.compile, made at the first call."""
    return torch.compile(loss_and_grad_kernel_)


def _losses(
    x_ND: torch.Tensor,
    head_weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    weights_N: torch.Tensor,
    softcap: float,
    compute_dtype: torch.dtype,
    chunk_rows: int,
    kernel: Kernel,
) -> torch.Tensor:
    """Weighted losses of every token, (N,) float32."""
    weight_VD = head_weight_VD.detach().to(compute_dtype)
    h_ND = x_ND.detach().to(compute_dtype)
    losses_N = torch.empty(len(targets_N), dtype=torch.float32, device=x_ND.device)
    buffer_RV = weight_VD.new_empty(min(chunk_rows, len(targets_N)), weight_VD.size(0))
    for rows in _chunks(len(targets_N), chunk_rows):
        h_RD = h_ND[rows]
        z_RV = torch.mm(h_RD, weight_VD.T, out=buffer_RV[: len(h_RD)])
        losses_N[rows] = kernel(z_RV, targets_N[rows], weights_N[rows], softcap)
    return losses_N


def _add_product_(dweight_VD: torch.Tensor, dz_RV: torch.Tensor, h_RD: torch.Tensor, *, is_first: bool) -> None:
    """dW += dz^T h, or dW = dz^T h for the first chunk. A product of 16-bit tensors comes out rounded to 16 bits; the sum
    over chunks is kept in float32."""
    if dz_RV.dtype is torch.float32:
        dweight_VD.addmm_(dz_RV.T, h_RD, beta=0 if is_first else 1)
        return
    num_ids, width = dweight_VD.shape
    block = max(1, BLOCK_BYTES // (4 * width)) if dz_RV.device.type == "cpu" else num_ids
    for ids in _chunks(num_ids, block):
        product = torch.mm(dz_RV[:, ids].T, h_RD)
        if is_first:
            dweight_VD[ids].copy_(product)
        else:
            dweight_VD[ids].add_(product)


def _sliced(
    kernel: Kernel, z_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor, softcap: float
) -> torch.Tensor:
    """Losses of a chunk, (R,) float32, a slice of rows after another: what torch's operations make fits a core's cache."""
    step = max(1, SLICE_BYTES_PER_THREAD * torch.get_num_threads() // (4 * z_RV.size(1)))
    return torch.cat([kernel(z_RV[s], targets_R[s], weights_R[s], softcap) for s in _chunks(len(z_RV), step)])


def _softcapped(z: torch.Tensor, softcap: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Capped logits c, and dc/dz (None for 1), both new and float32.

    tanh(y) = 1 - 2r and its slope is 4 r (1 - r) with r = 1 / (1 + exp(2y)): one exponential where tanh itself costs
    about three, and no overflow can hurt, since exp = inf gives r = 0.
    """
    if softcap <= 0:
        return z.to(torch.float32, copy=True), None
    r = (z.float() * (2 / softcap)).exp_().add_(1).reciprocal_()
    c = (r * (-2 * softcap)).add_(softcap)
    return c, torch.addcmul(r, r, r, value=-1).mul_(4)


def _exp_(c_RV: torch.Tensor, softcap: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """exp(c) in place up to a factor per row that leaves nothing to overflow; log sum exp(c); the sum with that factor."""
    if 0 < softcap <= LARGEST_UNSHIFTED_CAP:
        exp_RV = c_RV.exp_()
        sum_R = exp_RV.sum(1)
        return exp_RV, sum_R.log(), sum_R
    largest_R1 = c_RV.amax(1, keepdim=True)
    exp_RV = c_RV.sub_(largest_R1).exp_()
    sum_R = exp_RV.sum(1)
    return exp_RV, sum_R.log() + largest_R1.squeeze(1), sum_R


def _chunks(num: int, size: int) -> Iterator[slice]:
    for start in range(0, num, size):
        yield slice(start, min(start + size, num))


def _check_targets(targets: torch.Tensor, vocab_size: int) -> None:
    if targets.device.type != "cpu" or targets.numel() == 0:
        return
    smallest, largest = (int(v) for v in targets.aminmax())
    if smallest < IGNORE or largest >= vocab_size:
        wrong = smallest if smallest < IGNORE else largest
        raise DataError(
            f"target {wrong} is not in a vocabulary of {vocab_size} ids",
            hint="the tokens were made with another tokenizer than the model's",
        )
