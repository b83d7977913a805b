"""The recipe of reinforcement learning: a model answers, an environment rewards, and what beat its group gets likelier.

Batches are answers of the model as it is (`firstlight.rl.batches`), with advantages as the weights of the shared step's
loss; probes and the final score are rewards on problems that are never trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from firstlight.data.batch import Position
from firstlight.errors import ConfigError
from firstlight.model.gpt import GPT
from firstlight.recipes import record as records
from firstlight.recipes import resume
from firstlight.recipes.assemble import Parts
from firstlight.recipes.launch import launch
from firstlight.recipes.loading import load_for_inference, slow_writing
from firstlight.recipes.plans import horizon_of, plan_for_model
from firstlight.recipes.reward_probe import RewardProbe
from firstlight.recipes.settings import RlSettings
from firstlight.recipes.sink import RunSink
from firstlight.recipes.stage import StageData, StageRun
from firstlight.recipes.starting import open_start
from firstlight.rl.batches import RolloutBatches, check_sampling
from firstlight.rl.environments.base import SPLITS, Environment
from firstlight.rl.environments.table import open_environment
from firstlight.rl.scores import evaluate_rewards
from firstlight.rl.stats import RolloutStats
from firstlight.runtime import environment as machine
from firstlight.train.plan import Horizon, Plan
from firstlight.train.probing import Probe
from firstlight.train.state import TrainState

DEFAULT_STEPS = 100
SAY_EVERY_STEPS = 5


def train_rl(settings: RlSettings, *, given: frozenset[str] = frozenset()) -> records.RunRecord:
    """Train a model by rewards as ``settings`` say, and return the run's record. See `launch`."""
    return launch(RlRun, settings, given=given)


class RlRun(StageRun[RlSettings]):
    """The model's own answers, weighed by their rewards."""

    recipe = "rl"

    def make_plan(self) -> Plan:
        settings, runtime = self.settings, self.runtime
        self.start = open_start(settings, self.runs_dir, previous=self.previous, runtime=runtime, console=self.console)
        self.parents = (self.start.record.name,)
        seq_len = self.start.row_len(settings.max_seq_len, smallest=2)
        # Here and not where they are used: a run of values that cannot be is to leave no folder.
        self.check(device_batch_size=1, seq_len=seq_len)
        step_tokens = settings.prompts_per_step * settings.samples_per_prompt * seq_len
        if settings.total_batch_size not in (None, step_tokens):
            raise ConfigError(
                f"--total-batch-size {settings.total_batch_size}: a step is --prompts-per-step {settings.prompts_per_step} "
                f"x --samples-per-prompt {settings.samples_per_prompt} answers",
                hint="leave it out",
            )
        if settings.shard_weights:
            raise ConfigError("--shard-weights: answers are sampled from whole weights", hint="leave it out")
        # Last, since its questions may have to be made first.
        self.environment = open_environment(
            settings.environment, cache_dir=machine.cache_dir(), format_reward=settings.format_reward
        )
        horizon = horizon_of(settings) or Horizon("steps", DEFAULT_STEPS)
        if self.previous is not None:
            settings = resume.keep_planned(settings, self.previous, world_size=runtime.world_size)
        plan = plan_for_model(
            replace(settings, total_batch_size=step_tokens),
            self.start.model,
            horizon=horizon,
            rates=self.start.rates(settings.lr_frac),
            why_rates=f"{settings.lr_frac:g} times that of {self.start.record.name}",
            runtime=runtime,
        )
        self.check(device_batch_size=plan.device_batch_size, seq_len=seq_len)
        # A resumed run samples anew: it must not go on in the middle of a sample's updates.
        save_every = math.ceil(plan.save_every / settings.updates_per_rollout) * settings.updates_per_rollout
        return replace(plan, save_every=save_every)

    def check(self, *, device_batch_size: int, seq_len: int) -> None:
        """Raise ConfigError for values that no answers can be sampled, rewarded or trained on with."""
        settings = self.settings
        check_sampling(
            prompts_per_step=settings.prompts_per_step, samples_per_prompt=settings.samples_per_prompt,
            device_batch_size=device_batch_size, seq_len=seq_len, max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature, top_k=settings.top_k, clip=settings.clip, clip_high=settings.clip_high,
            kl=settings.kl, has_reference=True, scale=settings.advantage_scale,
            updates_per_rollout=settings.updates_per_rollout, context=self.start.model.max_seq_len,
            world_size=self.runtime.world_size,
        )  # fmt: skip
        for flag, value in (
            ("--reward-problems", settings.reward_problems),
            ("--reward-samples", settings.reward_samples),
        ):
            if value < 1:
                raise ConfigError(
                    f"{flag} {value} is too small", hint="the smallest is 1; 200 problems, 4 samples are usual"
                )

    def name_prefix(self) -> str:
        return f"{self.start.record.name}-rl"

    def prepare(self, plan: Plan) -> StageData:
        settings, runtime, tokenizer = self.settings, self.runtime, self.start.tokenizer
        data_hash = environment_hash(self.environment)
        self.check_identity(data=settings.environment, data_hash=data_hash, tokenizer_hash=tokenizer.content_hash)
        if settings.compile == "auto":
            # Answers have other lengths in each step, and a compiled model would be compiled for each.
            self.settings = replace(settings, compile="off")
        num_problems = self.environment.num_problems("train")
        passes = plan.estimated_steps * settings.prompts_per_step / num_problems / settings.updates_per_rollout
        self.note(f"{self.environment.name}: {num_problems:,} problems to train on, {passes:.2f} passes")

        def open_batches(plan: Plan, parts: Parts, position: Position) -> RolloutBatches:
            return RolloutBatches(
                parts.model, self.environment, tokenizer, runtime=runtime, seed=settings.seed,
                prompts_per_step=settings.prompts_per_step, samples_per_prompt=settings.samples_per_prompt,
                device_batch_size=plan.device_batch_size, seq_len=plan.seq_len, max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature, top_k=settings.top_k, position=position, clip=settings.clip,
                clip_high=settings.clip_high, scale=settings.advantage_scale,
                kl=settings.kl, reference=self.reference() if settings.kl else None,
                updates_per_rollout=settings.updates_per_rollout, fixed_len=parts.compiled, beat=self.beat,
                on_step=self.tell_step,
            )  # fmt: skip

        return StageData(
            tokenizer=tokenizer,
            data_hash=data_hash,
            val=f"{settings.reward_problems} test problems of {self.environment.name}",
            documents=list,
            val_hash=lambda: data_hash,
            open_batches=open_batches,
            notes=lambda: slow_writing(self.runtime),
        )

    def reference(self) -> GPT:
        """The model that training starts from, to stay near to."""
        return load_for_inference(
            self.start.path, self.runtime, checkpoint=str(int(self.start.checkpoint.name.removeprefix("step_")))
        ).model

    def tell_step(self, stats: RolloutStats) -> None:
        """Numbers of a step's answers, with some of them, into the metrics; a line now and then."""
        values = {name: value for name, value in stats.to_dict().items() if name != "step"}
        self.sink.write("rl", stats.step, {**values, "texts": [asdict(text) for text in stats.texts]})
        if stats.step % SAY_EVERY_STEPS == 0:
            self.console.say(f"step {stats.step:05d} | {stats.describe()}")

    def extra_config(self) -> dict[str, Any]:
        return {"start": self.start.facts}

    def load_start(self, parts: Parts) -> None:
        self.start.load_into(parts)
        self.console.say(f"weights from {self.start.checkpoint}")

    def make_probes(
        self, plan: Plan, data: StageData, parts: Parts, sink: RunSink, *, beat: Callable[[str], None]
    ) -> list[Probe]:
        settings = self.settings
        self.rewards = RewardProbe(
            partial(
                evaluate_rewards, environment=self.environment, tokenizer=data.tokenizer, split="test",
                max_problems=settings.reward_problems, samples_per_prompt=settings.reward_samples,
                temperature=settings.temperature, top_k=settings.top_k, max_new_tokens=settings.max_new_tokens,
                seed=settings.seed, runtime=self.runtime, beat=beat,
            ),
            every=plan.eval_every,
            run_dir=self.run_dir,
            console=self.console,
            is_main=self.runtime.is_main,
        )  # fmt: skip
        return [self.rewards]

    def score_end(
        self, parts: Parts, data: StageData, sink: RunSink, end: TrainState, *, max_tokens: int | None
    ) -> dict[str, Any]:
        """Rewards after training, beside those before, on the same problems."""
        row = self.rewards.last(parts.model, end.step)
        sink.write("reward", end.step, {**row, "final": True})
        return row

    def next_step(self) -> str:
        return f"firstlight chat {self.keeper.record.name}"


def environment_hash(environment: Environment) -> str:
    """Identity by content: SHA-256 of the first problems of both sides, and of how many there are."""
    total = hashlib.sha256(environment.name.encode())
    for split in SPLITS:
        num = environment.num_problems(split)
        total.update(f"{split} {num}\n".encode())
        for index in range(0, num, max(1, num // 256)):
            problem = environment.problem(split, index)
            texts = [[message.role, [part.text for part in message.parts]] for message in problem.messages]
            total.update(json.dumps([texts, problem.answer], ensure_ascii=True).encode())
    return total.hexdigest()
