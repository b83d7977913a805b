"""A run on disk as a server: model, engine, calculator, limits and routes put together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import FastAPI

from firstlight.infer.batch import BatchEngine, Request, Tool
from firstlight.infer.calculator import Calculator
from firstlight.infer.tools import PythonTool
from firstlight.model.gpt import GPT
from firstlight.recipes.loading import LoadedRun
from firstlight.serve.app import make_app
from firstlight.serve.guard import LOOPBACK_HOSTS, is_loopback
from firstlight.serve.meters import Meters
from firstlight.serve.service import Limits, Service
from firstlight.serve.worker import EngineWorker
from firstlight.tokens.bpe import Tokenizer

NUM_CALCULATORS = 2
"""One that loops until its limit leaves another for the rest, and a machine of two cores a core for the model."""

BASE_WARNING = "this run is a base model: it continues text and has not learned to chat"


@dataclass(frozen=True)
class Assembled:
    """Everything that serves one run. close: frees the calculator's process, after the server has ended."""

    app: FastAPI
    service: Service
    close: Callable[[], None]


def assemble(
    loaded: LoadedRun,
    *,
    host: str,
    max_rows: int,
    queue: int,
    limits: Limits,
    api_key: str | None,
    origins: tuple[str, ...],
    tools: str,
    studio: bool,
) -> Assembled:
    """The application for a run. The model answers once here, so that a broken one is seen before the first client.

    host: where it will listen; on the loopback interface only its names are answered to. queue: answers that may wait
    beyond ``max_rows``. tools: ``python``, ``off``, or ``auto``: the calculator where the run has learned to call it.
    Raises ConfigError for sizes that cannot be.
    """
    record = loaded.record
    is_base = record.recipe == "base"
    has_tool = tools == "python" or (tools == "auto" and not is_base)
    calculator = Calculator(num_workers=NUM_CALCULATORS) if has_tool else None
    executor = ThreadPoolExecutor(NUM_CALCULATORS, thread_name_prefix="firstlight-calculator")
    engine = BatchEngine(loaded.model, max_rows=max_rows)
    try_out(engine, loaded.tokenizer)
    worker = EngineWorker(engine, max_open=max_rows + queue)
    service = Service(
        model_id=record.name,
        tokenizer=loaded.tokenizer,
        context=loaded.model.config.max_seq_len,
        worker=worker,
        meters=Meters(worker),
        limits=limits,
        created_unix_s=record.created_unix_s,
        facts=facts_of(loaded, loaded.model),
        warning=BASE_WARNING if is_base else None,
        make_tool=None if calculator is None else tool_maker(loaded.tokenizer, calculator.run, executor),
    )
    hosts = (*LOOPBACK_HOSTS, host) if is_loopback(host) else None
    app = make_app(service, api_key=api_key, hosts=hosts, origins=origins)
    add_pages(app, loaded, is_studio=studio)

    def close() -> None:
        executor.shutdown(wait=True, cancel_futures=True)
        if calculator is not None:
            calculator.close()

    return Assembled(app, service, close)


def facts_of(loaded: LoadedRun, model: GPT) -> dict[str, object]:
    """What the list of models says about the run beyond OpenAI's fields."""
    return {
        "recipe": loaded.record.recipe,
        "step": loaded.step,
        "context": model.config.max_seq_len,
        "vocab_size": loaded.tokenizer.vocab_size,
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
    }


def tool_maker(tokenizer: Tokenizer, run: Callable[[str], str], executor: Executor | None = None) -> Callable[[], Tool]:
    """What makes each row its own watcher of calls; all of them use one calculator, in the threads of ``executor``."""
    return lambda: PythonTool(tokenizer, run, executor=executor)


def try_out(engine: BatchEngine, tokenizer: Tokenizer) -> None:
    """Let the model write one token. Raises ConfigError where its weights are damaged."""
    engine.submit(Request((tokenizer.bos_id,), 1, temperature=0.0))
    while engine.num_active or engine.num_waiting:
        engine.step()


def add_pages(app: FastAPI, loaded: LoadedRun, *, is_studio: bool) -> None:
    """The studio's pages and their routes; without it only those that show how a text becomes tokens."""
    from firstlight.serve.studio import add_studio
    from firstlight.serve.studio_tokens import add_tokens

    if is_studio:
        add_studio(app, runs_dir=loaded.path.parent, run_name=str(loaded.path))
    else:
        add_tokens(app, run_dir=loaded.path)
