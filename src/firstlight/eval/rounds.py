"""How ranks that evaluate different parts go round together, so that none waits in a collective for one that has left."""

from __future__ import annotations

from collections.abc import Callable

from firstlight.errors import DataError
from firstlight.runtime.context import Runtime
from firstlight.train.guard import Dropped


class Rounds:
    """Ranks agree before each batch that all go on.

    Nobody knows how many batches the others have. So a rank that has done all of its own keeps answering, until all have:
    every rank takes part in the same number of agreements, which is what makes it safe to end in the middle. One costs some
    0.4 ms between two processes of one machine, in CPU memory, while the device works on.

    is_cut: the time was over on some rank before all were done; the same answer on all ranks.
    """

    DONE, WORKING, CUT, STOP, FAILED = range(5)

    def __init__(
        self,
        runtime: Runtime,
        should_stop: Callable[[], bool] | None,
        idle: Callable[[], None],
        *,
        is_over: Callable[[], bool] | None = None,
    ) -> None:
        """should_stop: where it is true on any rank, all leave with Dropped. idle: called in place of each batch that others
        still have. is_over: where it is true on a rank that still has a batch, nobody begins another one."""
        self._runtime, self._should_stop, self._idle, self._time_is_over = runtime, should_stop, idle, is_over
        self._is_over = False
        self.is_cut = False

    def before_batch(self) -> bool:
        """Whether to go on with a batch; where not, `is_cut` is true. Raises Dropped, or DataError after another's error."""
        over = self._time_is_over is not None and self._time_is_over()
        return self._agree(self.CUT if over else self.WORKING) != self.CUT

    def _agree(self, mine: int) -> int:
        if mine != self.FAILED and self._should_stop is not None and self._should_stop():
            mine = self.STOP
        # Whatever happens in or after the last agreement, another one would meet nobody.
        self._is_over = True
        found = int(self._runtime.control.largest(float(mine)))
        if found == self.STOP:
            raise Dropped
        if found == self.FAILED and mine != self.FAILED:
            raise DataError("the evaluation failed on another process", hint="its message says why")
        self._is_over = found == self.FAILED
        self.is_cut = self.is_cut or found == self.CUT
        return found

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            try:
                while (found := self._agree(self.DONE)) != self.DONE:
                    if found == self.WORKING:
                        self._idle()
            except Exception:
                if not self._is_over:
                    self._agree(self.FAILED)
                raise
        elif isinstance(error, Exception) and not self._is_over:
            self._agree(self.FAILED)
