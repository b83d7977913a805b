"""Parts of a run: the compile decision, compiled and plain giving the same, rates that change nothing."""

from __future__ import annotations

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.recipes import assemble as assembling
from firstlight.recipes.assemble import assemble, choose_compile, choose_native, has_native_layers, measure_rates
from firstlight.runtime.context import Runtime
from firstlight.train.plan import Horizon, make_plan

CPU = Runtime(device=torch.device("cpu"))


def plan_of(kind="steps", value=100.0, depth=1):
    return make_plan(depth, vocab_size=320, seq_len=32, total_batch_size=128, horizon=Horizon(kind, value))


def decide(asked="auto", **changes):
    facts = {"saved": None, "device_type": "cpu", "compiler": "/usr/bin/g++", "plan": plan_of(), "world_size": 1}
    facts["has_native_layers"] = False
    return choose_compile(asked, **(facts | changes))


def test_short_runs_on_a_cpu_stay_eager_and_long_ones_compile_each_with_its_reason():
    assert decide() == (False, decide()[1])
    assert "too short" in decide()[1]
    assert decide(plan=plan_of("minutes", 10))[0]
    assert not decide(plan=plan_of("minutes", 1))[0]
    # 6 * matmul parameters + attention is about 0.7 MFLOP a token here: 1e8 steps of 128 tokens are days.
    assert decide(plan=plan_of("steps", 1e8))[0]


def test_without_a_compiler_a_cpu_stays_eager_and_says_so_and_on_is_refused():
    chosen, why = decide(compiler=None, plan=plan_of("minutes", 10))
    assert not chosen
    assert "g++" in why
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        decide("on", compiler=None)


def test_what_is_asked_for_wins_and_a_resumed_run_keeps_its_choice():
    assert decide("on")[0]
    assert not decide("off", plan=plan_of("minutes", 10))[0]
    assert decide(saved=True)[0]
    assert not decide(saved=False, plan=plan_of("minutes", 10))[0]


@pytest.mark.parametrize("missing", ["why_not_native_loss", "why_not_native_layers"])
def test_a_resumed_run_is_told_where_native_code_has_come_or_gone(missing, monkeypatch):
    for name in ("why_not_native_loss", "why_not_native_layers"):
        monkeypatch.setattr(assembling, name, lambda **_: None)
    facts = {"device_type": "cpu", "dtype": torch.float32}
    assert choose_native(saved=None, **facts) == choose_native(saved=True, **facts) == (True, None)
    is_native, changed = choose_native(saved=False, **facts)
    assert is_native
    assert "by torch's operations when the run began and are now by native code" in changed
    monkeypatch.setattr(assembling, missing, lambda **_: "no C++ compiler was found")
    assert choose_native(saved=None, **facts) == choose_native(saved=False, **facts) == (False, None)
    is_native, changed = choose_native(saved=True, **facts)
    assert not is_native
    assert "by native code when the run began and are now by torch's operations" in changed


def test_in_bf16_it_is_the_loss_alone(monkeypatch):
    monkeypatch.setattr(assembling, "why_not_native_loss", lambda **_: None)
    monkeypatch.setattr(assembling, "why_not_native_layers", lambda: "torch's library shows no sgemm_")
    assert choose_native(saved=True, device_type="cpu", dtype=torch.bfloat16) == (True, None)


def test_native_layers_need_no_compiling_but_for_who_asks_and_runs_that_began_with_it():
    chosen, why = decide(has_native_layers=True, plan=plan_of("minutes", 10))
    assert not chosen
    assert "native code" in why
    assert decide("on", has_native_layers=True)[0]
    assert decide(saved=True, has_native_layers=True)[0]


@pytest.mark.parametrize(
    ("compiled", "fp8", "expected"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_blocks_are_written_out_where_they_are_native_and_nothing_else_is_asked_for(compiled, fp8, expected):
    if not has_native_layers(device_type="cpu", dtype=torch.float32):
        pytest.skip("no native code on this machine")
    parts = assemble(plan_of(), CPU, compiled=compiled, seed=3, checkpoint_activations=False, fp8=fp8)
    assert parts.model.written_out == expected


def test_gpus_compile_and_apple_gpus_only_on_request():
    assert decide(device_type="cuda", compiler=None)[0]
    assert not decide(device_type="mps", plan=plan_of("minutes", 10))[0]


def test_measuring_rates_changes_neither_weights_nor_gradients_nor_random_state():
    plan = plan_of()
    parts = assemble(plan, CPU, compiled=False, seed=3, checkpoint_activations=False)
    before = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    random_state = torch.get_rng_state()
    rates = measure_rates(parts, plan, CPU)
    assert 0 < rates.score_s < 60
    assert 0 < rates.train_s < 60
    assert torch.equal(random_state, torch.get_rng_state())
    for name, tensor in parts.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in parts.model.parameters())
    assert parts.optimizer.num_updates == 0


def test_rates_of_the_groups_are_the_plans():
    plan = plan_of()
    parts = assemble(plan, CPU, compiled=False, seed=3, checkpoint_activations=False)
    found = {group.name: group.lr for group in parts.optimizer.groups}
    assert found["embedding"] == plan.embedding_lr
    assert found["head"] == plan.unembedding_lr
    assert {lr for name, lr in found.items() if name.startswith("matrices")} == {plan.matrix_lr}


def test_only_float16_has_a_loss_scale():
    for dtype, has_scaler in ((torch.float16, True), (torch.bfloat16, False), (torch.float32, False)):
        runtime = Runtime(device=torch.device("cpu"), compute_dtype=dtype)
        parts = assemble(plan_of(), runtime, compiled=False, seed=3, checkpoint_activations=False)
        assert (parts.scaler is not None) == has_scaler


def test_fp8_switches_matrices_and_says_how_many():
    plan = plan_of()
    parts = assemble(plan, CPU, compiled=False, seed=3, checkpoint_activations=False, fp8=True)
    assert parts.notes[-1].startswith("fp8: ")
    plain = assemble(plan, CPU, compiled=False, seed=3, checkpoint_activations=False)
    assert list(parts.model.state_dict()) == list(plain.model.state_dict())
    assert not any("fp8" in note for note in plain.notes)


def test_compiled_trunk_gives_what_the_plain_one_gives(monkeypatch):
    """Traced only: tests/model/test_gpt.py has the numbers of compiled code."""
    traced = []

    def trace(function, **options):
        traced.append(function)
        return compile_with_torch(function, fullgraph=True, backend="aot_eager", **options)

    compile_with_torch = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    plan = plan_of()
    plain = assemble(plan, CPU, compiled=False, seed=3, checkpoint_activations=False)
    compiled = assemble(plan, CPU, compiled=True, seed=3, checkpoint_activations=False)
    ids_BT = torch.arange(64).view(2, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled.hidden(ids_BT), plain.hidden(ids_BT), atol=1e-5, rtol=1e-5)
    assert compiled.model.trunk in traced
    assert plain.model.trunk not in traced
