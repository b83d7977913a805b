"""Our tokenizer as the ``tokenizer.json`` of the tokenizers library, which transformers loads, and back.

What is written gives the same ids as ours for every text: the same vocabulary, split pattern and order of merges, and
special tokens that no text can produce (``split_special_tokens``). BOS goes in front of a text, as `firstlight sample`
puts it. What the file cannot hold (facts of the training) is in ``firstlight.json`` beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from firstlight.errors import ConfigError, DataError
from firstlight.tokens import fast
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.samples import SAMPLES
from firstlight.tokens.special import BOS

_HARD_TEXTS = (
    *SAMPLES.values(),
    "It's he'LL wE'Re I'd'M 'S'x ''s a's'tb",
    "0 1 12 123 1234 a1b22c333 1.5 12:30 2026-11-25 x² ½ ٣٤ 00000 9 99 999 \n7\n88 \t9",
    " a  b   c\n\n d \r\n\r\n  \n   e\t\tf \t g\u00a0h\u3000i  \n",
    "...!? --x -- x\n\n!!\r\n?! (a) {b}\n   ",
    "<|bos|> is text, and so is <|user_start|>",
    "aaaaaaaaaaaaaaaa " + "é" * 40 + "🙂" * 20 + "\x00\x7f\u200d\u2028\ufeff",
)


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Contents of ``tokenizer.json`` in the form of the tokenizers library."""
    num_ranks = tokenizer.vocab_size - len(tokenizer.special_ids)
    model = json.loads(fast.model_json([tokenizer.id_bytes(i) for i in range(num_ranks)], tokenizer.pattern))
    added = [
        {
            "id": token_id,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, token_id in tokenizer.special_ids.items()
    ]
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": model["pre_tokenizer"],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, texts[0]],
            "pair": [bos, texts[0], bos, texts[1]],
            "special_tokens": {BOS: {"id": BOS, "ids": [tokenizer.bos_id], "tokens": [BOS]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model["model"],
    }


def tokenizer_config(tokenizer: Tokenizer, *, max_seq_len: int) -> dict[str, Any]:
    """Contents of ``tokenizer_config.json``. max_seq_len: tokens of the model's context."""
    others = [name for name in tokenizer.special_ids if name != BOS]
    return {
        # The general class: those named after a model type replace the split pattern by their own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        # Prompts of several lengths go on at their ends, so padding is for their fronts.
        "padding_side": "left",
        "add_bos_token": True,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        **special_tokens_map(tokenizer),
        "additional_special_tokens": others,
    }


def special_tokens_map(tokenizer: Tokenizer) -> dict[str, Any]:
    """Contents of ``special_tokens_map.json``: a document begins with BOS, and the next one's BOS ends it."""
    return {"bos_token": BOS, "eos_token": BOS, "pad_token": BOS}


def check_same_ids(content: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """Compare the file's ids with ours on hard texts, with the tokenizers library; a sentence that says how it went.

    Raises ConfigError where the library does not take the file or gives other ids (a split pattern of one's own may
    mean another thing to its engine).
    """
    try:
        import tokenizers
    except ImportError:
        return "the fast tokenizer was not compared with ours: the tokenizers library is not installed"
    hint = "tokenizers with firstlight's own split pattern are the same in both"
    try:
        other = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # The library raises bare Exceptions.
        raise ConfigError(f"the tokenizers library does not take this tokenizer: {error}", hint=hint) from error
    other.encode_special_tokens = True
    for text in _HARD_TEXTS:
        if other.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise ConfigError(f"the tokenizers library cuts the text {text[:40]!r} otherwise than ours", hint=hint)
    version = metadata.version("tokenizers")
    return f"the fast tokenizer gives our ids on {len(_HARD_TEXTS)} hard texts (tokenizers {version})"


def read_tokenizer(content: Any, *, facts: dict[str, Any] | None = None) -> tuple[Tokenizer | None, list[str]]:
    """Our tokenizer from the contents of a ``tokenizer.json``, or None and every reason why it cannot be ours.

    facts: of the training, where they are known.
    """
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return None, ["tokenizer.json is not a file of the tokenizers library"]
    problems: list[str] = []
    model = content["model"]
    if model.get("type") != "BPE":
        return None, [f"the tokenizer's model is {model.get('type')!r}, not BPE"]
    for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            problems.append(f"the tokenizer has a {name} ({model[name]!r})")
    if content.get("normalizer") is not None:
        problems.append(f"the tokenizer changes texts first (normalizer {_kind(content['normalizer'])})")
    pattern = _pattern(content.get("pre_tokenizer"))
    if pattern is None:
        problems.append("the tokenizer does not cut texts by one regular expression and then into bytes")
    names = {chr(name): byte for byte, name in fast.byte_names().items()}
    tokens, special_tokens = _tokens(model.get("vocab"), content.get("added_tokens") or [], names, problems)
    if problems or pattern is None:
        return None, problems
    try:
        tokenizer = Tokenizer(tokens, pattern=pattern, special_tokens=special_tokens, facts=facts)
    except (ConfigError, DataError) as error:
        return None, [error.what]
    problems += _merge_problems(model.get("merges") or [], tokens, names)
    return (None, problems) if problems else (tokenizer, [])


def _kind(part: Any) -> str:
    return str(part.get("type")) if isinstance(part, dict) else type(part).__name__


def _pattern(part: Any) -> str | None:
    """The regular expression of a Split that is followed by plain bytes."""
    if not isinstance(part, dict) or part.get("type") != "Sequence":
        return None
    parts = part.get("pretokenizers") or []
    if [_kind(each) for each in parts] != ["Split", "ByteLevel"]:
        return None
    split, to_bytes = parts
    if split.get("invert") or split.get("behavior") != "Isolated":
        return None
    if to_bytes.get("add_prefix_space") or to_bytes.get("use_regex", True):
        return None
    pattern = (split.get("pattern") or {}).get("Regex")
    return pattern if isinstance(pattern, str) else None


def _tokens(
    vocab: Any, added: list[Any], names: Mapping[str, int], problems: list[str]
) -> tuple[list[bytes], tuple[str, ...]]:
    """Raw bytes of each ordinary id, and the special tokens in the order of their ids, which follow."""
    special = {each["content"]: each["id"] for each in added if isinstance(each, dict) and each.get("special")}
    if len(special) != len(added):
        problems.append("the tokenizer has added tokens that are not special")
    if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
        problems.append("the tokenizer has no vocabulary of ids")
        return [], ()
    # Some files list the special tokens in the vocabulary as well.
    ordinary = sorted((i, name) for name, i in vocab.items() if name not in special)
    if [i for i, _ in ordinary] != list(range(len(ordinary))):
        problems.append("the ids of the ordinary tokens are not 0, 1, 2, ... without a gap")
    if sorted(special.values()) != list(range(len(ordinary), len(ordinary) + len(special))):
        problems.append("the special tokens' ids do not follow the ordinary ones")
    if BOS not in special:
        problems.append(f"the tokenizer has no special token {BOS}, with which every document begins")
    try:
        tokens = [bytes(names[c] for c in name) for _, name in ordinary]
    except KeyError as error:
        problems.append(f"a token holds the character {error.args[0]!r}, which stands for no byte")
        tokens = []
    return tokens, tuple(sorted(special, key=special.__getitem__))


def _merge_problems(merges: list[Any], tokens: list[bytes], names: Mapping[str, int]) -> list[str]:
    """Why merging by the list may differ from merging by rank, which is what ours does."""
    ranks = {token: i for i, token in enumerate(tokens)}
    made = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        token = bytes(names.get(c, 0) for c in "".join(parts))
        if token not in ranks:
            return [f"the merge {merge!r} gives no token"]
        made.append(ranks[token])
    if made != sorted(made):
        return ["the merges are not in the order of the ids, and merging is by lowest id here"]
    if missing := len(set(range(256, len(tokens))) - set(made)):
        return [f"{missing} tokens have no merge, so that no text would give them there"]
    return []
