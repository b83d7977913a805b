"""Claims of eval/bpb.py, against hand arithmetic, brute force in float64 and the bootstrap."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import nn

from firstlight.errors import ConfigError, DataError
from firstlight.eval.bpb import BpbResult, evaluate_bpb
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer, train_tokenizer
from firstlight.tokens.document import Document
from firstlight.train.guard import Dropped, StopRequest

CPU = Runtime(device=torch.device("cpu"))
SOFTCAP = 15.0


def document(*ids: int) -> Document:
    return Document(np.array(ids, np.uint16))


class Bigram(nn.Module):
    """Predicts by the last id alone: probability 2 ** -bits[last][next], through the soft-capped head."""

    def __init__(self, bits: Sequence[Sequence[int]]) -> None:
        super().__init__()
        log_p = -math.log(2) * torch.tensor(bits, dtype=torch.float64)
        capped = SOFTCAP * torch.atanh(log_p / SOFTCAP)
        self.lm_head = nn.Linear(len(bits), len(bits), bias=False)
        self.lm_head.weight.data = capped.T.float().contiguous()
        self.config = SimpleNamespace(softcap=SOFTCAP, max_seq_len=64)

    def hidden(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(inputs_BT, self.lm_head.weight.shape[1]).float()


class Context(nn.Module):
    """Predicts from all earlier ids of its row (running means of embeddings), so that window borders matter."""

    def __init__(self, vocab_size: int, width: int = 16) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.config = SimpleNamespace(softcap=SOFTCAP, max_seq_len=512)

    def hidden(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.wte(inputs_BT)
        places_T1 = torch.arange(1, inputs_BT.shape[1] + 1)[:, None]
        return self.dropout(x_BTD + 3 * x_BTD.cumsum(1) / places_T1)


# Rows sum to 1: 1/2 + 1/4 + 1/8 + 1/16 + 1/16. Ids 0..3 are text of 1, 2, 3, 1 bytes; 4 is BOS.
BITS = [[1, 2, 3, 4, 4], [2, 1, 3, 4, 4], [4, 3, 2, 1, 4], [4, 4, 3, 2, 1], [3, 2, 1, 4, 4]]
TOKEN_BYTES = np.array([1, 2, 3, 1, 0])


def score(documents: Sequence[Document], **changes: object) -> BpbResult:
    arguments: dict = {"bos_id": 4, "seq_len": 3, "batch_rows": 2, "runtime": CPU} | changes
    return evaluate_bpb(Bigram(BITS), documents, TOKEN_BYTES, **arguments)


def test_a_hand_made_model_scores_what_hand_arithmetic_says() -> None:
    # Windows of 3: [0 1 2] [3 0 1] [2] and [1 1]; inputs [B 0 1] [B 3 0] [B] and [B 1].
    # Bits: 3+2+3, 4+4+2, 1, and 2+1: 22 in all. Bytes: 1+2+3+1+1+2+3 = 13 and 2+2 = 4.
    result = score([document(0, 1, 2, 3, 0, 1, 2), document(1, 1)])
    assert result.num_bytes == 17
    assert (result.num_documents, result.num_tokens, result.num_windows) == (2, 9, 4)
    assert result.nats == pytest.approx(22 * math.log(2), rel=1e-6)
    assert result.val_bpb == pytest.approx(22 / 17, rel=1e-6)


def test_the_standard_error_is_the_ratio_estimators() -> None:
    # As above: (19 bits, 13 bytes) and (3 bits, 4 bytes); R = 22/17; n/(n-1) = 2.
    result = score([document(0, 1, 2, 3, 0, 1, 2), document(1, 1)])
    ratio = 22 / 17
    by_hand = math.sqrt(2 * ((19 - ratio * 13) ** 2 + (3 - ratio * 4) ** 2)) / 17
    assert result.val_bpb_stderr == pytest.approx(by_hand, rel=1e-5)


def test_one_document_has_no_standard_error() -> None:
    assert score([document(0, 1)]).val_bpb_stderr is None


def test_bpb_is_a_ratio_of_sums_not_a_mean_over_batches() -> None:
    # One token of 3 bytes at 1 bit, then four tokens of 1 byte at 3, 1, 1, 1 bits: 7 bits on 7 bytes.
    documents = [document(2), document(0, 0, 0, 0)]
    assert score(documents, seq_len=4, batch_rows=1).val_bpb == pytest.approx(1.0, rel=1e-6)


def brute_force(model: Context, documents: Sequence[Document], seq_len: int, bos_id: int) -> list[float]:
    """Nats by document: one target at a time, float64, plain log-softmax."""
    weight_VD = model.lm_head.weight.double()
    embedding = model.wte.weight.double()
    found = []
    for doc in documents:
        ids = [int(i) for i in doc.ids]
        nats = 0.0
        for place, target in enumerate(ids):
            start = place // seq_len * seq_len
            seen = embedding[[bos_id, *ids[start:place]]]
            z_V = weight_VD @ (seen[-1] + 3 * seen.mean(0))
            log_p_V = torch.log_softmax(SOFTCAP * torch.tanh(z_V / SOFTCAP), 0)
            nats -= log_p_V[target].item()
        found.append(nats)
    return found


@pytest.fixture
def uneven() -> tuple[Context, list[Document], np.ndarray]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    lengths = [1, 2, 6, 7, 8, 13, 14, 15, 40, 63, 100, 3, 1, 71]
    documents = [Document(rng.integers(0, 30, n).astype(np.uint16)) for n in lengths]
    return Context(31), documents, rng.integers(1, 6, 31) * (np.arange(31) < 30)


@pytest.mark.parametrize("seq_len", [1, 7, 33, 64, 512])
@pytest.mark.parametrize("batch_rows", [1, 3, 16])
@pytest.mark.parametrize("fixed_shape", [False, True])
def test_any_batching_equals_brute_force_in_float64(uneven, seq_len: int, batch_rows: int, fixed_shape: bool) -> None:
    model, documents, token_bytes = uneven
    result = evaluate_bpb(
        model,
        documents,
        token_bytes,
        bos_id=30,
        seq_len=seq_len,
        batch_rows=batch_rows,
        runtime=CPU,
        fixed_shape=fixed_shape,
    )
    nats = sum(brute_force(model, documents, seq_len, 30))
    num_bytes = sum(int(token_bytes[int(i)]) for doc in documents for i in doc.ids)
    assert result.nats == pytest.approx(nats, rel=2e-6)
    assert result.num_bytes == num_bytes
    assert result.val_bpb == pytest.approx(nats / math.log(2) / num_bytes, rel=2e-6)
    assert result.num_windows == sum(-(-len(doc) // seq_len) for doc in documents)
    assert result.num_tokens == sum(map(len, documents))


def test_fixed_shape_gives_one_shape_and_the_other_mode_wastes_little(uneven) -> None:
    model, documents, token_bytes = uneven
    shapes: dict[bool, list[torch.Size]] = {}
    for fixed in (True, False):
        seen = shapes[fixed] = []

        def hidden(inputs_BT: torch.Tensor, seen: list = seen) -> torch.Tensor:
            seen.append(inputs_BT.shape)
            return model.hidden(inputs_BT)

        evaluate_bpb(
            model,
            documents,
            token_bytes,
            bos_id=30,
            seq_len=64,
            batch_rows=4,
            runtime=CPU,
            fixed_shape=fixed,
            hidden=hidden,
        )
    assert set(shapes[True]) == {torch.Size([4, 64])}
    assert all(b * t <= 4 * 64 for b, t in shapes[False])
    assert sum(b * t for b, t in shapes[False]) < 0.8 * sum(b * t for b, t in shapes[True])


def test_the_standard_error_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    model = Context(31)
    documents = [Document(rng.integers(0, 30, n)) for n in rng.lognormal(2.5, 0.7, 300).astype(int) + 1]
    token_bytes = rng.integers(1, 6, 31)
    result = evaluate_bpb(model, documents, token_bytes, bos_id=30, seq_len=64, batch_rows=16, runtime=CPU)
    nats_N = np.array(
        [
            evaluate_bpb(model, [doc], token_bytes, bos_id=30, seq_len=64, batch_rows=1, runtime=CPU).nats
            for doc in documents
        ]
    )
    bytes_N = np.array([token_bytes[doc.ids].sum() for doc in documents])
    picks = rng.integers(0, 300, (4000, 300))
    resampled = nats_N[picks].sum(1) / bytes_N[picks].sum(1) / math.log(2)
    # 4,000 resamples know a standard deviation to about 1 %; the delta method is off by O(1/n).
    assert result.val_bpb_stderr == pytest.approx(resampled.std(), rel=0.06)


@pytest.fixture(scope="module")
def small_tokenizer() -> Tokenizer:
    text = "The quick brown fox jumps over the lazy dog. Größe, naïve, 東京, привет, and 3.14159 again and again. "
    return train_tokenizer([text] * 50, vocab_size=320, max_bytes=None)


@pytest.mark.parametrize(
    "name",
    [
        "blns.json",
        "blns.txt",
        "edge_cases.jsonl",
        "emoji_sequences.txt",
        "invalid_utf8.jsonl",
        "udhr.jsonl",
        "utf8_stress_test.txt",
    ],
)
def test_total_bytes_are_the_utf8_length_of_real_hard_text(
    shared_data: Path, small_tokenizer: Tokenizer, name: str
) -> None:
    text = (shared_data / "tokenizer" / name).read_bytes().decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines(keepends=True) if line]
    # Several windows of each line are enough: a byte that is counted wrong is so in any of them.
    lines = [line[:2000] for line in lines]
    text = "".join(lines)
    documents = [Document(ids) for ids in small_tokenizer.encode_batch(lines)]
    vocab_size = small_tokenizer.vocab_size
    uniform = SimpleUniform(vocab_size)
    result = evaluate_bpb(
        uniform,
        documents,
        small_tokenizer.token_bytes(),
        bos_id=small_tokenizer.bos_id,
        seq_len=512,
        batch_rows=8,
        runtime=CPU,
    )
    assert result.num_bytes == len(text.encode("utf-8"))
    assert result.num_tokens == sum(map(len, documents))
    assert result.val_bpb == pytest.approx(result.num_tokens * math.log2(vocab_size) / result.num_bytes, rel=1e-6)


class SimpleUniform(nn.Module):
    """Every id is as likely as any other: log2(V) bits a token."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.lm_head = nn.Linear(1, vocab_size, bias=False)
        self.config = SimpleNamespace(softcap=SOFTCAP, max_seq_len=512)

    def hidden(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*inputs_BT.shape, 1)


def test_every_files_name_is_in_the_test_above(shared_data: Path) -> None:
    marks = {mark.name: mark for mark in test_total_bytes_are_the_utf8_length_of_real_hard_text.pytestmark}
    assert sorted(marks["parametrize"].args[1]) == sorted(p.name for p in (shared_data / "tokenizer").iterdir())


def test_tokens_that_are_part_of_a_character_count_their_raw_bytes(small_tokenizer: Tokenizer) -> None:
    text = "dog: 🐶"
    ids = small_tokenizer.encode(text)
    result = evaluate_bpb(
        SimpleUniform(small_tokenizer.vocab_size), [Document(np.array(ids))], small_tokenizer.token_bytes(),
        bos_id=small_tokenizer.bos_id, seq_len=4, batch_rows=1, runtime=CPU,
    )  # fmt: skip
    assert result.num_bytes == 9  # 5 ASCII and a character of 4 bytes


def test_only_special_tokens_is_an_error_and_not_a_division_by_zero() -> None:
    with pytest.raises(DataError, match="at least one byte"):
        score([document(4, 4)])


def test_no_document_is_an_error() -> None:
    with pytest.raises(DataError, match="0 documents"):
        score([])


def test_a_limit_below_one_is_refused_rather_than_scoring_nothing() -> None:
    for changes in ({"max_documents": 0}, {"max_tokens": 0}):
        with pytest.raises(ConfigError, match="leaves nothing to score"):
            score([document(0)], **changes)


def test_empty_documents_are_left_out_and_counted() -> None:
    with_empty = score([document(0, 1), document(), document(1, 2), document()])
    without = score([document(0, 1), document(1, 2)])
    assert with_empty.num_empty == 2
    assert (with_empty.val_bpb, with_empty.val_bpb_stderr) == (without.val_bpb, without.val_bpb_stderr)


def test_limits_take_the_first_documents_whole_and_say_how_many_of_how_many() -> None:
    documents = [document(0, 1, 2), document(1, 1), document(2, 2, 2, 2), document(3)]
    first_two = score(documents[:2])
    for changes in ({"max_documents": 2}, {"max_tokens": 5}, {"max_tokens": 8}):
        result = score(documents, **changes)
        assert (result.nats, result.num_documents, result.num_documents_total) == (first_two.nats, 2, 4)
        assert "2 of 4 documents" in result.describe()
    assert score(documents, max_tokens=1).num_documents == 1
    assert score(documents, max_documents=9).num_documents == 4
    assert score(iter(documents)).num_documents_total == 4
    assert score(iter(documents), max_documents=2).num_documents_total is None


def test_an_id_outside_the_vocabulary_names_the_document() -> None:
    with pytest.raises(DataError, match=r"id 9 in document part\.parquet:3"):
        score([Document(np.array([0, 9]), source="part.parquet:3")])


def test_windows_longer_than_the_context_are_refused() -> None:
    with pytest.raises(ConfigError, match="context of 64"):
        score([document(0)], seq_len=65)


def test_a_tokenizer_larger_than_the_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="the tokenizer has 6 ids and the model predicts 5"):
        evaluate_bpb(Bigram(BITS), [document(0)], np.ones(6, int), bos_id=4, seq_len=3, batch_rows=1, runtime=CPU)


def test_a_masked_id_carries_neither_nats_nor_bytes_but_is_read() -> None:
    masked = Document(np.array([0, 1, 2]), loss_mask=np.array([False, True, False]))
    result = score([masked])
    # Only id 1 after id 0: 2 bits on 2 bytes.
    assert (result.num_bytes, result.num_tokens) == (2, 1)
    assert result.val_bpb == pytest.approx(1.0, rel=1e-6)


def test_training_is_left_bit_unchanged(uneven) -> None:
    model, documents, token_bytes = uneven
    model.train()
    model.wte.eval()  # a mode that differs inside must survive too
    model.wte.weight.grad = torch.ones_like(model.wte.weight)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    first = evaluate_bpb(model, documents, token_bytes, bos_id=30, seq_len=7, batch_rows=2, runtime=CPU)
    second = evaluate_bpb(model, documents, token_bytes, bos_id=30, seq_len=7, batch_rows=2, runtime=CPU)
    assert first.nats == second.nats  # dropout was off
    assert (model.training, model.dropout.training, model.wte.training) == (True, True, False)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.wte.weight.grad, torch.ones_like(model.wte.weight))
    assert model.lm_head.weight.grad is None
    assert torch.is_grad_enabled()


def test_the_forward_pass_records_no_gradient(uneven) -> None:
    model, documents, token_bytes = uneven
    recorded: list[bool] = []

    def hidden(inputs_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = model.hidden(inputs_BT)
        recorded.append(x_BTD.requires_grad)
        return x_BTD

    evaluate_bpb(model, documents, token_bytes, bos_id=30, seq_len=7, batch_rows=2, runtime=CPU, hidden=hidden)
    assert recorded
    assert not any(recorded)


def test_the_mode_is_restored_when_scoring_fails(uneven) -> None:
    model, documents, token_bytes = uneven
    model.train()
    with pytest.raises(RuntimeError, match="no luck"):
        evaluate_bpb(
            model,
            documents,
            token_bytes,
            bos_id=30,
            seq_len=7,
            batch_rows=2,
            runtime=CPU,
            hidden=lambda x: fail("no luck"),
        )
    assert model.training


def fail(message: str) -> torch.Tensor:
    raise RuntimeError(message)


def test_a_loss_that_is_not_finite_is_said_and_written_as_null() -> None:
    model = Bigram(BITS)
    model.lm_head.weight.data[:, 2] = float("nan")
    result = evaluate_bpb(
        model, [document(0, 1), document(2, 1)], TOKEN_BYTES, bos_id=4, seq_len=3, batch_rows=1, runtime=CPU
    )
    assert math.isnan(result.val_bpb)
    assert result.num_nonfinite >= 1
    assert "not finite" in result.describe()
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["val_bpb"] is None


def test_progress_counts_up_to_the_number_of_documents() -> None:
    seen: list[tuple[int, int | None]] = []
    score([document(0, 1, 2)] * 100, batch_rows=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100, 100)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 2


class Meeting:
    """Sums over ranks that are threads here: every rank waits for the others, then all take the total."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size)
        self.values: dict[int, torch.Tensor] = {}

    def sum(self, rank: int, value: torch.Tensor) -> torch.Tensor:
        self.values[rank] = value
        self.barrier.wait(timeout=60)
        total = torch.stack([self.values[r] for r in sorted(self.values)]).sum(0)
        self.barrier.wait(timeout=60)
        return total


class ThreadRuntime(Runtime):
    meeting: Meeting

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return self.meeting.sum(self.rank, value)


@pytest.mark.parametrize("world_size", [2, 3, 16])
def test_ranks_share_the_documents_and_agree_with_one_process(uneven, world_size: int) -> None:
    model, documents, token_bytes = uneven
    arguments = {"bos_id": 30, "seq_len": 7, "batch_rows": 2, "max_documents": 13}
    alone = evaluate_bpb(model, documents, token_bytes, runtime=CPU, **arguments)
    meeting = Meeting(world_size)
    results: dict[int, BpbResult] = {}
    modes = {rank: Context(31) for rank in range(world_size)}

    def work(rank: int) -> None:
        modes[rank].load_state_dict(model.state_dict())
        runtime = ThreadRuntime(device=torch.device("cpu"), rank=rank, world_size=world_size)
        object.__setattr__(runtime, "meeting", meeting)
        results[rank] = evaluate_bpb(modes[rank], documents, token_bytes, runtime=runtime, **arguments)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(world_size))
    for result in results.values():
        assert result.val_bpb == pytest.approx(alone.val_bpb, rel=1e-7)
        assert result.val_bpb_stderr == pytest.approx(alone.val_bpb_stderr, rel=1e-6)
        assert (result.num_bytes, result.num_documents, result.num_tokens, result.num_windows) == (
            alone.num_bytes, 13, alone.num_tokens, alone.num_windows,
        )  # fmt: skip


# Ended in the middle.


def test_a_stop_is_obeyed_before_the_next_batch_and_the_mode_is_put_back() -> None:
    answers = iter([False, False, True])
    model = Bigram(BITS).train()
    with pytest.raises(Dropped):
        evaluate_bpb(
            model, [document(0, 1, 2)] * 100, TOKEN_BYTES, bos_id=4, seq_len=3, batch_rows=1, runtime=CPU,
            should_stop=lambda: next(answers),
        )  # fmt: skip
    assert next(answers, "all were asked for") == "all were asked for"
    assert model.training


def test_a_question_that_is_always_denied_changes_no_score() -> None:
    documents = [document(0, 1, 2, 3, 0, 1, 2), document(1, 1)]
    assert score(documents, should_stop=lambda: False).nats == score(documents).nats


LENGTHS = [3] * 40 + [300]
"""Of documents: rank 0 of 2 has the long one, and so many more batches than rank 1."""


def score_on_ranks(runtime: Runtime, what: str) -> list:
    """Score twice: once with something that goes wrong on rank 1 only, once in peace. What came of it, and batches begun."""
    model = Bigram(BITS)
    documents = [document(*[i % 4 for i in range(n)]) for n in LENGTHS]
    num_batches = 0
    stop = StopRequest(runtime)

    def hidden(inputs_BT: torch.Tensor) -> torch.Tensor:
        nonlocal num_batches
        num_batches += 1
        if runtime.rank == 1 and num_batches == 5:
            if what == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            if what == "error":
                raise RuntimeError("no memory left")
        return model.hidden(inputs_BT)

    def run() -> BpbResult:
        return evaluate_bpb(
            model, documents, TOKEN_BYTES, bos_id=4, seq_len=3, batch_rows=1, runtime=runtime, hidden=hidden,
            should_stop=lambda: stop.requested,
        )  # fmt: skip

    with stop.watching():
        try:
            found = run().val_bpb
        except (Dropped, DataError, RuntimeError) as error:
            found = f"{type(error).__name__}: {error}"
        begun = num_batches
        # The next collectives of both ranks must meet each other, whatever has ended the ones before.
        agreed = stop.agreed()
        stop = StopRequest(runtime)
        num_batches = 1000
        return [found, begun, agreed, run().val_bpb]


def test_ranks_with_unequal_numbers_of_batches_score_as_one_process_does() -> None:
    alone = score([document(*[i % 4 for i in range(n)]) for n in LENGTHS]).val_bpb
    for found, begun, agreed, again in run_ranks(score_on_ranks, 2, "nothing"):
        assert found == again == pytest.approx(alone, rel=1e-7)
        assert begun in (20, 120)
        assert agreed is None


def test_a_signal_to_one_rank_drops_the_evaluation_on_all_of_them_at_once() -> None:
    alone = score([document(*[i % 4 for i in range(n)]) for n in LENGTHS]).val_bpb
    for found, begun, agreed, again in run_ranks(score_on_ranks, 2, "signal"):
        assert found == "Dropped: "
        assert begun == 5
        assert agreed == "SIGTERM"
        assert again == pytest.approx(alone, rel=1e-7)


def test_an_error_on_one_rank_ends_the_evaluation_on_all_of_them_and_the_run_can_go_on() -> None:
    alone = score([document(*[i % 4 for i in range(n)]) for n in LENGTHS]).val_bpb
    rank0, rank1 = run_ranks(score_on_ranks, 2, "error")
    assert rank0[0] == "DataError: the evaluation failed on another process\n  its message says why"
    assert rank1[0] == "RuntimeError: no memory left"
    assert [rank0[1], rank1[1]] == [5, 5]
    assert rank0[3] == rank1[3] == pytest.approx(alone, rel=1e-7)


def score_with_a_collective_forward(runtime: Runtime, fixed_shape: bool) -> tuple[float, int]:
    """As with sharded weights: a forward pass ends only where all ranks are in one. The score, and calls of ``progress``."""
    model = Bigram(BITS)
    calls = []

    def hidden(inputs_BT: torch.Tensor) -> torch.Tensor:
        return model.hidden(inputs_BT) * (runtime.sum(torch.ones(1)) / runtime.world_size)

    documents = [document(*[i % 4 for i in range(n)]) for n in LENGTHS]
    result = evaluate_bpb(
        model, documents, TOKEN_BYTES, bos_id=4, seq_len=3, batch_rows=2, runtime=runtime, hidden=hidden,
        forward_is_collective=True, fixed_shape=fixed_shape, progress=lambda done, total: calls.append(done),
    )  # fmt: skip
    return result.val_bpb, len(calls)


@pytest.mark.parametrize("fixed_shape", [False, True])
def test_ranks_without_batches_help_the_others_where_a_forward_pass_needs_all(fixed_shape: bool) -> None:
    alone = score([document(*[i % 4 for i in range(n)]) for n in LENGTHS]).val_bpb
    (score0, calls0), (score1, calls1) = run_ranks(score_with_a_collective_forward, 2, fixed_shape)
    assert score0 == score1 == pytest.approx(alone, rel=1e-7)
    # Rank 1 has 10 batches, then is heard of at each of the other's 50 that are left: a watchdog does not think that it hangs.
    assert calls1 == 1 + 50
    assert calls0 == 4


# By document, and in part.


def sums_of(documents: Sequence[Document], model: nn.Module, token_bytes: np.ndarray, **changes: object) -> tuple:
    """The result, and nats, bytes and tokens of each document and stretch."""
    kept: list = []
    arguments: dict = {"bos_id": 30, "seq_len": 7, "batch_rows": 2, "runtime": CPU} | changes
    result = evaluate_bpb(model, documents, token_bytes, documents_to=kept.append, **arguments)
    (sums,) = kept
    return result, sums.nats_NK, sums.num_bytes_NK, sums.num_tokens_NK


@pytest.mark.parametrize("block_batches", [1, 16])
def test_each_document_has_its_own_sums(uneven, block_batches: int) -> None:
    model, documents, token_bytes = uneven
    documents = [documents[0], document(), *documents[1:]]
    result, nats_NK, bytes_NK, tokens_NK = sums_of(documents, model, token_bytes, block_batches=block_batches)
    with_tokens = [doc for doc in documents if len(doc)]
    assert nats_NK[:, 0] == pytest.approx(brute_force(model, with_tokens, 7, 30), rel=1e-5)
    assert bytes_NK[:, 0].tolist() == [int(token_bytes[doc.ids].sum()) for doc in with_tokens]
    assert tokens_NK[:, 0].tolist() == [len(doc) for doc in with_tokens]
    assert nats_NK.sum() == pytest.approx(result.nats, rel=1e-12)


def test_stretches_of_the_window_divide_what_each_document_has(uneven) -> None:
    model, documents, token_bytes = uneven
    _, nats_NK, bytes_NK, tokens_NK = sums_of(documents, model, token_bytes, seq_len=16, stretches=(2, 5, 16, 64))
    assert nats_NK.shape == (len(documents), 3)
    for row, doc in enumerate(documents):
        places = np.arange(len(doc)) % 16
        for k, (start, end) in enumerate([(0, 2), (2, 5), (5, 16)]):
            inside = (places >= start) & (places < end)
            assert tokens_NK[row, k] == inside.sum()
            assert bytes_NK[row, k] == token_bytes[doc.ids[inside]].sum()
    # The first two places of each window: what it costs when only those are there.
    starts = [Document(doc.ids[i : i + 2]) for doc in documents for i in range(0, len(doc), 16)]
    assert nats_NK[:, 0].sum() == pytest.approx(sum(brute_force(model, starts, 16, 30)), rel=1e-5)


def test_what_is_masked_is_in_no_stretch() -> None:
    masked = Document(np.array([0, 1, 2]), loss_mask=np.array([False, True, False]))
    _, nats_NK, bytes_NK, tokens_NK = sums_of([masked], Bigram(BITS), TOKEN_BYTES, bos_id=4, stretches=(1,))
    assert nats_NK[0].tolist() == pytest.approx([0, 2 * math.log(2)], rel=1e-6)
    assert (bytes_NK[0].tolist(), tokens_NK[0].tolist()) == ([0, 2], [0, 1])


def test_over_time_it_ends_with_the_first_documents_and_says_so(uneven) -> None:
    model, documents, token_bytes = uneven
    _, whole_NK, _, _ = sums_of(documents, model, token_bytes)
    for num_batches in range(1, 30):
        answers = iter([False] * num_batches)
        result, nats_NK, _, _ = sums_of(
            documents, model, token_bytes, block_batches=1, is_over=lambda a=answers: next(a, True)
        )
        n = result.num_documents
        assert len(nats_NK) == n
        assert nats_NK == pytest.approx(whole_NK[:n], rel=1e-5)
        if n:
            first, *_ = sums_of(documents[:n], model, token_bytes)
            assert (result.num_bytes, result.num_tokens) == (first.num_bytes, first.num_tokens)
            assert result.val_bpb == pytest.approx(first.val_bpb, rel=1e-5)
        assert result.is_cut == (n < len(documents))
        assert ("cut by its time budget" in result.describe()) == result.is_cut
    assert not result.is_cut


def test_nothing_finished_in_time_is_no_number_and_no_error(uneven) -> None:
    model, documents, token_bytes = uneven
    result, *_ = sums_of(documents, model, token_bytes, is_over=lambda: True)
    assert (result.num_documents, result.is_cut, result.val_bpb_stderr) == (0, True, None)
    assert math.isnan(result.val_bpb)


def sums_on_ranks(runtime: Runtime, over_at: int) -> tuple:
    torch.manual_seed(0)
    model = Context(31)
    rng = np.random.default_rng(0)
    documents = [Document(rng.integers(0, 30, n)) for n in [3, 9, 1, 14, 30, 2, 2, 5, 40, 7, 7]]
    num_asked = 0

    def is_over() -> bool:
        nonlocal num_asked
        num_asked += 1
        return runtime.rank == runtime.world_size - 1 and num_asked > over_at

    result, nats_NK, bytes_NK, tokens_NK = sums_of(
        documents, model, np.arange(31), runtime=runtime, block_batches=1, is_over=is_over, stretches=(3,)
    )
    return result.num_documents, result.is_cut, result.nats, nats_NK.tolist(), bytes_NK.tolist(), tokens_NK.tolist()


@pytest.mark.parametrize("over_at", [1000, 1, 3])
def test_ranks_gather_the_documents_in_their_order_and_are_cut_at_the_same_one(over_at: int) -> None:
    whole = sums_on_ranks(CPU, 1000)
    found = run_ranks(sums_on_ranks, 3, over_at)
    assert found[0] == found[1] == found[2]
    num_documents, is_cut, nats, nats_NK, bytes_NK, tokens_NK = found[0]
    assert is_cut == (over_at < 1000)
    assert num_documents == len(nats_NK) < 11 if is_cut else num_documents == 11
    assert np.array(nats_NK).ravel() == pytest.approx(np.array(whole[3][:num_documents]).ravel(), rel=1e-5)
    assert (bytes_NK, tokens_NK) == (whole[4][:num_documents], whole[5][:num_documents])
    assert nats == pytest.approx(np.sum(nats_NK), rel=1e-9)
