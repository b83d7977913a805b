"""The measured speeds are of the right size, and text is counted as the store counts it."""

from __future__ import annotations

import pytest

from firstlight.recipes.scale.grid import Rules
from firstlight.recipes.scale.speeds import measure_speed, prepare_text
from firstlight.runtime.console import Console
from firstlight.runtime.context import open_runtime


def test_a_step_costs_more_than_scoring_and_less_than_a_second() -> None:
    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
        speed = measure_speed(1, Rules(vocab_size=300, seq_len=32, total_batch_size=256), runtime)
    assert 0 < speed.score_s < speed.train_s < 1.0


@pytest.mark.parametrize(("limit", "expected"), [(0, 120), (7, 7), (500, 120)])
def test_text_is_counted_with_a_bos_for_each_document(tiny_corpus, own_folders, tmp_path, limit, expected) -> None:
    from firstlight.data.split import iter_documents
    from firstlight.recipes.prepare import prepare_data

    options = {"val": "last", "tokenizer_path": None, "cache_dir": tmp_path / "cache", "num_workers": 0, "seed": 1}
    rules = Rules(vocab_size=300, seq_len=32)
    text = prepare_text(str(tiny_corpus), rules=rules, final_documents=limit, console=Console(), **options)
    assert text.vocab_size == 300
    assert text.num_val_documents == 120
    prepared = prepare_data(
        str(tiny_corpus), vocab_size=300, packing="bestfit", seq_len=32, console=Console(), **options
    )
    with prepared.store as store:
        lengths = [len(document) + 1 for document, _ in iter_documents(store, prepared.val)]
        trained = [len(document) + 1 for document, _ in iter_documents(store, prepared.val, split="train")]
    assert text.num_score_tokens == sum(lengths[:expected])
    assert text.num_train_tokens == sum(trained)
