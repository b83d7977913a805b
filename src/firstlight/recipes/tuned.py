"""What mid-training and SFT have in common: a run's weights go on learning from a mixture of conversations.

    --init -> weights, tokenizer, rates        --data -> conversations -> ids and masks -> rows, packed once -> mixture

The number of rows is known before the plan is made, so that a horizon in passes over the conversations is a number of steps.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from firstlight.data.batch import Position
from firstlight.data.chat.documents import ConversationTokens
from firstlight.data.chat.line import Loss, MixtureLine, RowSource, passes, rows_per_epoch
from firstlight.data.chat.mixture import TEXT, Mixture
from firstlight.data.chat.packed import PackedConversations, pack_conversations
from firstlight.data.chat.sources import open_conversations
from firstlight.data.chat.text_rows import TextRows
from firstlight.data.chat.tokenised import TokenisedConversations, tokenise_conversations
from firstlight.data.loader import LineLoader
from firstlight.data.shuffle import mix_seed
from firstlight.errors import ConfigError
from firstlight.eval.chat.catalog import chosen
from firstlight.eval.chat.task import ChatTask
from firstlight.infer.calculator import Calculator
from firstlight.recipes import resume
from firstlight.recipes.assemble import Parts
from firstlight.recipes.chat_bundle import open_tasks
from firstlight.recipes.chat_eval import evaluate_chat, show_chat
from firstlight.recipes.chat_probe import ChatProbe
from firstlight.recipes.chat_samples import CHAT_PROMPTS, answering
from firstlight.recipes.plans import horizon_of, plan_for_model
from firstlight.recipes.prepare import PreparedData, prepare_data_together, store_notes
from firstlight.recipes.probes import BpbProbe, SampleProbe
from firstlight.recipes.settings import MidSettings, SftSettings
from firstlight.recipes.sharing import together
from firstlight.recipes.sink import RunSink
from firstlight.recipes.stage import StageData, StageRun
from firstlight.recipes.starting import ancestors, open_start
from firstlight.runtime import environment
from firstlight.tokens.document import Document
from firstlight.train.dial import batch_tokens_for
from firstlight.train.plan import Horizon, Plan
from firstlight.train.probing import Budget, Probe
from firstlight.train.state import TrainState

T = TypeVar("T", MidSettings, SftSettings)


class TunedRun(StageRun[T]):
    """A run that starts from another's weights and learns from conversations. loss: on which ids of them."""

    loss: ClassVar[Loss]
    calculator: Calculator | None = None
    text: PreparedData | None = None

    def make_plan(self) -> Plan:
        settings, runtime = self.settings, self.runtime
        # Before the conversations are read, which may take minutes.
        self.task_names()
        self.start = open_start(settings, self.runs_dir, previous=self.previous, runtime=runtime, console=self.console)
        self.parents = (self.start.record.name,)
        self.mixture = Mixture.parse(settings.data)
        self.seq_len = self.start.row_len(settings.max_seq_len)
        if settings.total_batch_size is not None and settings.total_batch_size < 1:
            raise ConfigError(
                f"--total-batch-size {settings.total_batch_size} must be above zero", hint="leave it out for the dial's"
            )
        self.open_mixture()
        given = horizon_of(settings)
        if self.previous is not None:
            settings = resume.keep_planned(settings, self.previous, world_size=runtime.world_size)
        batch = settings.total_batch_size
        if given is not None and given.kind != "epochs":
            horizon = given
        else:
            num_passes = given.value if given else 1.0
            if num_passes <= 0:
                raise ConfigError(
                    f"--epochs {num_passes:g} would train for no step", hint="1 is one pass over the conversations"
                )
            rows = num_passes * rows_per_epoch(self.components, seed=settings.seed)
            batch = batch or self.batch_for(rows * self.seq_len)
            horizon = Horizon("steps", math.ceil(rows * self.seq_len / batch))
        return plan_for_model(
            replace(settings, total_batch_size=batch),
            self.start.model,
            horizon=horizon,
            rates=self.start.rates(settings.lr_frac),
            why_rates=f"{settings.lr_frac:g} times that of {self.start.record.name}",
            runtime=runtime,
        )

    def batch_for(self, num_tokens: float) -> int:
        """Tokens a step where none are given: the dial's, in whole rows of all processes."""
        unit = self.seq_len * self.runtime.world_size
        return max(unit, batch_tokens_for(num_tokens) // unit * unit)

    def name_prefix(self) -> str:
        return f"{self.start.record.name}-{self.recipe}"

    # Conversations and text.

    def open_mixture(self) -> None:
        """Tokenise and pack what the mixture names. One process of all that share a cache does it first."""
        names = [name for name in self.mixture.names if name != TEXT]
        if not names:
            raise ConfigError(
                f"--data {self.settings.data} has no conversations",
                hint="builtin-chat needs no file; see docs/conversations.md",
            )
        if self.mixture.names[0] == TEXT:
            # Its rows are not counted beforehand, and passes are over the first component.
            ordered = sorted(self.mixture.parts, key=lambda part: part[0] == TEXT)
            self.mixture = replace(self.mixture, parts=tuple(ordered))
        self.tokenised = together(
            self.runtime.control, lambda note: self.tokenise(names, note), report=self.console.say
        )
        self.text = self.open_text() if TEXT in self.mixture.names else None
        self.components: list[tuple[str, RowSource, float]] = []
        for name, weight in self.mixture.parts:
            if name == TEXT:
                assert self.text is not None
                rows = TextRows(
                    self.text.store, self.text.val, self.seq_len, self.start.tokenizer.bos_id,
                    packing=self.text_facts["packing"],
                )  # fmt: skip
            else:
                rows = self.pack(self.tokenised[name])
            self.components.append((name, rows, weight))

    def tokenise(self, names: list[str], note: Callable[[str], None]) -> dict[str, TokenisedConversations]:
        found = {}
        cache_dir = environment.cache_dir()
        for name in names:
            note(f"reading {name}")
            with self.console.progress(f"reading {name}") as bar:

                def show(what: str, done: int, total: int | None) -> None:
                    note(f"{what}, {done:,}")
                    if total is not None:
                        bar.set_total(total)
                    bar.advance(max(0, done - bar.done))

                source = open_conversations(name, cache_dir=cache_dir, progress=show)
                found[name] = tokenise_conversations(
                    source,
                    self.start.tokenizer,
                    cache_dir=cache_dir,
                    num_threads=self.runtime.num_threads,
                    progress=show,
                )
        return found

    def pack(self, tokenised: TokenisedConversations) -> PackedConversations:
        settings = self.settings
        train = tokenised.split("train", val_frac=settings.val_frac)
        packed = pack_conversations(
            train, seq_len=self.seq_len, seed=mix_seed(settings.seed, "pack"), bos_id=self.start.tokenizer.bos_id,
            too_long=settings.too_long,
        )  # fmt: skip
        for sentence in tokenised.counts.describe():
            self.note(f"{tokenised.name}: {sentence.strip()}")
        self.note(f"{tokenised.name}: {packed.num_rows:,} rows of {self.seq_len}: {packed.counts.describe()}")
        return packed

    def base_settings(self) -> dict[str, Any]:
        """Settings of the base run that this one comes from, or none."""
        for record in ancestors(self.start.record, self.runs_dir):
            if record.recipe == "base":
                return record.config.get("settings", {})
        return {}

    def find_text(self) -> dict[str, Any]:
        """What text stands for: its data, validation and packing; of a resumed run as noted, for the base run may be gone."""
        if self.previous is not None and "text" in self.previous.config:
            return self.previous.config["text"]
        base, given = self.base_settings(), self.settings.text
        data = given or base.get("data")
        return {
            "data": None if data is None else str(data),
            "val": base.get("val") if given is None else None,
            "packing": str(base.get("packing", "bestfit")),
        }

    def open_text(self) -> PreparedData:
        """The text that `text` stands for, in the start's own ids."""
        facts = self.text_facts = self.find_text()
        if facts["data"] is None:
            raise ConfigError(
                f"--data {self.settings.data}: the text of {self.start.record.name} is not known",
                hint="say what text stands for with --text, or leave it out of --data",
            )
        workers = self.settings.workers if self.settings.workers is not None else environment.num_usable_cpus()
        return prepare_data_together(
            facts["data"], val=facts["val"],
            tokenizer_path=self.start.path / "tokenizer.json", vocab_size=self.start.tokenizer.vocab_size,
            cache_dir=environment.cache_dir(), num_workers=workers, seed=self.settings.seed,
            packing=facts["packing"], seq_len=self.seq_len, console=self.console, runtime=self.runtime,
        )  # fmt: skip

    def prepare(self, plan: Plan) -> StageData:
        runtime, settings, tokenizer = self.runtime, self.settings, self.start.tokenizer
        val = {name: each.split("val", val_frac=settings.val_frac) for name, each in self.tokenised.items()}
        data_hash = self.data_hash()
        self.check_identity(data=settings.data, data_hash=data_hash, tokenizer_hash=tokenizer.content_hash)
        self.tasks = self.open_tasks()
        self.calculator = Calculator()

        def open_line(position: Position, stop: threading.Event) -> MixtureLine:
            return MixtureLine(self.components, seed=settings.seed, loss=self.loss, position=position, stop=stop)

        def open_batches(plan: Plan, parts: Parts, position: Position) -> LineLoader:
            return LineLoader(
                open_line, bos_id=tokenizer.bos_id, seq_len=plan.seq_len, device_batch_size=plan.device_batch_size,
                rank=runtime.rank, world_size=runtime.world_size, position=position, device=runtime.device,
            )  # fmt: skip

        num_rows = plan.estimated_steps * plan.total_batch_size // plan.seq_len
        for name, count in passes(self.components, num_rows, seed=settings.seed).items():
            if count is not None:
                self.note(f"{name}: {count:.2f} passes")
        return StageData(
            tokenizer=tokenizer,
            data_hash=data_hash,
            val=f"conversations: {settings.val_frac:g} of each set by content hash, or its own",
            documents=lambda: [document for each in val.values() for document in targets_only(each)],
            val_hash=lambda: hashlib.sha256("".join(each.content_hash for each in val.values()).encode()).hexdigest(),
            open_batches=open_batches,
            notes=lambda: store_notes(self.text.store) if self.text is not None else [],
            close=self.release,
        )

    def task_names(self) -> list[str]:
        """Names of the tasks that the run is scored on. Raises ConfigError for those that are not known."""
        settings = self.settings
        names = [name.strip() for name in settings.chat_tasks.split(",") if name.strip() not in ("", "none")]
        if names and settings.shard_weights and self.runtime.world_size > 1:
            raise ConfigError(
                "--chat-tasks needs whole weights on each process, and --shard-weights divides them",
                hint="use --chat-tasks none, and score the checkpoints with `firstlight eval chat`",
            )
        return chosen(names, flag="--chat-tasks") if names else []

    def open_tasks(self) -> list[ChatTask]:
        """The tasks that the run is scored on."""
        names, settings = self.task_names(), self.settings
        if not names:
            return []
        return open_tasks(
            names, data=settings.chat_data, control=self.runtime.control, cache_dir=environment.cache_dir(),
            report=self.console.say, flags=("--chat-tasks", "--chat-data"),
        )  # fmt: skip

    def release(self) -> None:
        """End the build of the text, and the calculator's process."""
        if self.calculator is not None:
            self.calculator.close()
        if self.text is not None:
            self.text.store.close()

    def data_hash(self) -> str:
        """Content identity of all that is learned from."""
        total = hashlib.sha256()
        for name, weight in self.mixture.parts:
            if name == TEXT:
                assert self.text is not None
                content = self.text.store.data_hash
            else:
                content = self.tokenised[name].content_hash
            total.update(f"{weight:g}\0{content}\n".encode())
        return total.hexdigest()

    # Training.

    def extra_config(self) -> dict[str, Any]:
        packed = {name: rows.facts for name, rows, _ in self.components if isinstance(rows, PackedConversations)}
        text = {"text": self.text_facts} if self.text is not None else {}
        return {"start": self.start.facts, "conversations": packed, **text}

    def load_start(self, parts: Parts) -> None:
        self.start.load_into(parts)
        self.console.say(f"weights from {self.start.checkpoint}")

    def make_probes(
        self, plan: Plan, data: StageData, parts: Parts, sink: RunSink, *, beat: Callable[[str], None]
    ) -> list[Probe]:
        settings = self.settings
        probes: list[Probe] = [
            BpbProbe(
                self.validation, every=plan.eval_every, max_documents=settings.eval_documents or None, console=self.console,
                budget=Budget(settings.eval_budget_s),
            ),
            ChatProbe(
                self.tasks, data.tokenizer, every=settings.chat_every, max_per_task=settings.chat_max_per_task or None,
                console=self.console, runtime=self.runtime, beat=beat, should_stop=lambda: self.stop.requested,
                budget=Budget(settings.chat_budget_s, floor_s=600),
            ),
        ]  # fmt: skip
        if self.is_sharded:
            self.note("no answers are sampled on the way: each process holds a part of the weights only")
            return probes
        assert self.calculator is not None
        samples = SampleProbe(
            answering(data.tokenizer, self.calculator), CHAT_PROMPTS, every=plan.sample_every, console=self.console,
            runtime=self.runtime, beat=beat, should_stop=lambda: self.stop.requested,
            budget=Budget(settings.sample_budget_s),
        )  # fmt: skip
        return [*probes, samples]

    def score_end(
        self, parts: Parts, data: StageData, sink: RunSink, end: TrainState, *, max_tokens: int | None
    ) -> dict[str, Any]:
        """Bits per byte of assistants' words, and the tasks."""
        row = super().score_end(parts, data, sink, end, max_tokens=max_tokens)
        if not self.tasks:
            return row
        result = evaluate_chat(
            parts.model, data.tokenizer, self.tasks, runtime=self.runtime, console=self.console,
            max_per_task=self.settings.chat_max_per_task or None, beat=self.beat,
        )  # fmt: skip
        show_chat(self.console, self.run_dir.name, result)
        chat = result.to_dict()
        sink.write("chat", end.step, {**chat, "final": True})
        return row | {"chat": chat}

    def next_step(self) -> str:
        return f"firstlight chat {self.keeper.record.name}"


def targets_only(tokens: ConversationTokens) -> list[Document]:
    """The conversations that have a target."""
    return [tokens[int(i)] for i in (tokens.num_targets > 0).nonzero()[0]]
