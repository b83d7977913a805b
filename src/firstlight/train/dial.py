"""The rules of the dial: what follows from depth, width and the length of a run when nothing else is said.

Pure arithmetic: numbers in, numbers out. `firstlight.train.plan` puts them together and says the reasons; `lab/LOG.md` has
the experiments behind those that are ours. They are meant for about 1 M to 1 B parameters.
"""

from __future__ import annotations

import math

from firstlight.model import count
from firstlight.model.config import GPTConfig

# Hoffmann et al. 2022 (arXiv 2203.15556) found about 20 tokens a parameter; with Muon, and counting the matrices and the head
# only, nanochat's scaling runs put it near 10.5 to 12 (its dev/LOG.md, 2026-01-27 and 2026-03-24).
TOKENS_PER_PARAM = 12.0

# See `depth_for`.
DEPTH_PARAMS = 1.4e6
DEPTH_FLOPS = 2.8e13

# The seed's rates, tuned at width 768 and a batch of 2**19 tokens.
REFERENCE_WIDTH = 768
EMBEDDING_LR = 0.2
UNEMBEDDING_LR = 0.004
MATRIX_LR = 0.02
SCALAR_LR = 0.5

# A depth-4 run of a few minutes ends lower with 4,096 tokens a step than with 2,048 (lab/LOG.md, 2026-11-25), and 16,384 were
# far too many for it; so this is the smallest batch as well.
REFERENCE_BATCH_TOKENS = 4096
REFERENCE_HORIZON_TOKENS = 6.5e6
BATCH_EXPONENT = 0.7


def vocab_size_for(depth: int) -> int:
    """Power of two nearest to 640 * depth^1.5, within 1,024 and 32,768.

    At depths 3 and 4, for the same text, 4,096 ids gave lower scores than 2,048 (lab/LOG.md); 32,768 is usual at the depths
    of GPT-2. The head then takes 40 % of the matmul FLOPs at depth 2, a quarter at depth 4 and a fifth at depth 12.

    >>> [vocab_size_for(d) for d in (1, 2, 3, 4, 6, 8, 12, 20)]
    [1024, 2048, 4096, 4096, 8192, 16384, 32768, 32768]
    """
    return min(32768, max(1024, 2 ** round(math.log2(640 * depth**1.5))))


def depth_for(total_flops: float) -> int:
    """Depth that is expected to end with the lowest score when so many FLOPs are spent on it.

    Matrices and head (`count.num_scaling_params`) near ``1.4 M * (C / 2.8e13)^0.5``: the best of depths 2, 3 and 4 at
    C = 2.8e13, a minute or two on two CPU cores (lab/LOG.md), and the exponent of Hoffmann et al. 2022 (arXiv 2203.15556).
    That is 2 tokens a parameter. Long runs want more of them (`TOKENS_PER_PARAM`), so this is for runs of minutes.

    >>> [depth_for(c) for c in (1e12, 2.8e13, 1.4e14, 1e15)]
    [1, 3, 4, 5]
    """
    best = DEPTH_PARAMS * (total_flops / DEPTH_FLOPS) ** 0.5

    def distance(depth: int) -> float:
        config = GPTConfig.from_depth(depth, vocab_size=vocab_size_for(depth), max_seq_len=seq_len_for(depth))
        return abs(math.log(count.num_scaling_params(config) / best))

    return min(range(1, 33), key=distance)


def seq_len_for(depth: int) -> int:
    """Row length T. Attention costs T / (12 * width) of a block's matmuls (causal), so short rows go with narrow models.

    >>> [seq_len_for(d) for d in (2, 4, 6, 8, 12, 20)]
    [256, 256, 512, 1024, 2048, 2048]
    """
    for limit, seq_len in ((4, 256), (7, 512), (11, 1024)):
        if depth <= limit:
            return seq_len
    return 2048


def batch_tokens_for(horizon_tokens: float) -> int:
    """Tokens a step: a power of two near 4096 * (D / 6.5 M)^0.7 for a run of D tokens, at least 4096.

    The exponent joins our small-scale optimum to the batch of 2^19 that is usual at several billion tokens; theory and fits
    give 0.3 to 0.8 ("Power Lines", arXiv 2505.13738, has 0.38 at larger scale), so treat it as a default, not as a law.

    >>> [batch_tokens_for(d) for d in (2e6, 6.5e6, 50e6, 1.3e9, 5e9)]
    [4096, 4096, 16384, 131072, 524288]
    """
    ideal = REFERENCE_BATCH_TOKENS * (horizon_tokens / REFERENCE_HORIZON_TOKENS) ** BATCH_EXPONENT
    return max(REFERENCE_BATCH_TOKENS, 2 ** round(math.log2(ideal)))
