"""`firstlight eval bpb|samples`: score a run, and see what it says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable

    from firstlight.data.store import TokenStore
    from firstlight.recipes.record import RunRecord
    from firstlight.runtime.context import Runtime
    from firstlight.tokens.bpe import Tokenizer
    from firstlight.tokens.document import Document

ALL = "all"
By = Literal["corpus", "shard", "length", "position"]


def bpb(
    run: str,
    /,
    *,
    data: list[str] | None = None,
    val: str | None = None,
    by: list[By] | None = None,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    checkpoint: str = "latest",
    max_seq_len: int | None = None,
    device_batch_size: int | None = None,
    device: str = "auto",
    dtype: str = "run",
    threads: int | None = None,
    workers: int | None = None,
    json: bool = False,
) -> None:
    """Bits per byte of a run's model on whole documents, with a standard error over documents. Lower is better.

    For example:

        firstlight eval bpb quickstart
        firstlight eval bpb mine --checkpoint best --max-documents 200
        firstlight eval bpb mine --data other_texts/ --val all --json
        firstlight eval bpb mine --data wikipedia/ --data books/ --by corpus --by position

    Parameters
    ----------
    run
        Name of a run, or its folder.
    data
        Text to score: builtin, a directory or file, or a hub data set; may be given several times. [the run's]
    val
        Which documents: last, hash:0.01, a shard's file name, or all. [the run's; all of other --data]
    by
        Also score parts: corpus (each --data, or folder of it), shard (file), length (quarters of the documents), position (in
        the window, which shows what context is worth); may be given several times. [corpus, where there are several]
    max_documents
        Score the first documents (of each --data) only.
    max_tokens
        Score the first documents (of each --data) only, as many as fit whole into this many tokens.
    checkpoint
        latest, best (lowest bits per byte) or a step's number.
    max_seq_len
        Tokens in a window. [the model's context]
    device_batch_size
        Windows in one forward pass. [4,096 tokens on a CPU, 32,768 on a GPU]
    device
        auto, cpu, cuda or mps.
    dtype
        Dtype of the matmuls: run (that of the training), auto, fp32, bf16 or fp16.
    threads
        CPU threads. [all that this process may use]
    workers
        Processes that tokenise. [one a CPU]
    json
        Print one JSON object.
    """
    from firstlight.eval.slices import POSITIONS, slices_by
    from firstlight.recipes.bpb_eval import result_of, score_documents
    from firstlight.recipes.core_eval import weights_hash
    from firstlight.recipes.kept_scores import document_scores, keep_scores
    from firstlight.recipes.loading import dtype_for, load_for_inference
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    _check_bpb(data, max_documents=max_documents, max_tokens=max_tokens)
    with open_runtime(device=device, dtype=dtype_for(run, dtype, device=device), num_threads=threads) as runtime:
        console = Console(
            is_main=runtime.is_main, is_terminal=environment.is_terminal(), file=sys.stderr if json else None
        )
        loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=console.warn)
        seq_len = max_seq_len or loaded.model.config.max_seq_len
        batch_tokens = 4096 if runtime.device.type == "cpu" else 32768
        # All texts before the first is scored: one that is not there would be found after minutes.
        texts = []
        for name in data or [_own_data(loaded.record)]:
            is_the_runs = name == run_setting(loaded.record, "data")
            with console.progress(f"tokenising {name}") as bar:
                found = documents_to_score(
                    name,
                    val or (run_setting(loaded.record, "val") if is_the_runs else ALL),
                    loaded.tokenizer,
                    runtime=runtime,
                    num_workers=workers or environment.num_usable_cpus(),
                    progress=lambda what, done, total, bar=bar: bar.advance(0),
                )
            texts.append((name, *found))
        scored = []
        sets: list[dict[str, Any]] = []
        shards: list[str] = []
        for name, documents, val_hash, val_name in texts:
            with console.progress("scoring", unit="documents") as bar:

                def show(done: int, total: int | None, bar: Any = bar) -> None:
                    bar.set_total(total or done)
                    bar.advance(done - bar.done)

                scored.append(
                    score_documents(
                        loaded.model,
                        documents,
                        loaded.tokenizer.token_bytes(),
                        bos_id=loaded.tokenizer.bos_id,
                        seq_len=seq_len,
                        batch_rows=device_batch_size or max(1, batch_tokens // seq_len),
                        runtime=runtime,
                        run_dir=loaded.path,
                        identity={
                            "weights_hash": weights_hash(loaded.checkpoint),
                            "tokenizer_hash": loaded.tokenizer.content_hash,
                            "val_hash": val_hash,
                            "dtype": runtime.dtype_name,
                            "device": runtime.device.type,
                        },
                        stretches=POSITIONS if by and "position" in by else (),
                        max_documents=max_documents,
                        max_tokens=max_tokens,
                        progress=show,
                        report=console.warn,
                    )
                )
            scores = document_scores(
                scored[-1][1], documents, run=loaded.record.name, step=loaded.step, val_hash=val_hash,
                tokenizer_hash=loaded.tokenizer.content_hash, data=name, val=val_name, max_seq_len=seq_len,
                dtype=runtime.dtype_name,
            )  # fmt: skip
            kept = keep_scores(loaded.path, scores, warn=console.warn) if runtime.is_main and scores.is_whole else None
            prefix = f"{name.rstrip('/').rpartition('/')[2]}/" if data and len(data) > 1 else ""
            shards += [f"{prefix}{shard}" for shard in scores.slices]
            sets.append(
                {"data": name, "val": val_name, "val_hash": val_hash, "scores": str(kept) if kept else None}
                | {"val_bpb": scored[-1][0].to_dict()["val_bpb"], "num_documents": scored[-1][0].num_documents}
            )
        result, sums = result_of(scored)
    if not runtime.is_main:
        return
    if by is None and len({shard.partition("/")[0] for shard in shards if "/" in shard}) > 1:
        by = ["corpus"]
    tables = {each: slices_by(each, sums, shards) for each in by or ()}
    facts: dict[str, Any] = {
        "run": loaded.record.name,
        "step": loaded.step,
        "checkpoint": str(loaded.checkpoint),
        "data": sets[0]["data"] if len(sets) == 1 else [each["data"] for each in sets],
        "val": sets[0]["val"] if len(sets) == 1 else [each["val"] for each in sets],
        "val_hash": sets[0]["val_hash"] if len(sets) == 1 else [each["val_hash"] for each in sets],
        "tokenizer_hash": loaded.tokenizer.content_hash,
        "max_seq_len": seq_len,
        "device": str(runtime.device),
        "dtype": runtime.dtype_name,
    }
    if json:
        slices = {each: [part.to_dict() for part in table] for each, table in tables.items()}
        Console().json(facts | result.to_dict() | {"sets": sets, "slices": slices})
        return
    console.say(f"{loaded.record.name}, step {loaded.step:,}: {result.describe()}")
    for each in sets:
        console.say(
            f"data {each['data']}, documents {each['val']} (content hash {each['val_hash'][:16]}), "
            f"windows of {seq_len:,} tokens"
        )
    if result.num_empty:
        console.say(f"{result.num_empty:,} documents without a token were left out")
    for each, table in tables.items():
        console.say()
        rows = [
            [part.name, f"{part.val_bpb:.4f}", "" if part.val_bpb_stderr is None else f"{part.val_bpb_stderr:.4f}",
             f"{part.num_documents:,}", f"{part.num_bytes:,}"]
            for part in table
        ]  # fmt: skip
        console.table([each, "bits per byte", "+-", "documents", "bytes"], rows)


def _check_bpb(data: list[str] | None, *, max_documents: int | None, max_tokens: int | None) -> None:
    from firstlight.errors import Problems

    problems = Problems()
    for flag, value in (("--max-documents", max_documents), ("--max-tokens", max_tokens)):
        if value is not None and value < 1:
            problems.add(f"{flag} {value} leaves nothing to score", hint="use 1 or more, or leave it out for all")
    for name in sorted({name for name in data or () if (data or []).count(name) > 1}):
        problems.add(f"--data {name} is given twice", hint="its documents would count twice: give it once")
    problems.raise_if_any()


def samples(
    run: str,
    /,
    *,
    prompt: Annotated[list[str] | None, Parameter(name=["--prompt", "-p"], allow_leading_hyphen=True)] = None,
    max_new_tokens: int = 48,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 1337,
    checkpoint: str = "latest",
    device: str = "auto",
    dtype: str = "run",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """What a run's model says to fixed prompts: the same ones, with the same seed, as in its samples.md.

    For example:

        firstlight eval samples quickstart
        firstlight eval samples mine --checkpoint 500 -p "Once upon a time" -p "The end" --json

    Parameters
    ----------
    run
        Name of a run, or its folder.
    prompt
        A text to continue; may be given several times. [seven that suit the run's data]
    max_new_tokens
        Tokens in a sample, if the model has not ended the text before.
    temperature
        0 takes the likeliest token each time; 1 samples as the model learned.
    top_k
        Choose among this many likeliest tokens only; 0 is off.
    seed
        The same seed gives the same texts.
    checkpoint
        latest, best (lowest bits per byte) or a step's number.
    device
        auto, cpu, cuda or mps.
    dtype
        Dtype of the matmuls: run (that of the training), auto, fp32, bf16 or fp16.
    threads
        CPU threads. [all that this process may use]
    json
        Print one JSON object.
    """
    from firstlight.cli.sample import write
    from firstlight.eval.samples import default_prompts, sample_prompts, samples_markdown
    from firstlight.recipes.loading import dtype_for, load_for_inference
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    with open_runtime(device=device, dtype=dtype_for(run, dtype, device=device), num_threads=threads) as runtime:
        console = Console(
            is_main=runtime.is_main, is_terminal=environment.is_terminal(), file=sys.stderr if json else None
        )
        loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=console.warn)
        found = sample_prompts(
            loaded.model,
            loaded.tokenizer,
            prompt or default_prompts(run_setting(loaded.record, "data") or ""),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )
    if json:
        rows = [sample.to_dict() for sample in found]
        Console(is_main=runtime.is_main).json(
            {"run": loaded.record.name, "step": loaded.step, "seed": seed, "samples": rows}
        )
    elif runtime.is_main:
        write(samples_markdown(loaded.step, found))


def run_setting(record: RunRecord, name: str) -> Any:
    """A setting of a run as its user gave it, or None."""
    settings = record.config.get("settings")
    return settings.get(name) if isinstance(settings, dict) else None


def _own_data(record: RunRecord) -> str:
    """The text that a run was trained on. Raises ConfigError where its record does not say: all of some text is no test."""
    from firstlight.errors import ConfigError

    name = run_setting(record, "data")
    if name:
        return name
    origin = record.config.get("origin")
    origin = origin if isinstance(origin, dict) else {}
    was = ""
    if origin.get("run") and origin.get("data"):
        was = f"; {origin['run']}, which it was exported from, had --data {origin['data']}"
        was += f" --val {origin['val']}" if origin.get("val") else ""
    raise ConfigError(
        f"{record.name} does not say what it was trained on (recipe {record.recipe}), so the text to score must be named",
        hint=f"give --data and --val{was}",
    )


def documents_to_score(
    data: str,
    val: str | None,
    tokenizer: Tokenizer,
    *,
    runtime: Runtime,
    num_workers: int,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> tuple[list[Document], str, str]:
    """Documents chosen from a text, the content hash of what was chosen, and its name.

    Only shards that hold such documents are waited for; ranks above 0 wait for the first one's build.
    Raises ConfigError or DataError for a text or a choice that is not there.
    """
    from firstlight.data import build
    from firstlight.data.sources.resolve import open_source
    from firstlight.data.split import iter_documents, split_shards, val_content_hash
    from firstlight.data.store import TokenStore
    from firstlight.recipes.prepare import resolve_source_val
    from firstlight.runtime import environment

    cache_dir = environment.cache_dir()
    if runtime.is_main:
        open_source(data, cache_dir=cache_dir, progress=progress)
    runtime.barrier()
    source = open_source(data, cache_dir=cache_dir)
    spec = None if val == ALL else resolve_source_val(source, val)
    names = [shard.name for shard in source.shards]
    order = list(range(len(names))) if spec is None else split_shards(spec, names, "val")
    if runtime.is_main:
        store = build.start_build(
            source, tokenizer, cache_dir=cache_dir, num_workers=num_workers, order=order, progress=progress
        )
        runtime.barrier()
    else:
        runtime.barrier()
        store = TokenStore.open(build.store_directory(source, tokenizer, cache_dir=cache_dir), wait=True)
    with store:
        if spec is None:
            documents, content_hash = _all_documents(store)
        else:
            documents = [document for document, _ in iter_documents(store, spec)]
            content_hash = val_content_hash(store, spec)
        # Every rank must have what it waits for before the first one ends the build.
        runtime.barrier()
    return documents, content_hash, ALL if spec is None else str(spec)


def _all_documents(store: TokenStore) -> tuple[list[Document], str]:
    """Every document of a store, and the same content hash as a validation split of them would have."""
    import hashlib

    import numpy as np

    from firstlight.tokens.document import Document

    documents = [
        Document(shard.ids(doc), source=shard.source_row(doc))
        for shard in store.shards()
        for doc in range(shard.num_documents)
    ]
    hashes = np.sort(np.concatenate([shard.doc_hashes for shard in store.shards()]))
    return documents, hashlib.sha256(hashes.astype("<u8").tobytes()).hexdigest()
