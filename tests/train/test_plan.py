"""The dial, against arithmetic by hand and the seed's own examples."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigError
from firstlight.train.dial import batch_tokens_for, seq_len_for
from firstlight.train.plan import Horizon, interval, largest_dividing, make_plan, nearest_multiples


def test_seed_command_for_eight_gpus_gives_the_seeds_numbers():
    plan = make_plan(
        20, horizon=Horizon("steps", 50000), device_batch_size=32, total_batch_size=524288, seq_len=2048, vocab_size=32000,
        world_size=8,
    )  # fmt: skip
    # 524288 / (32 * 2048 * 8) = 1, and one GPU alone would accumulate 8 times, as in the seed's section 4.2.
    assert plan.num_micro_batches == 1
    assert (plan.model.n_layer, plan.model.n_embd, plan.model.n_head) == (20, 1280, 10)
    assert plan.num_steps == 50000
    assert plan.num_tokens == 50000 * 524288
    alone = make_plan(20, horizon=Horizon("steps", 1), device_batch_size=32, total_batch_size=524288, seq_len=2048)
    assert alone.num_micro_batches == 8


def test_seed_depth_12_has_six_heads_of_128():
    model = make_plan(12, vocab_size=32000, seq_len=2048).model
    assert (model.n_embd, model.n_head, model.head_dim) == (768, 6, 128)


def test_a_run_that_is_short_for_its_depth_is_told_of_a_smaller_one():
    def reason(depth, tokens):
        plan = make_plan(depth, horizon=Horizon("tokens", tokens))
        return next(line.reason for line in plan.lines if line.name == "total_flops")

    assert "--depth 3 is expected" in reason(4, 1e6)
    assert "expected" not in reason(4, 50e6)
    assert "expected" not in reason(3, 2e6)


def test_horizons_agree_with_each_other():
    by_steps = make_plan(4, horizon=Horizon("steps", 1000), total_batch_size=4096)
    by_tokens = make_plan(4, horizon=Horizon("tokens", 4096 * 1000), total_batch_size=4096)
    # 12 * 256^2 * 4 + 4096 * 256 = 4,194,304 matmul parameters; T = 256.
    flops_per_token = 6 * 4_194_304 + 12 * 4 * 256 * 256
    by_flops = make_plan(4, horizon=Horizon("flops", flops_per_token * 4096 * 1000), total_batch_size=4096)
    by_ratio = make_plan(4, horizon=Horizon("tokens_per_param", 4096 * 1000 / 4_194_304), total_batch_size=4096)
    assert by_steps.num_steps == by_tokens.num_steps == by_flops.num_steps == by_ratio.num_steps == 1000


def test_minutes_have_no_fixed_number_of_steps():
    plan = make_plan(4, horizon=Horizon("minutes", 10), flops_per_s=1e11)
    assert plan.num_steps is None
    assert plan.estimated_steps > 100


def test_default_horizon_is_twelve_tokens_a_parameter():
    plan = make_plan(4)
    assert plan.num_tokens == pytest.approx(12 * 4_194_304, rel=0.01)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 20, 26, 32])
def test_plan_is_sane_at_every_scale(depth):
    plan = make_plan(depth)
    assert plan.total_batch_size == plan.num_micro_batches * plan.device_batch_size * plan.seq_len
    assert 100 <= plan.num_steps <= 1_000_000
    assert plan.model.n_embd % plan.model.n_head == 0
    assert plan.warmup_frac * plan.num_steps <= 40


def test_every_line_of_a_plan_has_a_reason():
    for line in make_plan(6, horizon=Horizon("minutes", 5)).lines:
        assert line.name
        assert line.value
        assert line.reason, line.name


def test_total_batch_that_does_not_divide_names_the_nearest_that_do():
    with pytest.raises(ConfigError) as caught:
        make_plan(4, total_batch_size=512, device_batch_size=4, seq_len=256)
    # 4 rows of 256 are 1024 tokens a pass; 512 is less than one (nanochat #532).
    assert "--total-batch-size 512 is not a multiple of 1024" in str(caught.value)
    assert "1024" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        make_plan(4, total_batch_size=5000, seq_len=256)
    assert "4864 or 5120" in str(caught.value)


def test_all_mistakes_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        make_plan(0, vocab_size=-1, warmup_frac=2.0, weight_decay=-0.1)
    message = str(caught.value)
    for part in ("--depth 0", "--vocab-size -1", "--warmup-frac 2.0", "--weight-decay -0.1"):
        assert part in message


def test_what_does_not_divide_and_what_does_not_fit_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        make_plan(
            12, total_batch_size=1000, seq_len=256, device_batch_size=3, world_size=2, memory_bytes=2**20,
            horizon=Horizon("tokens", 100),
        )  # fmt: skip
    message = str(caught.value)
    # 2 processes x 256 tokens are 512; one row of each is a step of 512, which 3 rows do not divide.
    assert "4 things are wrong" in message
    assert "--total-batch-size 1000 is not a multiple of 512" in message
    assert "--device-batch-size 3 x --max-seq-len 256 x 2 processes" in message
    assert "GiB are needed" in message
    assert "less than one step" in message


def test_auto_is_estimated_like_none_and_the_line_says_that_a_trial_will_decide():
    options = {"total_batch_size": 2**15, "memory_bytes": 2**31, "horizon": Horizon("steps", 10)}
    auto, none = make_plan(4, device_batch_size="auto", **options), make_plan(4, **options)
    assert auto.device_batch_size == none.device_batch_size
    reasons = [next(x.reason for x in plan.lines if x.name == "device_batch_size") for plan in (auto, none)]
    assert "by trial" in reasons[0]
    assert "by trial" not in reasons[1]


def test_short_rows_are_a_part_of_the_run_and_need_quarters():
    sizes = {"vocab_size": 2048, "horizon": Horizon("steps", 100)}
    plan = make_plan(2, **sizes, seq_len=64, short_rows_frac=0.5)
    assert plan.short_rows_frac == 0.5
    assert ("short_rows_frac", "0.5") in [(line.name, line.value) for line in plan.lines]
    assert "short_rows_frac" not in [line.name for line in make_plan(2, **sizes, seq_len=64).lines]
    with pytest.raises(ConfigError, match="rows of 62 tokens have no quarters"):
        make_plan(2, **sizes, seq_len=62, total_batch_size=62, short_rows_frac=0.5)
    with pytest.raises(ConfigError, match=r"--short-rows-frac 1.5 is outside 0 to 1"):
        make_plan(2, **sizes, seq_len=64, short_rows_frac=1.5)


def test_zero_steps_are_refused():
    with pytest.raises(ConfigError, match="zero steps"):
        make_plan(4, horizon=Horizon("steps", 0))
    with pytest.raises(ConfigError, match="less than one step"):
        make_plan(4, horizon=Horizon("tokens", 100), total_batch_size=4096)


def test_model_that_does_not_fit_memory_is_refused_with_what_would():
    with pytest.raises(ConfigError) as caught:
        make_plan(12, memory_bytes=4 * 2**30, device_batch_size=64, total_batch_size=64 * 2048)
    assert "GiB are needed" in str(caught.value)
    assert "--device-batch-size" in str(caught.value)


def test_micro_batch_follows_the_memory_and_the_total_batch_stays():
    small = make_plan(8, memory_bytes=3 * 2**30, total_batch_size=2**17)
    large = make_plan(8, memory_bytes=300 * 2**30, total_batch_size=2**17)
    assert small.total_batch_size == large.total_batch_size
    assert small.device_batch_size < large.device_batch_size
    assert small.num_micro_batches > 1
    assert large.num_micro_batches == 1


def test_memory_of_a_process_has_all_weights_and_its_share_of_the_optimizers_state():
    def fixed_bytes(world_size):
        plan = make_plan(4, seq_len=256, total_batch_size=256 * 4, device_batch_size=1, world_size=world_size)
        return plan.train_bytes, plan.checkpoint_bytes

    (alone, saved), (shared, saved_by_four) = fixed_bytes(1), fixed_bytes(4)
    assert saved == saved_by_four
    # Two numbers an AdamW parameter and one a matrix parameter, all float32: the checkpoint without its weights.
    plan = make_plan(4, seq_len=256)
    num_matrix = 12 * 4 * 256 * 256
    num_other = int(next(x.value for x in plan.lines if x.name == "parameters").replace(",", "")) - num_matrix
    state_bytes = 4 * num_matrix + 8 * num_other
    # A quarter of the gradients is received: room for it is all that sharing costs.
    received_bytes = 4 * (num_matrix + num_other) / 4
    assert alone - shared == pytest.approx(state_bytes * 3 / 4 - received_bytes, abs=8)


def test_accumulation_counts_all_processes():
    # litgpt #1927: 2 nodes of 4, 64 rows a step, 4 a pass: 64 / (4 * 8) = 2.
    plan = make_plan(4, seq_len=256, total_batch_size=64 * 256, device_batch_size=4, world_size=8)
    assert plan.num_micro_batches == 2


def test_rates_follow_the_seed_at_width_768():
    plan = make_plan(12)
    assert (plan.embedding_lr, plan.unembedding_lr, plan.matrix_lr) == (0.2, 0.004, 0.02)


def test_helpers_by_hand():
    assert nearest_multiples(100, 256) == "256"
    assert largest_dividing(12, 5) == 4
    assert interval(95, 10) == 20
    assert seq_len_for(5) == 512
    # (13e6 / 6.5e6)^0.7 = 1.62, and 4096 * 1.62 = 6654 is nearer to 8192 than to 4096 in powers of two.
    assert batch_tokens_for(13e6) == 8192


@pytest.mark.parametrize(
    "name", ["embedding_lr", "unembedding_lr", "matrix_lr", "weight_decay", "grad_clip", "warmup_frac"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rates_that_are_no_finite_numbers_are_refused(name, value):
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        make_plan(1, horizon=Horizon("steps", 3), **{name: value})
