"""What the published CORE bundle is made of: its 22 tasks, their settings and baselines, and the hashes of its files.

Tasks and baselines are those of DCLM (Li et al. 2024, arXiv 2406.11794) as nanochat's ``eval_bundle.zip`` has them. A score
on a bundle that differs in any of this is a number of its own, not one to hold against published ones.
"""

from __future__ import annotations

from typing import NamedTuple

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"


class Original(NamedTuple):
    """Settings of a task. baseline_percent, baseline_v2_percent: what guessing gets, in DCLM's first and corrected table."""

    dataset_uri: str
    kind: str
    num_fewshot: int
    delimiter: str
    baseline_percent: float
    baseline_v2_percent: float


TASKS = {
    "hellaswag_zeroshot": Original("language_understanding/hellaswag.jsonl", "multiple_choice", 0, " ", 25.0, 25.0),
    "jeopardy": Original("world_knowledge/jeopardy_all.jsonl", "language_modeling", 10, "\nAnswer: ", 0.0, 0.0),
    "bigbench_qa_wikidata": Original(
        "world_knowledge/bigbench_qa_wikidata.jsonl", "language_modeling", 10, " ", 0.0, 0.0
    ),
    "arc_easy": Original("world_knowledge/arc_easy.jsonl", "multiple_choice", 10, "\nAnswer: ", 25.0, 25.0),
    "arc_challenge": Original("world_knowledge/arc_challenge.jsonl", "multiple_choice", 10, "\nAnswer: ", 25.0, 25.0),
    "copa": Original("commonsense_reasoning/copa.jsonl", "multiple_choice", 0, " ", 50.0, 50.0),
    "commonsense_qa": Original("commonsense_reasoning/commonsense_qa.jsonl", "multiple_choice", 10, " ", 20.0, 40.3),
    "piqa": Original("commonsense_reasoning/piqa.jsonl", "multiple_choice", 10, "\nAnswer: ", 50.0, 50.0),
    "openbook_qa": Original("commonsense_reasoning/openbook_qa.jsonl", "multiple_choice", 0, " ", 25.0, 25.0),
    "lambada_openai": Original("language_understanding/lambada_openai.jsonl", "language_modeling", 0, " ", 0.0, 0.0),
    "hellaswag": Original("language_understanding/hellaswag.jsonl", "multiple_choice", 10, " ", 25.0, 25.0),
    "winograd": Original("language_understanding/winograd_wsc.jsonl", "schema", 0, " ", 50.0, 50.0),
    "winogrande": Original("language_understanding/winogrande.jsonl", "schema", 0, " ", 50.0, 50.0),
    "bigbench_dyck_languages": Original(
        "symbolic_problem_solving/bigbench_dyck_languages.jsonl", "language_modeling", 10, " ", 0.0, 0.0
    ),
    "agi_eval_lsat_ar": Original(
        "symbolic_problem_solving/agi_eval_lsat_ar.jsonl", "multiple_choice", 3, " ", 20.0, 25.0
    ),
    "bigbench_cs_algorithms": Original(
        "symbolic_problem_solving/bigbench_cs_algorithms.jsonl", "language_modeling", 10, " ", 0.0, 0.0
    ),
    "bigbench_operators": Original(
        "symbolic_problem_solving/bigbench_operators.jsonl", "language_modeling", 10, " ", 0.0, 0.0
    ),
    "bigbench_repeat_copy_logic": Original(
        "symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl", "language_modeling", 10, " ", 0.0, 0.0
    ),
    "squad": Original("reading_comprehension/squad.jsonl", "language_modeling", 10, " ", 0.0, 0.0),
    "coqa": Original("reading_comprehension/coqa.jsonl", "language_modeling", 0, " ", 0.0, 0.0),
    "boolq": Original("reading_comprehension/boolq.jsonl", "multiple_choice", 10, "\nAnswer: ", 62.0, 62.0),
    "bigbench_language_identification": Original(
        "language_understanding/bigbench_language_identification.jsonl", "multiple_choice", 10, " ", 9.1, 25.0
    ),
}

HASHES = {
    "commonsense_reasoning/commonsense_qa.jsonl": "sha256:2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a",
    "commonsense_reasoning/copa.jsonl": "sha256:595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846",
    "commonsense_reasoning/openbook_qa.jsonl": "sha256:adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09",
    "commonsense_reasoning/piqa.jsonl": "sha256:d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0",
    "language_understanding/bigbench_language_identification.jsonl": "sha256:80c98d8e7ab8213513d1643886229c05c40a6837353b07c19ac7bd860668954e",
    "language_understanding/hellaswag.jsonl": "git-sha1:448321079fdc140bd8566b16b24eda9ceacd3501",
    "language_understanding/lambada_openai.jsonl": "sha256:411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc",
    "language_understanding/winograd_wsc.jsonl": "sha256:746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e",
    "language_understanding/winogrande.jsonl": "sha256:ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7",
    "reading_comprehension/boolq.jsonl": "sha256:454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8",
    "reading_comprehension/coqa.jsonl": "git-sha1:028bd4e51326cc43f8394987ae47fbb271aeba9d",
    "reading_comprehension/squad.jsonl": "git-sha1:dc733b8f58ec666c53fd946198c434b819a00680",
    "symbolic_problem_solving/agi_eval_lsat_ar.jsonl": "sha256:9ffd73480b51746c11627e56239f8b87035eb255cb92c3a58fd64e2e4b65fb56",
    "symbolic_problem_solving/bigbench_cs_algorithms.jsonl": "sha256:8485683a8c7e7e6c9fc6ca3cc81140fd85edb27f34406a6736d1539cf7ebcb3a",
    "symbolic_problem_solving/bigbench_dyck_languages.jsonl": "sha256:106ba9ac7507c7ab385c5e59c49cd57aa83025abf080d9b2a2661c0d6c6dbcc5",
    "symbolic_problem_solving/bigbench_operators.jsonl": "sha256:41e2964ad619c49edd97c22b2c50f922a0241255d906a754bf81a20f4f66b85f",
    "symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl": "sha256:8febd2c0080a15680cd17f92bfa30d87abcfac021e646e55d0b8ad69f0cfa767",
    "world_knowledge/arc_challenge.jsonl": "sha256:1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636",
    "world_knowledge/arc_easy.jsonl": "sha256:d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5",
    "world_knowledge/bigbench_qa_wikidata.jsonl": "sha256:bb0d22727cb25beffb022c8e8c0c3e1159c8b3c7bd7284603c0d6491f8616265",
    "world_knowledge/jeopardy_all.jsonl": "sha256:187e7f270a440c63d6cf11a57459fdc7e0bce889338225e42cc88e24ee13d52e",
}
"""Of the data files, by their path under ``eval_data``. Of three only git's name of the blob is known."""
