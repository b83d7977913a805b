"""Are the standard errors of `firstlight runs compare` right? Against bootstraps over documents and over seeds.

    python benchmarks/compare_bootstrap.py base-s1,base-s2,base-s3 slow-s1,slow-s2,slow-s3

Each word is one setting. Three bootstraps, drawn from the scores by document alone:

- documents: all documents drawn anew, with replacement; the seeds stay.
- seeds: K - 1 of each setting's K seeds drawn, since K of them would be too narrow by sqrt((K - 1) / K) (Rao and Wu 1988,
  J. Am. Stat. Assoc. 83:231); the documents stay.
- both, less what both hold: drawing both at once counts the part of a single seed on a single document too often, so the
  variance is documents + seeds - cells, where in cells each document draws its seeds by itself.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from firstlight.eval.paired import Difference, paired_difference, verdict
from firstlight.recipes.compare_groups import group_runs
from firstlight.recipes.compare_scores import final_scores
from firstlight.runtime import environment
from firstlight.runtime.console import Console


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs=2, help="runs of one setting, joined by commas")
    parser.add_argument("--runs-dir", type=Path, default=None)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    groups, _ = group_runs(arguments.settings, arguments.runs_dir or environment.runs_dir(), group=False)
    scores = final_scores(groups, val_hash=None)
    lacking = [run.name for one in groups for run in one.runs if scores[str(run.path)].scores is None]
    if lacking:
        parser.error(f"no scores by document of {', '.join(lacking)}: firstlight eval bpb {lacking[0]}")
    sides = [[scores[str(run.path)].scores for run in group.runs] for group in groups]
    nats = [np.stack([one.nats for one in side if one is not None]) for side in sides]
    size_N = next(one.num_bytes for one in sides[0] if one is not None)
    found = paired_difference(nats[0], nats[1], size_N)
    console.say(verdict(found, groups[0].name, groups[1].name))
    rows = [
        [name, f"{ours:.6f}", f"{drawn:.6f}", f"{ours / drawn - 1:+.1%}"]
        for name, ours, drawn in bootstraps(nats, size_N, found, draws=arguments.draws, seed=arguments.seed)
    ]
    console.table(["standard error of", "runs compare", "bootstrap", "apart"], rows)


def bootstraps(
    nats: list[np.ndarray], size_N: np.ndarray, found: Difference, *, draws: int, seed: int
) -> list[tuple[str, float, float]]:
    """(what, ours, the bootstrap's) for the parts that there are; bits per byte."""
    rng = np.random.default_rng(seed)
    bits = [side / math.log(2) for side in nats]
    n = len(size_N)

    def difference(a_N: np.ndarray, b_N: np.ndarray, s_N: np.ndarray) -> float:
        return float((a_N - b_N).sum() / s_N.sum())

    def some_seeds(side: np.ndarray) -> np.ndarray:
        return side[rng.integers(0, len(side), len(side) - 1)].mean(axis=0)

    def seeds_by_document(side: np.ndarray) -> np.ndarray:
        return side[rng.integers(0, len(side), (len(side) - 1, n)), np.arange(n)].mean(axis=0)

    means = [side.mean(axis=0) for side in bits]
    documents = []
    for _ in range(draws):
        i = rng.integers(0, n, n)
        documents.append(difference(means[0][i], means[1][i], size_N[i]))
    results = [("documents", found.documents_stderr, float(np.std(documents)))]
    if min(len(side) for side in bits) < 2 or found.seeds_stderr is None:
        return results
    seeds = [difference(some_seeds(bits[0]), some_seeds(bits[1]), size_N) for _ in range(draws)]
    cells = [difference(seeds_by_document(bits[0]), seeds_by_document(bits[1]), size_N) for _ in range(draws)]
    variances = [float(np.var(drawn)) for drawn in (documents, seeds, cells)]
    both = max(variances[0] + variances[1] - variances[2], variances[0], variances[1])
    results.append(("seeds", found.seeds_stderr, math.sqrt(variances[1])))
    results.append(("both", found.stderr, math.sqrt(both)))
    return results


if __name__ == "__main__":
    main()
