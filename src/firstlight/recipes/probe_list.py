"""The probes of a base run, as its settings say, and each one's budget."""

from __future__ import annotations

from collections.abc import Callable

from firstlight.eval.core.bundle import Bundle
from firstlight.eval.samples import default_prompts
from firstlight.recipes.core_probe import CoreProbe
from firstlight.recipes.probes import BpbProbe, SampleProbe, Validation, continuing
from firstlight.recipes.settings import BaseSettings
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.plan import Plan
from firstlight.train.probing import Budget, Probe


def make_probes(
    settings: BaseSettings,
    plan: Plan,
    validation: Validation,
    tokenizer: Tokenizer,
    *,
    console: Console,
    runtime: Runtime,
    core: Bundle | None,
    in_lockstep: bool,
    beat: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> list[Probe]:
    """In the order in which they run at a step. beat, should_stop: see `Validation`. core: the tasks of CORE, if any. in_lockstep: see `SampleProbe`."""
    return [
        BpbProbe(
            validation,
            every=plan.eval_every,
            max_documents=settings.eval_documents or None,
            console=console,
            budget=Budget(settings.eval_budget_s),
        ),
        SampleProbe(
            continuing(tokenizer),
            default_prompts(settings.data),
            every=plan.sample_every,
            console=console,
            runtime=runtime,
            in_lockstep=in_lockstep,
            beat=beat,
            should_stop=should_stop,
            budget=Budget(settings.sample_budget_s),
        ),
        CoreProbe(
            core,
            tokenizer,
            every=settings.core_every,
            max_per_task=settings.core_max_per_task or None,
            console=console,
            runtime=runtime,
            beat=beat,
            should_stop=should_stop,
            budget=Budget(settings.core_budget_s, floor_s=600),
        ),
    ]
