"""Claims of eval/samples.py, with a model whose next token is known."""

from __future__ import annotations

import pytest
import torch

from firstlight.errors import ConfigError
from firstlight.eval.samples import (
    BUILTIN_PROMPTS,
    ENGLISH_PROMPTS,
    Sample,
    continue_prompt,
    default_prompts,
    fit_prompt,
    sample_prompts,
    samples_markdown,
)
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt
from firstlight.tokens.bpe import Tokenizer

BYTES = Tokenizer([bytes([b]) for b in range(256)])
CONTEXT = 48


def model_that_says(chain: bytes, *, ends: bool = False) -> GPT:
    """A GPT whose next byte follows ``chain`` (distinct bytes): zero blocks, one-hot embeddings, a shifting head."""
    width = len(chain) + 2
    width += width % 2
    config = GPTConfig(BYTES.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=width, max_seq_len=CONTEXT)
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=0)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in weights.values():
            parameter.zero_()
        places = {byte: place for place, byte in enumerate(chain)}
        for byte, place in places.items():
            weights["transformer.wte.weight"][byte, place] = 1.0
            following = chain[(place + 1) % len(chain)]
            if ends and place == len(chain) - 1:
                following = BYTES.bos_id
            weights["lm_head.weight"][following, place] = 100.0
    return model


def test_a_known_model_says_what_it_must() -> None:
    (sample,) = sample_prompts(model_that_says(b"helo"), BYTES, ["he"], max_new_tokens=6, temperature=0)
    # h -> e -> l -> o -> h -> ...
    assert sample == Sample("he", "lohelo", 6, "length")


def test_a_stop_token_ends_the_text_and_is_no_part_of_it() -> None:
    (sample,) = sample_prompts(model_that_says(b"abcd", ends=True), BYTES, ["a"], max_new_tokens=20, temperature=0)
    assert sample == Sample("a", "bcd", 4, "end")


def test_a_full_context_ends_the_text_and_says_so() -> None:
    (sample,) = sample_prompts(model_that_says(b"abcd"), BYTES, ["a"], max_new_tokens=1000, temperature=0)
    # BOS and the prompt take 2 of 48 places; the last token needs none.
    assert (sample.num_tokens, sample.stop_reason) == (CONTEXT - 2 + 1, "context")


def test_streamed_text_never_splits_a_character() -> None:
    dog = "🐶".encode()
    pieces: list[str] = []
    continue_prompt(
        model_that_says(b"a" + dog), BYTES, "a", max_new_tokens=10, temperature=0, top_k=None, seed=0,
        on_text=lambda i, text: pieces.append(text),
    )  # fmt: skip
    assert pieces == ["🐶", "a", "🐶", "a"]


def test_an_unfinished_character_at_the_end_is_one_replacement_sign() -> None:
    dog = "🐶".encode()
    (sample,) = sample_prompts(model_that_says(b"a" + dog), BYTES, ["a"], max_new_tokens=2, temperature=0)
    assert sample.text == "\ufffd"


def test_the_streamed_pieces_joined_are_the_texts() -> None:
    torch.manual_seed(0)
    config = GPTConfig(BYTES.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=CONTEXT)
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=0)
    streamed = [""] * 5

    def on_text(i: int, text: str) -> None:
        streamed[i] += text

    samples = continue_prompt(
        model, BYTES, "x", max_new_tokens=12, temperature=1.0, top_k=0, seed=3, num_samples=5, on_text=on_text
    )
    assert streamed == [sample.text for sample in samples]
    assert len(set(streamed)) > 1  # samples are independent


def test_the_same_seed_says_the_same_and_training_is_untouched() -> None:
    config = GPTConfig(BYTES.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=CONTEXT)
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=0).train()
    random_state = torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = sample_prompts(model, BYTES, ["a", "b"], max_new_tokens=8, seed=5)
    torch.rand(3)
    second = sample_prompts(model, BYTES, ["a", "b"], max_new_tokens=8, seed=5)
    other = sample_prompts(model, BYTES, ["a", "b"], max_new_tokens=8, seed=6)
    assert first == second
    assert first != other
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    torch.set_rng_state(random_state)
    sample_prompts(model, BYTES, ["a"], max_new_tokens=8, seed=5)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_prompt_that_looks_like_a_special_token_is_text() -> None:
    (sample,) = sample_prompts(model_that_says(b">abc"), BYTES, ["<|bos|>"], max_new_tokens=3, temperature=0)
    assert sample.text == "abc"


def test_an_empty_prompt_starts_from_bos_alone() -> None:
    (sample,) = sample_prompts(model_that_says(b"abcd"), BYTES, [""], max_new_tokens=3, temperature=0)
    assert sample.num_tokens == 3


@pytest.mark.parametrize("length", [0, 1, 36, 37, 38, 48, 49, 500])
@pytest.mark.parametrize("max_new_tokens", [1, 5, 12, 13, 1000])
def test_a_long_prompt_keeps_bos_and_its_end_and_leaves_room(length: int, max_new_tokens: int) -> None:
    prompt = list(range(1000, 1000 + length))
    ids, dropped = fit_prompt(prompt, bos_id=7, context=CONTEXT, max_new_tokens=max_new_tokens)
    assert ids == [7, *prompt[dropped:]]
    room = CONTEXT + 1 - len(ids)
    assert room >= min(max_new_tokens, CONTEXT // 4)
    assert dropped == 0 or room == min(max_new_tokens, CONTEXT // 4)


def test_a_cut_prompt_is_said_in_the_sample() -> None:
    prompt = "abcd" * 100
    (sample,) = sample_prompts(model_that_says(b"abcd"), BYTES, [prompt], max_new_tokens=4, temperature=0)
    assert sample.text == "abcd"
    assert sample.num_dropped == 400 - (CONTEXT + 1 - 4 - 1)


def test_a_context_of_one_token_still_works() -> None:
    assert fit_prompt([1, 2, 3], bos_id=7, context=1, max_new_tokens=5) == ([7], 3)


def test_values_without_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="temperature -1"):
        sample_prompts(model_that_says(b"ab"), BYTES, ["a"], temperature=-1)
    with pytest.raises(ConfigError, match="max_new_tokens 0"):
        sample_prompts(model_that_says(b"ab"), BYTES, ["a"], max_new_tokens=0)


def test_prompts_suit_the_data() -> None:
    assert default_prompts("builtin") is BUILTIN_PROMPTS
    assert default_prompts("my_texts/") is ENGLISH_PROMPTS
    for prompts in (BUILTIN_PROMPTS, ENGLISH_PROMPTS):
        assert len(set(prompts)) == 7
        # A space at the end would be a token of its own, which training text hardly has.
        assert all(prompt == prompt.strip() for prompt in prompts)
    assert ENGLISH_PROMPTS[0] == "The capital of France is"


def test_no_text_can_leave_its_fence() -> None:
    evil = "```\n# not a heading\n````js\r`\0"
    page = samples_markdown(1234, [Sample("p```", evil, 9, "length"), Sample("q", "plain", 1, "end")])
    lines = page.split("\n")
    assert lines[0] == "## Step 1,234"
    fences = [line for line in lines if line.startswith("`````")]
    assert fences == ["`````text", "`````"]
    inside = lines[lines.index("`````text") + 1 : lines.index("`````")]
    assert "# not a heading" in inside
    assert inside[0] == "p```│```"
    assert "\0" not in page
    assert page.endswith("```text\nq│plain\n```\n\n")  # the next section may follow
