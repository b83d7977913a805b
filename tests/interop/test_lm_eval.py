"""Claims of interop/lm_eval.py.

The oracles: lm-evaluation-harness's own Hugging Face model (`HFLM`) on its own task definitions, for the logic of scoring;
the model's plain log-softmax, one text at a time, for our runs in the harness; the harness's own window rule.
Tests that need the harness are skipped where it is not installed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_hf import tiny_gpt2, tiny_tokenizer
from words import WORDS

from firstlight.errors import ConfigError, DataError
from firstlight.eval.core.engine import GPTScorer
from firstlight.eval.core.scorer import Request
from firstlight.infer.engine import generate
from firstlight.interop import lm_eval as ours
from firstlight.interop.hf_model import HFScorer
from firstlight.interop.lm_eval import Harness, Sampling, windows
from firstlight.model.config import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.tokens.bpe import Tokenizer

CONTEXT = 48
NUM_EXAMPLES = 120


@pytest.fixture(scope="module")
def harness() -> Harness:
    tokenizer = Tokenizer([bytes([b]) for b in range(256)] + [b" t", b"he", b" the", b"and", b"th"])
    config = GPTConfig(tokenizer.vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=16, max_seq_len=CONTEXT)
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():  # as initialised, all ids are equally likely
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    model.requires_grad_(False).eval()
    return Harness(model, tokenizer, GPTScorer(model), report=lambda _: None, facts={"run": "tiny"})


def told(harness: Harness) -> tuple[Harness, list[str]]:
    said: list[str] = []
    return Harness(harness.model, harness.tokenizer, harness.scorer, report=said.append), said


@torch.no_grad()
def plain(harness: Harness, ids: list[int], start: int) -> tuple[float, bool]:
    """Log-probability of ids[start:] from the model's own logits, and whether each is the likeliest."""
    logprobs_TV = harness.model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    each = [float(logprobs_TV[t - 1, ids[t]]) for t in range(start, len(ids))]
    return sum(each), all(int(logprobs_TV[t - 1].argmax()) == ids[t] for t in range(start, len(ids)))


def test_windows_score_each_id_once_with_as_much_before_it_as_fits() -> None:
    draw = random.Random(0)
    for _ in range(300):
        longest = draw.randint(2, 9)
        num_ids = draw.randint(2, 30)
        start = draw.randint(1, num_ids - 1)
        found = list(windows(num_ids, start, longest))
        assert [t for _, begin, stop in found for t in range(begin, stop)] == list(range(start, num_ids))
        assert all(0 <= first < begin and stop - first <= longest for first, begin, stop in found)
        # Nothing is left out that would have fitted.
        assert all(first == 0 or stop - first == longest for first, _, stop in found)


@pytest.mark.parametrize("num_ids", [1, 2, 5, 6, 7, 11, 23, 24, 25])
@pytest.mark.parametrize("context", [2, 6])
def test_windows_are_the_harness_own(num_ids: int, context: int) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="compares with lm_eval")
    ids = list(range(100, 100 + num_ids))
    theirs = [
        utils.make_disjoint_window(pair)
        for pair in utils.get_rolling_token_windows(token_list=ids, prefix_token=0, max_seq_len=context, context_len=1)
    ]
    whole = [0, *ids]
    mine = [(whole[a:b], whole[b:c]) for a, b, c in windows(len(whole), 1, context + 1)]
    assert mine == theirs


def test_continuations_are_scored_as_the_plain_model_does(harness: Harness) -> None:
    encode = harness.tokenizer.encode
    pairs = [
        (harness.encode(context), encode(continuation))
        for context in ("the water and the", "a")
        for continuation in (" land", " the", " the people of the")
    ]
    text = harness.encode("say the")
    for _ in range(3):
        logits_1TV = harness.model(torch.tensor([text]))
        text.append(int(logits_1TV[0, -1].argmax()))
    pairs += [(text[:-3], text[-3:]), ([], encode("no context"))]
    seen: list[int] = []
    found = harness.continuations(pairs, progress=seen.append)
    for (context, continuation), (logprob, is_greedy) in zip(pairs, found, strict=True):
        context = context or [harness.tokenizer.bos_id]
        expected, expected_greedy = plain(harness, [*context, *continuation], len(context))
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert is_greedy == expected_greedy
    assert found[-2][1]
    assert not found[0][1]
    assert sum(seen) == len(pairs)


def test_a_context_that_is_too_long_loses_its_front_and_it_is_said(harness: Harness) -> None:
    harness, said = told(harness)
    draw = random.Random(1)
    context = [draw.randrange(256) for _ in range(70)]
    long = [draw.randrange(256) for _ in range(60)]
    found = harness.continuations(
        [(context, [1, 2, 3]), (context[:45], [1, 2, 3]), (context[:46], [1, 2, 3]), ([5], long)]
    )
    # One more than the context fits, since the last id is no input.
    assert found[0][0] == pytest.approx(plain(harness, [*context[-46:], 1, 2, 3], 46)[0], abs=1e-4)
    assert found[2][0] == pytest.approx(plain(harness, [*context[:46], 1, 2, 3], 46)[0], abs=1e-4)
    # 48 of the long continuation behind its context, and the others with the 49 ids that end with them.
    parts = plain(harness, [5, *long[:48]], 1)[0] + plain(harness, [5, *long][-49:], 49 - 12)[0]
    assert found[3][0] == pytest.approx(parts, abs=1e-4)
    assert said == ["2 of 4 contexts are longer than the context of 48 tokens and lost their front"]


def test_whole_texts_are_scored_behind_bos_in_windows(harness: Harness) -> None:
    harness, said = told(harness)
    texts = ["the water", "", " ".join(WORDS[:40])]
    found = harness.whole_texts(texts)
    assert found[0] == pytest.approx(plain(harness, harness.encode(texts[0]), 1)[0], abs=1e-4)
    assert found[1] == 0
    ids = harness.encode(texts[2])
    total, at = 0.0, 1
    while at < len(ids):
        stop = min(at + CONTEXT, len(ids))
        first = max(0, stop - CONTEXT - 1)
        total += plain(harness, ids[first:stop], at - first)[0]
        at = stop
    assert found[2] == pytest.approx(total, abs=1e-3)
    assert said == ["1 of 3 texts are longer than the context of 48 tokens and were scored in windows"]


def test_a_continuation_without_an_id_is_an_error_that_names_the_place(harness: Harness) -> None:
    with pytest.raises(DataError, match="behind 'so th'"):
        harness.continuations([(harness.encode("so th", add_bos=False), [])])


def test_greedy_answers_are_those_of_the_engine_up_to_the_first_stop(harness: Harness) -> None:
    prompt = harness.encode("the water")
    ids = [step[0] for step in generate(harness.model, prompt, max_new_tokens=12, temperature=0)]
    specials = set(harness.tokenizer.special_ids.values())
    ids = ids[: next((i for i, each in enumerate(ids) if each in specials), len(ids))]
    whole = harness.tokenizer.decode(ids)
    assert len(whole) > 4
    greedy = {"do_sample": False, "max_gen_toks": 12}
    assert harness.answers([("the water", greedy)]) == [whole]
    stop = whole[3:5]
    assert harness.answers([("the water", greedy | {"until": ["never seen", stop]})]) == [whole[: whole.index(stop)]]
    warm = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12}
    assert harness.answers([("the water", warm)]) == harness.answers([("the water", warm)])
    assert harness.answers([("the water", warm)] * 2)[0] != harness.answers([("the water", warm)] * 2)[1]


def test_what_answers_lost_is_counted_and_said(harness: Harness) -> None:
    harness, said = told(harness)
    harness.answers([("the " * 60, {"max_gen_toks": 8, "num_beams": 4}), ("the", {"max_gen_toks": 200, "until": "\n"})])
    assert said[:2] == [
        "generation options without a meaning here were left out: num_beams",
        "1 of 2 contexts lost their front to leave room for the answer",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (256, 0.0, None, None, ())),
        ({"max_new_tokens": 5, "max_gen_toks": 7, "until": "\n"}, (7, 0.0, None, None, ("\n",))),
        ({"temperature": 0.7, "until": ["a", ""]}, (256, 0.7, None, None, ("a",))),
        ({"do_sample": False, "temperature": 0.7}, (256, 0.0, None, None, ())),
        ({"do_sample": True, "top_k": 3, "top_p": 0.5}, (256, 1.0, 3, 0.5, ())),
    ],
)
def test_generation_options_mean_what_they_mean_to_the_harness(given: dict, expected: tuple) -> None:
    sampling, unknown = Sampling.of(given)
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_k, sampling.top_p, sampling.stops) == expected
    assert unknown == []
    with pytest.raises(DataError, match="stop texts"):
        Sampling.of({"until": [3]})


def test_without_the_harness_the_extra_is_named(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError) as error:
        ours.harness_module()
    assert error.value.hint == 'pip install "firstlight[eval]"'


# ---- with the harness


@pytest.fixture(scope="module")
def lm(harness: Harness):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (the extra eval)")
    return ours.model_class(lambda **_: harness)()


def asked(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_the_harness_gets_our_scores_with_its_rule_of_the_boundary(lm, harness: Harness) -> None:
    texts = [("see the ", "land"), ("so th", "e water"), ("", "the"), ("see the", " land")]
    found = lm.loglikelihood([asked(*each) for each in texts], disable_tqdm=True)
    encode, bos = harness.tokenizer.encode, harness.tokenizer.bos_id
    assert len(encode("so th")) == 4
    assert len(encode("so the")) == 3
    whole = [
        [bos, *encode("see the land")],  # a blank at the end of the context belongs to the continuation
        # " the" is one id of the whole text: what is behind as many ids as the context has is the continuation.
        [bos, *encode("so th"), *encode("so the water")[4:]],
        [bos, *encode("the")],
    ]
    starts = [1 + len(encode("see the")), 1 + len(encode("so th")), 1]
    for (logprob, is_greedy), ids, start in zip(found[:3], whole, starts, strict=True):
        expected, expected_greedy = plain(harness, ids, start)
        assert (logprob, is_greedy) == (pytest.approx(expected, abs=1e-4), expected_greedy)
    assert found[3][0] == pytest.approx(found[0][0], abs=1e-5)
    assert lm.loglikelihood_rolling([asked("the land")], disable_tqdm=True) == harness.whole_texts(["the land"])
    options = {"until": ["\n"], "max_gen_toks": 5}
    assert lm.generate_until([asked("the", options)], disable_tqdm=True) == harness.answers([("the", options)])


def test_the_harness_learns_what_it_scores(lm, harness: Harness) -> None:
    assert lm.get_model_info() == {"run": "tiny"}
    assert (lm.max_length, lm.eot_token_id, lm.prefix_token_id) == (
        CONTEXT,
        harness.tokenizer.bos_id,
        harness.tokenizer.bos_id,
    )
    assert harness.tokenizer.content_hash.startswith(lm.tokenizer_name.removeprefix("firstlight-"))
    assert lm.chat_template(False) == ""
    with pytest.raises(ConfigError, match="no chat template"):
        lm.chat_template(True)
    with pytest.raises(ConfigError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "hi"}])


def test_registering_makes_the_name_known(harness: Harness) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (the extra eval)")
    ours.register(lambda **_: harness)
    ours.register(lambda **_: harness)
    from lm_eval.api.registry import get_model

    assert get_model("firstlight").create_from_arg_string("run=x").harness is harness
    assert get_model("hf") is not None


# ---- our scorer beside the harness's own Hugging Face model


@pytest.fixture(scope="module")
def hflm_class():
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (the extra eval)")
    return pytest.importorskip("lm_eval.models.huggingface", reason="HFLM needs accelerate").HFLM


def arc_doc(row: dict) -> dict:
    """A row of the CORE bundle in the fields of the data set that the harness's task reads."""
    labels = [chr(ord("A") + i) for i in range(len(row["choices"]))]
    return {
        "id": "x",
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["gold"]],
    }


def hellaswag_doc(row: dict) -> dict:
    label, _, text = row["query"].partition(": ")
    return {"activity_label": label, "ctx_a": text, "ctx_b": "", "endings": row["choices"], "label": str(row["gold"])}


def arc_prompt(row: dict) -> str:
    return f"{row['query']}\nAnswer:"


TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", "test_split", arc_doc, arc_prompt),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation_split", hellaswag_doc, lambda row: row["query"]),
}


def build_task(name: str, rows: list[dict], folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The harness's own task, its definition unchanged but for where the documents lie."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    file, split, to_doc, _ = TASKS[name]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(to_doc(row)) + "\n" for row in rows))
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / file)
    for other in ("training_split", "validation_split", "test_split"):
        config[other] = None
    config |= {
        "dataset_path": "json", "dataset_name": None, split: "docs",
        "dataset_kwargs": {"data_files": {"docs": str(path)}, "cache_dir": str(folder / "cache")},
    }  # fmt: skip
    return ConfigurableTask(config=config)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("name", list(TASKS))
def test_decisions_of_our_scorer_are_those_of_the_harness_on_its_own_tasks(
    name: str, adds_bos: bool, hflm_class, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = (shared_data / "core" / "eval_data").glob(f"*/{name}.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()[:NUM_EXAMPLES]]
    assert len(rows) >= 100
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    model = tiny_gpt2(len(tokenizer), context=768)
    task = build_task(name, rows, tmp_path, monkeypatch)
    theirs = hflm_class(
        pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=8, add_bos_token=adds_bos or None
    )
    task.build_all_requests(limit=None, rank=0, world_size=1)
    assert [instance.args for instance in task.instances] == [
        # The prompts are the same strings as those of the CORE bundle.
        (TASKS[name][3](row), f" {choice}")
        for row in rows
        for choice in row["choices"]
    ]
    answers = theirs.loglikelihood(task.instances, disable_tqdm=True)

    scorer = HFScorer(model, max_seq_len=768, vocab_size=len(tokenizer), batch_tokens=4096)

    def ids(text: str) -> list[int]:
        return [0] * adds_bos + tokenizer.encode(text, add_special_tokens=False)

    groups = [
        [Request(tuple(ids(f"{prompt} {choice}")), len(ids(prompt))) for choice in row["choices"]]
        for row in rows
        for prompt in [TASKS[name][3](row)]
    ]
    found = scorer.score(groups)
    nats = [scored.nats for group in found for scored in group]
    assert nats == pytest.approx([-logprob for logprob, _ in answers], abs=1e-4)
    assert [s.is_greedy for group in found for s in group] == [is_greedy for _, is_greedy in answers]

    at = 0
    decisions = []
    for row, doc, group in zip(rows, task.eval_docs, found, strict=True):
        results = task.process_results(doc, answers[at : at + len(group)])
        at += len(group)
        plain_sum = min(range(len(group)), key=lambda i: group[i].nats)
        per_character = min(range(len(group)), key=lambda i: group[i].nats / len(row["choices"][i]))
        assert results["acc"] == (plain_sum == row["gold"])
        assert results["acc_norm"] == (per_character == row["gold"])
        decisions.append(plain_sum)
    # A random model has no favourite place, so that equal decisions mean something.
    assert len(set(decisions)) > 2
