"""The recipe of a base run: a new model learns from text.

settings -> plan -> text, tokenizer, tokens -> batches; probes: bits per byte, samples, CORE
"""

from __future__ import annotations

from collections.abc import Callable

from firstlight.data.batch import Position
from firstlight.data.loader import Loader
from firstlight.data.split import iter_documents, val_content_hash
from firstlight.errors import DataError
from firstlight.recipes import preflight, resume
from firstlight.recipes import record as records
from firstlight.recipes.assemble import Parts
from firstlight.recipes.core_probe import core_bundle
from firstlight.recipes.launch import launch
from firstlight.recipes.plans import plan_from_settings, with_vocabulary_of_tokenizer
from firstlight.recipes.prepare import (
    PreparedData,
    check_amounts,
    describe_source,
    prepare_data_together,
    store_notes,
)
from firstlight.recipes.probe_list import make_probes
from firstlight.recipes.settings import BaseSettings
from firstlight.recipes.sink import RunSink
from firstlight.recipes.stage import StageData, StageRun
from firstlight.runtime import environment
from firstlight.train.plan import Plan
from firstlight.train.probing import Probe


def train_base(settings: BaseSettings, *, given: frozenset[str] = frozenset()) -> records.RunRecord:
    """Train a base model as ``settings`` say, and return the run's record. See `launch`."""
    return launch(BaseRun, settings, given=given)


class BaseRun(StageRun[BaseSettings]):
    """Random weights, documents packed into rows, and scores on documents that were set aside."""

    recipe = "base"

    def make_plan(self) -> Plan:
        settings = with_vocabulary_of_tokenizer(self.settings)
        if self.previous is not None:
            settings = resume.keep_planned(settings, self.previous, world_size=self.runtime.world_size)
        return plan_from_settings(settings, runtime=self.runtime)

    def name_prefix(self) -> str:
        return records.name_prefix(self.settings.depth, self.settings.data)

    def prepare(self, plan: Plan) -> StageData:
        """Open the text. Several processes share the work of tokenising it, and none waits past a timeout."""
        settings, runtime, console = self.settings, self.runtime, self.console
        cache_dir = environment.cache_dir()
        self.core = core_bundle(settings, runtime=runtime, cache_dir=cache_dir, console=console)
        saved = self.run_dir / "tokenizer.json"
        workers = settings.workers if settings.workers is not None else environment.num_usable_cpus()
        data = prepare_data_together(
            settings.data,
            val=settings.val,
            tokenizer_path=saved if self.previous is not None and saved.exists() else settings.tokenizer,
            vocab_size=plan.model.vocab_size,
            cache_dir=cache_dir,
            num_workers=workers,
            seed=settings.seed,
            packing=settings.packing,
            seq_len=plan.seq_len,
            console=console,
            runtime=runtime,
        )
        try:
            self.check_data(plan, data)
        except BaseException:
            data.store.close()
            raise

        def open_batches(plan: Plan, parts: Parts, position: Position) -> Loader:
            return Loader(
                data.store, tokenizer_bos_id=data.tokenizer.bos_id, val_spec=data.val, packing=settings.packing,
                seq_len=plan.seq_len, device_batch_size=plan.device_batch_size, seed=settings.seed,
                rank=runtime.rank, world_size=runtime.world_size, position=position, device=runtime.device,
                vocab_size=plan.model.vocab_size,
            )  # fmt: skip

        return StageData(
            tokenizer=data.tokenizer,
            data_hash=data.store.data_hash,
            val=str(data.val),
            documents=lambda: [document for document, _ in iter_documents(data.store, data.val)],
            val_hash=lambda: val_content_hash(data.store, data.val),
            open_batches=open_batches,
            notes=lambda: store_notes(data.store),
            close=data.store.close,
        )

    def check_data(self, plan: Plan, data: PreparedData) -> None:
        """Refuse data that cannot be trained on, or is not the resumed run's."""
        self.console.say(describe_source(data.source))
        if data.tokenizer.vocab_size != plan.model.vocab_size:
            raise DataError(
                f"the tokenizer has {data.tokenizer.vocab_size} ids and the model {plan.model.vocab_size}",
                hint="remove the run's folder and start it again, or give the right --tokenizer",
            )
        check_amounts(data, seq_len=plan.seq_len)
        options = {"packing": self.settings.packing, "seed": self.settings.seed}
        for sentence in preflight.check_text(plan, data, self.runtime, **options):
            self.note(sentence)
        self.check_identity(
            data=self.settings.data, data_hash=data.store.data_hash, tokenizer_hash=data.tokenizer.content_hash
        )

    def make_probes(
        self, plan: Plan, data: StageData, parts: Parts, sink: RunSink, *, beat: Callable[[str], None]
    ) -> list[Probe]:
        return make_probes(
            self.settings, plan, self.validation, data.tokenizer, console=self.console, runtime=self.runtime,
            core=self.core, in_lockstep=self.is_sharded, beat=beat, should_stop=lambda: self.stop.requested,
        )  # fmt: skip

    def next_step(self) -> str:
        return f'firstlight sample {self.keeper.record.name} -p "The"'
