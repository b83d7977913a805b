"""Claims of recipes/bpb_eval.py: chunks are the whole, and a killed evaluation goes on where it was."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch import nn

from firstlight.errors import ConfigError, DataError
from firstlight.eval.bpb import evaluate_bpb
from firstlight.recipes.bpb_eval import first_documents, result_of, score_documents
from firstlight.runtime.context import Runtime
from firstlight.tokens.document import Document

CPU = Runtime(device=torch.device("cpu"))
NUM_DOCUMENTS = 41


class Model(nn.Module):
    """Predicts from the last id; counts the windows that it was given, and may be killed."""

    def __init__(self, *, killed_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.wte = nn.Embedding(12, 8)
        self.lm_head = nn.Linear(8, 12, bias=False)
        self.config = SimpleNamespace(softcap=15.0, max_seq_len=64)
        self.num_passes, self.killed_at = 0, killed_at

    def hidden(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        self.num_passes += 1
        if self.num_passes == self.killed_at:
            raise KeyboardInterrupt
        return 2 * self.wte(inputs_BT)


def documents() -> list[Document]:
    rng = np.random.default_rng(5)
    return [Document(rng.integers(0, 11, n % 13)) for n in range(NUM_DOCUMENTS)]


def score(model: Model, run_dir: Path, **changes):
    arguments: dict = {
        "bos_id": 11, "seq_len": 4, "batch_rows": 2, "runtime": CPU, "identity": {"weights": "a"}, "chunk_documents": 6,
        "clock": iter(range(0, 10**6, 100)).__next__,
    } | changes  # fmt: skip
    return score_documents(model, documents(), np.arange(1, 13), run_dir=run_dir, **arguments)


def test_chunks_are_the_whole(tmp_path: Path) -> None:
    kept: list = []
    expected = evaluate_bpb(
        Model(), documents(), np.arange(1, 13), bos_id=11, seq_len=4, batch_rows=2, runtime=CPU,
        documents_to=kept.append, stretches=(2,),
    )  # fmt: skip
    result, sums = score(Model(), tmp_path, stretches=(2,))
    assert sums.nats_NK == pytest.approx(kept[0].nats_NK, rel=1e-6)
    assert np.array_equal(sums.num_bytes_NK, kept[0].num_bytes_NK)
    assert np.array_equal(sums.num_tokens_NK, kept[0].num_tokens_NK)
    assert result.val_bpb == pytest.approx(expected.val_bpb, rel=1e-6)
    assert result.val_bpb_stderr == pytest.approx(expected.val_bpb_stderr, rel=1e-6)
    for name in ("num_bytes", "num_documents", "num_tokens", "num_windows", "num_documents_total", "num_empty"):
        assert getattr(result, name) == getattr(expected, name), name
    assert list((tmp_path / "scores").iterdir()) == []


@pytest.mark.parametrize("killed_at", [1, 10, 25])
def test_a_killed_evaluation_goes_on_and_ends_bit_equal(tmp_path: Path, killed_at: int) -> None:
    whole = Model()
    expected, expected_sums = score(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        score(Model(killed_at=killed_at), tmp_path / "killed")
    said: list[str] = []
    again = Model()
    result, sums = score(again, tmp_path / "killed", report=said.append)
    assert np.array_equal(sums.nats_NK, expected_sums.nats_NK)
    assert (result.val_bpb, result.num_windows) == (expected.val_bpb, expected.num_windows)
    if killed_at > 1:
        assert again.num_passes < whole.num_passes
        assert "goes on from there" in said[0]
    assert list((tmp_path / "killed" / "scores").iterdir()) == []


def test_nothing_is_taken_from_an_evaluation_of_other_weights_or_with_other_settings(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(Model(killed_at=25), tmp_path)
    said: list[str] = []
    for changes in ({"identity": {"weights": "b"}}, {"seq_len": 5}, {"stretches": (2,)}, {"max_documents": 30}):
        score(Model(), tmp_path, report=said.append, **changes)
    assert said == []


def test_what_was_kept_and_is_damaged_is_said_and_made_again(tmp_path: Path) -> None:
    expected, _ = score(Model(), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        score(Model(killed_at=25), tmp_path)
    [path] = (tmp_path / "scores").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    said: list[str] = []
    assert score(Model(), tmp_path, report=said.append)[0].val_bpb == expected.val_bpb
    assert "is damaged" in said[0]


def test_a_disk_that_refuses_ends_nothing_and_is_said_once(tmp_path: Path) -> None:
    expected, _ = score(Model(), tmp_path / "good")
    (tmp_path / "scores").write_text("a file where the folder should be")
    said: list[str] = []
    with pytest.raises(NotADirectoryError):
        (tmp_path / "scores" / "x").read_text()
    assert score(Model(), tmp_path, report=said.append)[0].val_bpb == expected.val_bpb
    assert len(said) == 1


def on_ranks(runtime: Runtime, run_dir: Path, killed_at: int | None) -> float | None:
    try:
        return score(Model(killed_at=killed_at), run_dir, runtime=runtime)[0].val_bpb
    except KeyboardInterrupt:
        return None


def test_one_process_goes_on_for_two_and_two_for_one(tmp_path: Path) -> None:
    expected, _ = score(Model(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        score(Model(killed_at=25), tmp_path / "one")
    first, _ = run_ranks(on_ranks, 2, tmp_path / "one", None)
    assert first == pytest.approx(expected.val_bpb, rel=1e-6)
    assert run_ranks(on_ranks, 2, tmp_path / "two", 8) == [None, None]
    said: list[str] = []
    assert score(Model(), tmp_path / "two", report=said.append)[0].val_bpb == pytest.approx(expected.val_bpb, rel=1e-6)
    assert "goes on from there" in said[0]


def test_limits_take_the_first_documents_whole() -> None:
    found = [Document(np.arange(n)) for n in (3, 0, 2, 4, 1)]
    for limits, lengths in [
        ({"max_documents": 2, "max_tokens": None}, [3, 2]),
        ({"max_documents": None, "max_tokens": 5}, [3, 2]),
        ({"max_documents": None, "max_tokens": 8}, [3, 2]),
        ({"max_documents": None, "max_tokens": 1}, [3]),
        ({"max_documents": None, "max_tokens": None}, [3, 2, 4, 1]),
    ]:
        assert [len(document) for document in first_documents(found, **limits)] == lengths
    with pytest.raises(ConfigError, match="nothing to score"):
        first_documents(found, max_documents=0, max_tokens=None)


def test_no_document_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 documents"):
        score_documents(
            Model(),
            [],
            np.arange(1, 13),
            bos_id=11,
            seq_len=4,
            batch_rows=2,
            runtime=CPU,
            run_dir=tmp_path,
            identity={},
        )


def test_several_sets_together_are_a_ratio_of_all_sums(tmp_path: Path) -> None:
    one, two = score(Model(), tmp_path), score(Model(), tmp_path, seq_len=2)
    result, sums = result_of([one, two])
    nats, num_bytes = one[0].nats + two[0].nats, one[0].num_bytes + two[0].num_bytes
    assert result.val_bpb == pytest.approx(nats / num_bytes / math.log(2), rel=1e-12)
    assert result.num_documents == len(sums.nats_NK) == one[0].num_documents + two[0].num_documents
    assert result.num_documents_total == 2 * NUM_DOCUMENTS
