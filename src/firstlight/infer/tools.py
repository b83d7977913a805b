"""The Python tool: what a model writes between ``<|python_start|>`` and ``<|python_end|>`` is run, and the output is put
into its text.

    model: <|python_start|> 6*7 <|python_end|>    forced: <|output_start|> 42 <|output_end|>    model: goes on

A call that is opened again before it is closed begins anew; one that is closed without having been opened does nothing; one
that is never closed is not run. Code that is too long is not run either, and the output says so. Ids that the tool forces
count as new tokens; where the answer's length or the context ends in the middle of an output, the rest is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future

from firstlight.tokens.bpe import Tokenizer

MAX_CODE_TOKENS = 512
MAX_OUTPUT_TOKENS = 128
CUT_MARK = " ... (cut)"


class PythonTool:
    """The tool of one answer (`firstlight.infer.batch.Tool`). Several may share one ``run``.

    run: code to text; it never raises for what the code does (`Calculator.run`).
    executor: runs the code, so that other rows go on meanwhile; without one the caller waits.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        run: Callable[[str], str],
        *,
        max_code_tokens: int = MAX_CODE_TOKENS,
        max_output_tokens: int = MAX_OUTPUT_TOKENS,
        executor: Executor | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._run = run
        self._max_code_tokens = max_code_tokens
        self._max_output_tokens = max_output_tokens
        self._executor = executor
        self._special = frozenset(tokenizer.special_ids.values())
        names = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
        self._python_start, self._python_end, self._output_start, self._output_end = (
            tokenizer.special_ids[name] for name in names
        )
        self._code: list[int] | None = None

    def after(self, token_id: int) -> list[int] | Future[list[int]]:
        """Take the id that the model chose; where it closes a call, the ids of the output with its special tokens."""
        if token_id == self._python_start:
            self._code = []
        elif token_id != self._python_end:
            if self._code is not None and token_id not in self._special and len(self._code) <= self._max_code_tokens:
                self._code.append(token_id)
        elif self._code is not None:
            code, self._code = self._code, None
            return self._result(code) if self._executor is None else self._executor.submit(self._result, code)
        return []

    def _result(self, code: list[int]) -> list[int]:
        if len(code) > self._max_code_tokens:
            output = f"SyntaxError: the code is longer than {self._max_code_tokens} tokens"
        else:
            output = self._run(self._tokenizer.decode(code))
        return [self._output_start, *self._output_ids(output), self._output_end]

    def _output_ids(self, output: str) -> list[int]:
        # A lone surrogate has no bytes; it becomes a question mark.
        ids = self._tokenizer.encode(output.encode("utf-8", "replace").decode("utf-8"))
        if len(ids) <= self._max_output_tokens:
            return ids
        mark = self._tokenizer.encode(CUT_MARK)
        return ids[: max(0, self._max_output_tokens - len(mark))] + mark
