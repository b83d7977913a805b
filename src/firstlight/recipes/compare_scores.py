"""The final scores of runs that are compared: which documents, by which rule, and whether two can be set against each other.

Two scores can be compared where the documents (val_hash) and the window (max_seq_len) are the same; the tokenizers may differ,
because bytes belong to the text. With the scores by document of both, they are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from firstlight.errors import DataError
from firstlight.eval.document_scores import DocumentScores, bits_per_byte, find_document_scores, read_document_scores
from firstlight.eval.paired import Difference, paired_difference, unpaired_difference
from firstlight.recipes.compare_groups import Group, Run


@dataclass(frozen=True)
class RunScore:
    """The final score of one run. scores: by document, None where there are none of the final step on these documents.

    val_hash, max_seq_len: which documents and windows. problem: why there is no score (bpb is then None).
    cut_from: how many documents were scored, where only the first of them are taken because another run has no more.
    """

    run: Run
    bpb: float | None
    stderr: float | None
    val_hash: str | None
    max_seq_len: int | None
    num_documents: int | None
    scores: DocumentScores | None
    problem: str | None = None
    cut_from: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A group against the baseline: a difference, or why none can be given; and what would help."""

    baseline: Group
    other: Group
    difference: Difference | None
    refused: str | None = None
    advice: str | None = None


def final_scores(groups: Sequence[Group], *, val_hash: str | None) -> dict[str, RunScore]:
    """The final score of each run by its folder. val_hash: the beginning of the wanted set's hash; where None, each run's
    own.

    Raises DataError for a damaged file of scores.
    """
    found = {str(run.path): _final(run, val_hash) for group in groups for run in group.runs}
    fewest: dict[tuple[str | None, int | None], int] = {}
    for one in found.values():
        if one.num_documents is not None:
            key = (one.val_hash, one.max_seq_len)
            fewest[key] = min(one.num_documents, fewest.get(key, one.num_documents))
    return {path: _first(one, fewest.get((one.val_hash, one.max_seq_len))) for path, one in found.items()}


def _first(score: RunScore, num_documents: int | None) -> RunScore:
    """The score on the first documents. A limit on an evaluation takes the first ones in their defined order, so those of
    two runs are the same.
    """
    whole = score.scores
    if whole is None or num_documents is None or len(whole) <= num_documents:
        return score
    first = slice(0, num_documents)
    kept = replace(
        whole, nats=whole.nats[first], num_bytes=whole.num_bytes[first], num_tokens=whole.num_tokens[first],
        slices=whole.slices[first],
    )  # fmt: skip
    bpb, stderr = bits_per_byte(kept.nats, kept.num_bytes)
    return replace(score, bpb=bpb, stderr=stderr, num_documents=num_documents, scores=kept, cut_from=len(whole))


def compare_groups(baseline: Group, other: Group, scores: dict[str, RunScore]) -> Verdict:
    """The difference of two groups: in pairs where every run has its documents' scores, else from the scores alone."""
    found_a, found_b = ([scores[str(run.path)] for run in group.runs] for group in (baseline, other))
    every = [*found_a, *found_b]
    without = [one for one in every if one.bpb is None]
    if without:
        return Verdict(
            baseline, other, None, refused="; ".join(f"{one.run.name}: {one.problem}" for one in without),
            advice=_advice(without[0].run),
        )  # fmt: skip
    refusal = _not_comparable(every)
    if refusal:
        return Verdict(baseline, other, None, refused=refusal[0], advice=refusal[1])
    lacking = [one.run.name for one in every if one.scores is None]
    by_document = [[one.scores for one in side if one.scores is not None] for side in (found_a, found_b)]
    if not lacking:
        first = by_document[0][0]
        other_bytes = [
            one for side in by_document for one in side if not np.array_equal(one.num_bytes, first.num_bytes)
        ]
        if other_bytes:
            return Verdict(
                baseline, other, None,
                refused="the documents' bytes differ although their hash is the same, so some were left out or cut",
                advice=f"firstlight eval bpb {other_bytes[0].header.get('run', other.runs[0].name)}",
            )  # fmt: skip
        try:
            nats = [np.stack([one.nats for one in side]) for side in by_document]
            return Verdict(baseline, other, paired_difference(nats[0], nats[1], first.num_bytes))
        except DataError as error:
            return Verdict(baseline, other, None, refused=error.what, advice=error.hint)
    errors = [[one.stderr for one in side if one.stderr is not None] for side in (found_a, found_b)]
    if len(errors[0]) < len(found_a) or len(errors[1]) < len(found_b):
        return Verdict(
            baseline,
            other,
            None,
            refused="a score without a standard error",
            advice=f"firstlight eval bpb {lacking[0]}",
        )
    difference = unpaired_difference(
        [one.bpb for one in found_a if one.bpb is not None], [one.bpb for one in found_b if one.bpb is not None],
        errors[0], errors[1], num_documents=found_a[0].num_documents,
    )  # fmt: skip
    names = ", ".join(lacking)
    return Verdict(
        baseline, other, difference,
        advice=f"not in pairs, because there are no scores by document of {names}; to have them: "
        + " && ".join(f"firstlight eval bpb {name}" for name in lacking[:3]) + (" ..." if len(lacking) > 3 else ""),
    )  # fmt: skip


def group_score(group: Group, scores: dict[str, RunScore]) -> tuple[float | None, float | None, float | None]:
    """(mean bpb over seeds, its standard error over documents, standard deviation between seeds)."""
    found = [scores[str(run.path)] for run in group.runs]
    bpb = [one.bpb for one in found if one.bpb is not None]
    if len(bpb) < len(found):
        return None, None, None
    spread = float(np.std(bpb, ddof=1)) if len(bpb) > 1 else None
    by_document = [one.scores for one in found if one.scores is not None]
    if len(by_document) == len(found) and len({len(one) for one in by_document}) == 1:
        mean = np.mean([one.nats for one in by_document], axis=0)
        return float(np.mean(bpb)), bits_per_byte(mean, by_document[0].num_bytes)[1], spread
    errors = [one.stderr for one in found if one.stderr is not None]
    return float(np.mean(bpb)), float(np.mean(errors)) if errors else None, spread


def _final(run: Run, val_hash: str | None) -> RunScore:
    record = run.record
    final: dict[str, Any] = record.final
    step = final.get("steps")
    own_hash = final.get("val_hash") or record.val_hash
    wanted = val_hash or (own_hash or "")
    chosen = None
    found = [read_document_scores(path) for path in find_document_scores(run.path)]
    if step is None and found:
        # It was not trained to its end: its newest score is what it came to.
        step = found[-1].header.get("step")
    for scores in found:
        is_wanted = scores.header.get("val_hash", "").startswith(wanted) and scores.header.get("step") == step
        # The whole set before a part of it.
        if is_wanted and (chosen is None or len(scores) >= len(chosen)):
            chosen = scores
    if chosen is not None:
        bpb, stderr = bits_per_byte(chosen.nats, chosen.num_bytes)
        return RunScore(
            run, bpb, stderr, chosen.header["val_hash"], chosen.header.get("max_seq_len"), len(chosen), chosen
        )
    window = record.config.get("model", {}).get("max_seq_len")
    if final.get("val_bpb") is None:
        why = (
            "it has no final score"
            if record.status == "done"
            else f"it is {record.shown_status()} and has no final score"
        )
        return RunScore(run, None, None, own_hash, window, None, None, problem=why)
    if not (own_hash or "").startswith(wanted):
        why = f"it was not scored on the documents {wanted[:12]} at its last step"
        return RunScore(run, None, None, own_hash, window, None, None, problem=why)
    return RunScore(
        run, final["val_bpb"], final.get("val_bpb_stderr"), own_hash, window, final.get("num_documents"), None
    )


def _advice(run: Run) -> str:
    return f"wait for {run.name}" if run.record.shown_status() == "running" else f"firstlight eval bpb {run.name}"


def _not_comparable(every: Sequence[RunScore]) -> tuple[str, str] | None:
    """(why the scores cannot be set against each other, the command that would make it possible)."""
    first = every[0]
    for one in every[1:]:
        a, b = first.run, one.run
        if first.val_hash is None or one.val_hash != first.val_hash:
            settings = a.record.config.get("settings", {})
            data = settings.get("data", "DATA")
            val = a.record.config.get("val", settings.get("val")) or "last"
            return (
                f"{a.name} and {b.name} were scored on different documents"
                f" ({(first.val_hash or 'not known')[:12]} and {(one.val_hash or 'not known')[:12]})",
                f"firstlight eval bpb {b.name} --data {data} --val {val} --max-seq-len {first.max_seq_len}"
                f" and then --val-hash {(first.val_hash or '')[:12]} here",
            )
        if one.max_seq_len != first.max_seq_len:
            shorter, longer = (first, one) if (first.max_seq_len or 0) < (one.max_seq_len or 0) else (one, first)
            return (
                f"{a.name} was scored in windows of {first.max_seq_len} tokens and {b.name} in windows of"
                f" {one.max_seq_len}: a longer window helps by itself",
                f"firstlight eval bpb {longer.run.name} --max-seq-len {shorter.max_seq_len}",
            )
        if one.num_documents != first.num_documents:
            # With the scores by document of both, the first documents of each would have been taken.
            lacking = [each.run.name for each in (first, one) if each.scores is None]
            return (
                f"{a.name} was scored on {first.num_documents} documents of the set and {b.name} on {one.num_documents}",
                " && ".join(f"firstlight eval bpb {name}" for name in lacking),
            )
    return None
