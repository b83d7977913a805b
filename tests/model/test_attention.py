"""Claims about attention.

1. All kernels give a plain float64 computation's result, for any grouping, length, window and number of past keys.
2. So do their gradients. 3. The choice is logged with its reason, and is the one that is taken.
4. A window saves work where it is said to.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from firstlight.model import attention
from firstlight.model.attention import (
    LARGEST_UNSHIFTED_SCORE,
    MAX_BLOCKS,
    Kernel,
    attend,
    attend_to_own,
    choose_kernel,
    window_block_mask,
)
from firstlight.model.blocked import BLOCK_ROWS, blocked_scores, causal_mask
from firstlight.model.native import attention as native_attention
from firstlight.model.rope import rope_tables
from firstlight.runtime.native import library
from firstlight.runtime.native.library import Unavailable

KERNELS = pytest.mark.parametrize(
    ("kernel", "bound"), [("sdpa", None), ("blocked", None), ("blocked", LARGEST_UNSHIFTED_SCORE)]
)
"""Each kernel, and the blocked one with and without a bound on the scores (of these heads none is near it)."""


def heads(B: int, H: int, T: int, K: int, *, seed: int) -> torch.Tensor:
    return torch.randn(B, H, T, K, generator=torch.Generator().manual_seed(seed))


def plain(q_BHTK: torch.Tensor, k_BGSK: torch.Tensor, v_BGSK: torch.Tensor, window: int = 10**9) -> torch.Tensor:
    """Attention of one query after another, in float64; each head with the keys and values of its group."""
    q = q_BHTK.double()
    H, T, K = q.shape[1:]
    G, S = k_BGSK.shape[1:3]
    group_of_head = [h // (H // G) for h in range(H)]
    k_BHSK, v_BHSK = k_BGSK.double()[:, group_of_head], v_BGSK.double()[:, group_of_head]
    out = []
    for t in range(T):
        own = S - T + t
        seen = slice(max(0, own - window + 1), own + 1)
        scores = (k_BHSK[:, :, seen] * q[:, :, t, None]).sum(-1) / K**0.5
        out.append((scores.softmax(-1)[..., None] * v_BHSK[:, :, seen]).sum(2))
    return torch.stack(out, dim=2)


@KERNELS
@pytest.mark.parametrize(("H", "G"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    ("T", "num_past"), [(1, 0), (1, 9), (7, 0), (5, 6), (BLOCK_ROWS, 0), (BLOCK_ROWS + 1, 0), (2 * BLOCK_ROWS + 3, 4)]
)
def test_kernels_give_the_plain_result(
    kernel: Kernel, bound: float | None, H: int, G: int, T: int, num_past: int
) -> None:
    q = heads(2, H, T, 8, seed=0)
    k, v = heads(2, G, num_past + T, 8, seed=1), heads(2, G, num_past + T, 8, seed=2)
    assert (
        attend(q, k, v, num_past=num_past, score_bound=bound, kernel=kernel).double() - plain(q, k, v)
    ).abs().max() < 1e-5


@KERNELS
@pytest.mark.parametrize(("H", "G"), [(2, 2), (4, 2)])
def test_gradients_are_those_of_the_plain_result(kernel: Kernel, bound: float | None, H: int, G: int) -> None:
    T = BLOCK_ROWS + 5
    q, k, v = heads(1, H, T, 8, seed=0), heads(1, G, T, 8, seed=1), heads(1, G, T, 8, seed=2)
    weight = heads(1, H, T, 8, seed=3)
    grads = []
    for compute in (lambda a, b, c: attend(a, b, c, score_bound=bound, kernel=kernel), plain):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        grads.append(torch.autograd.grad((compute(*leaves) * weight).sum(), leaves))
    for ours, expected in zip(*grads, strict=True):
        assert (ours - expected).abs().max() < 1e-5


@KERNELS
def test_bf16_is_near_the_plain_result(kernel: Kernel, bound: float | None) -> None:
    q, k, v = (heads(2, 2, 300, 64, seed=i).bfloat16() for i in range(3))
    out = attend(q, k, v, score_bound=bound, kernel=kernel)
    assert out.dtype == torch.bfloat16
    assert (out.double() - plain(q, k, v)).abs().max() < 0.02


@pytest.mark.parametrize("kernel", ["sdpa", "blocked"])
def test_large_scores_do_not_overflow(kernel: Kernel) -> None:
    q = heads(1, 1, 6, 4, seed=0) * 1e4
    # A bound that is true but large changes nothing; exponentials of such scores would be infinite.
    for bound in (None, 1e10):
        out = attend(q, q, heads(1, 1, 6, 4, seed=1), score_bound=bound, kernel=kernel)
        assert out.isfinite().all()


WINDOWED = pytest.mark.parametrize(
    ("T", "num_past", "window"),
    [(1, 0, 1), (1, 300, 7), (7, 0, 3), (5, 6, 2), (BLOCK_ROWS + 1, 0, BLOCK_ROWS), (2 * BLOCK_ROWS + 3, 0, 200),
     (2 * BLOCK_ROWS + 3, 150, 140), (300, 4, 301), (300, 4, 1000), (3 * BLOCK_ROWS, 0, 1)],
)  # fmt: skip


@pytest.mark.parametrize(("kernel", "bound"), [("sdpa", None), ("blocked", None), ("blocked", 40.0), ("flex", None)])
@pytest.mark.parametrize(("H", "G"), [(2, 2), (4, 2)])
@WINDOWED
def test_windows_give_the_plain_result(
    kernel: Kernel, bound: float | None, H: int, G: int, T: int, num_past: int, window: int
) -> None:
    q = heads(2, H, T, 8, seed=0)
    k, v = heads(2, G, num_past + T, 8, seed=1), heads(2, G, num_past + T, 8, seed=2)
    out = attend(q, k, v, num_past=num_past, window=window, score_bound=bound, kernel=kernel)
    assert (out.double() - plain(q, k, v, window)).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", ["sdpa", "blocked"])
def test_gradients_in_a_window_are_those_of_the_plain_result(kernel: Kernel) -> None:
    T, window = 2 * BLOCK_ROWS + 5, 100
    q, k, v = heads(1, 4, T, 8, seed=0), heads(1, 2, T, 8, seed=1), heads(1, 2, T, 8, seed=2)
    weight = heads(1, 4, T, 8, seed=3)
    grads = []
    for compute in (lambda a, b, c: attend(a, b, c, window=window, kernel=kernel), lambda *qkv: plain(*qkv, window)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        grads.append(torch.autograd.grad((compute(*leaves) * weight).sum(), leaves))
    for ours, expected in zip(*grads, strict=True):
        assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", ["sdpa", "blocked", "flex"])
def test_a_window_in_bf16_is_near_the_plain_result(kernel: Kernel) -> None:
    q, k, v = (heads(2, 2, 300, 64, seed=i).bfloat16() for i in range(3))
    out = attend(q, k, v, window=77, kernel=kernel)
    assert out.dtype == torch.bfloat16
    assert (out.double() - plain(q, k, v, 77)).abs().max() < 0.02


@pytest.mark.parametrize("kernel", ["sdpa", "blocked", "flex"])
def test_keys_outside_the_window_are_not_seen(kernel: Kernel) -> None:
    """What a single query cannot see is cut off before anything is multiplied: even NaN there changes nothing."""
    q, k, v = heads(1, 1, 1, 8, seed=0), heads(1, 1, 40, 8, seed=1), heads(1, 1, 40, 8, seed=2)
    expected = attend(q, k, v, num_past=39, window=5, kernel=kernel)
    k[:, :, :35], v[:, :, :35] = float("inf"), float("nan")
    assert torch.equal(attend(q, k, v, num_past=39, window=5, kernel=kernel), expected)


def test_flex_is_one_graph() -> None:
    """Traced as a compiler would, and run without one: it is taken on a GPU only. Forward only: on a CPU torch has no
    backward pass of it."""
    q, k, v = heads(1, 4, 301, 16, seed=0), heads(1, 2, 301, 16, seed=1), heads(1, 2, 301, 16, seed=2)
    traced = torch.compile(
        lambda *qkv: attend(*qkv, window=130, kernel="flex"), fullgraph=True, dynamic=False, backend="aot_eager"
    )
    with torch.no_grad():
        assert (traced(q, k, v).double() - plain(q, k, v, 130)).abs().max() < 1e-5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("T", "window"), [(513, 200), (1024, 256)])
def test_flex_on_a_gpu_trains_as_the_plain_result(T: int, window: int) -> None:
    q, k, v = (heads(2, 4, T, 64, seed=i) for i in range(3))
    weight = heads(2, 4, T, 64, seed=3)
    compiled = torch.compile(lambda *qkv: attend(*qkv, window=window), fullgraph=True, dynamic=False)
    grads = []
    for compute, device in ((compiled, "cuda"), (lambda *qkv: attend(*qkv, window=window, kernel="sdpa"), "cpu")):
        leaves = [
            x.to(device, torch.bfloat16 if device == "cuda" else torch.float32).requires_grad_() for x in (q, k, v)
        ]
        y = compute(*leaves)
        grads.append([t.float().cpu() for t in (y, *torch.autograd.grad((y * weight.to(y)).sum(), leaves))])
    for ours, expected in zip(*grads, strict=True):
        assert (ours - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    ("T", "S", "window"),
    [(128, 128, None), (512, 512, None), (512, 512, 400), (1024, 1024, 385), (300, 300, 128), (513, 513, 129),
     (5, 300, 17), (200, 513, 300), (257, 400, 1), (130, 130, 500)],
)  # fmt: skip
def test_blocks_are_those_that_torch_finds_in_the_whole_mask(T: int, S: int, window: int | None) -> None:
    def sees(b, h, q, k):
        return causal_mask(T, S, torch.device("cpu"), window=window)[q, k]

    ours = window_block_mask(T, S, window=window, device=torch.device("cpu"))
    expected = create_block_mask(sees, None, None, T, S, device="cpu", BLOCK_SIZE=128)
    for name in (
        "kv_num_blocks",
        "kv_indices",
        "full_kv_num_blocks",
        "full_kv_indices",
        "q_num_blocks",
        "full_q_num_blocks",
    ):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name


def test_a_window_saves_scores() -> None:
    """By counting the scores that are computed: 8 blocks of 128 queries, of which all but the first two read 255 keys."""
    assert blocked_scores(1024, 128) == 128 * (128 + 7 * 255)
    assert blocked_scores(1024) == 128 * sum(128 * i for i in range(1, 9))
    mask = window_block_mask(4096, 4096, window=1024, device=torch.device("cpu"))
    read = mask.kv_num_blocks + mask.full_kv_num_blocks  # pyrefly: ignore[unsupported-operation]
    assert read.max() == 9
    assert read.sum() < 0.5 * 32 * 33 / 2


def test_mask_lets_the_last_query_see_the_last_key() -> None:
    expected = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert torch.equal(causal_mask(2, 4, torch.device("cpu")), expected)


def test_wrong_number_of_keys_is_noticed() -> None:
    q, k = heads(1, 1, 3, 4, seed=0), heads(1, 1, 5, 4, seed=1)
    with pytest.raises(AssertionError):
        attend(q, k, k, num_past=1)


@pytest.mark.parametrize(
    ("device_type", "dtype", "seq_len", "kernel"),
    [
        ("cpu", torch.bfloat16, 256, "blocked"),
        ("cpu", torch.bfloat16, MAX_BLOCKS * BLOCK_ROWS, "blocked"),
        ("cpu", torch.bfloat16, MAX_BLOCKS * BLOCK_ROWS + 1, "sdpa"),
        ("cpu", torch.bfloat16, 1, "sdpa"),
        ("cpu", torch.float32, 256, "native"),
        ("cpu", torch.float32, 1, "sdpa"),
        ("cpu", torch.float16, 256, "sdpa"),
        ("cuda", torch.bfloat16, 256, "sdpa"),
        ("mps", torch.float32, 256, "sdpa"),
    ],
)
def test_choice_comes_with_its_reason(
    device_type: str, dtype: torch.dtype, seq_len: int, kernel: str, native: None
) -> None:
    name, reason = choose_kernel(device_type=device_type, compute_dtype=dtype, seq_len=seq_len)
    assert name == kernel
    assert reason.startswith(f"attention {kernel}: ")
    assert len(reason) > 30


@pytest.mark.parametrize(
    ("device_type", "dtype", "seq_len", "window", "is_compiled", "kernel", "words"),
    [
        ("cpu", torch.float32, 512, 128, False, "blocked", "only the keys in their windows of 128"),
        ("cpu", torch.float32, 512, 512, False, "native", "stay in a core's cache"),
        ("cpu", torch.bfloat16, 2048, 512, True, "sdpa", "saves no work"),
        ("cuda", torch.bfloat16, 2048, 512, True, "flex", "skips the blocks of keys outside the window of 512"),
        ("cuda", torch.bfloat16, 2048, 512, False, "sdpa", "saves no work"),
        ("cuda", torch.bfloat16, 2048, 2048, True, "sdpa", "fused kernels on cuda"),
        ("mps", torch.float32, 2048, 512, True, "sdpa", "saves no work"),
    ],
)
def test_choice_for_a_window(
    device_type: str,
    dtype: torch.dtype,
    seq_len: int,
    window: int,
    is_compiled: bool,
    kernel: str,
    words: str,
    native: None,
) -> None:
    name, reason = choose_kernel(
        device_type=device_type, compute_dtype=dtype, seq_len=seq_len, window=window, is_compiled=is_compiled
    )
    assert name == kernel
    assert words in reason


def test_without_native_code_it_is_torchs_and_the_log_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load_library", lambda source: Unavailable("no C++ compiler was found"))
    name, reason = choose_kernel(device_type="cpu", compute_dtype=torch.float32, seq_len=256)
    assert name == "sdpa"
    assert "no C++ compiler was found" in reason
    monkeypatch.setattr(library, "load_library", lambda source: object())
    monkeypatch.setattr(native_attention, "find_sgemm", lambda: None)
    name, reason = choose_kernel(device_type="cpu", compute_dtype=torch.float32, seq_len=256)
    assert name == "sdpa"
    assert "sgemm" in reason


@pytest.mark.parametrize("is_there", [True, False])
def test_choice_is_the_one_that_is_taken(is_there: bool, monkeypatch: pytest.MonkeyPatch, native: None) -> None:
    if not is_there:
        monkeypatch.setattr(library, "load_library", lambda source: Unavailable("this test wants none"))
    taken = []
    functions = {"sdpa": "_attend_sdpa", "blocked": "_attend_blocked", "native": "attend_natively"}
    for name, function_name in functions.items():
        function = getattr(attention, function_name)

        def record(*args, name=name, function=function, **kwargs):
            taken.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(attention, function_name, record)
    for dtype in (torch.bfloat16, torch.float32):
        q = heads(1, 1, 16, 8, seed=0).to(dtype)
        attend_to_own(*(q.transpose(1, 2),) * 3, *rope_tables(16, 8, base=100.0), gain=1.0)
        assert taken.pop() == choose_kernel(device_type="cpu", compute_dtype=dtype, seq_len=16)[0]
        attend(q, q, q, window=3)
        assert taken.pop() == choose_kernel(device_type="cpu", compute_dtype=dtype, seq_len=16, window=3)[0]
