"""The README.md of an exported model: what it is, how it was made and scored, how to load it, what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstlight.interop.hf_export import HfExport


def model_card(exported: HfExport, *, origin: Mapping[str, Any], sizes: Mapping[str, Any]) -> str:
    """Text of the card.

    origin: run, step, data, hashes and ``final`` numbers, as the run's record has them; what is missing is left out.
    sizes: of the model, by the names of `GPTConfig`.
    """
    is_remote = exported.kind == "remote-code"
    trust = ", trust_remote_code=True" if is_remote else ""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "license: unknown",
        "tags:",
        "- firstlight",
        "---",
        "",
        f"# {origin['run']}",
        "",
        f"A language model of {exported.num_params:,} parameters, trained from nothing with firstlight and exported from the "
        f"run `{origin['run']}` at step {origin['step']:,}. It continues text. It was not taught to answer questions or to "
        "follow instructions, and what it says may be wrong, offensive or copied from its training text.",
        "",
        "**Licence:** unknown. Whoever publishes this model chooses one, with regard to the text it was trained on, and "
        "changes the line `license:` at the top of this file.",
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER"{trust})',
        f'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER"{trust})',
        'generate = pipeline("text-generation", model=model, tokenizer=tokenizer)',
        'print(generate("Once upon a time")[0]["generated_text"])',
        "```",
        "",
    ]
    if is_remote:
        lines += [
            "`trust_remote_code=True` runs `modeling_firstlight.py` of this folder: one file that needs torch and transformers "
            "(5.24 or newer) only. Read it first if the folder is not from you.",
            "",
        ]
    lines += [
        "The tokenizer puts `<|bos|>` in front of a text, as in training. Text that looks like a special token stays text. "
        f"The context is {sizes['max_seq_len']:,} tokens.",
        "",
        "## Made from",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(exported, origin, sizes)),
        "",
        "Scores of two models can be compared where the hash of the validation text is the same. `firstlight import hf` makes a "
        "run of this folder again, with bit-equal weights where they are float32.",
        "",
    ]
    return "\n".join(lines)


def _facts(exported: HfExport, origin: Mapping[str, Any], sizes: Mapping[str, Any]) -> list[tuple[str, str]]:
    final = origin.get("final") or {}
    rows = [
        ("model type", f"`{exported.model_type}`, weights in {exported.dtype}"),
        (
            "sizes",
            f"{sizes['n_layer']} layers, width {sizes['n_embd']}, {sizes['n_head']} heads, {sizes['vocab_size']:,} ids",
        ),
    ]
    if origin.get("data"):
        rows.append(("data", f"`{origin['data']}`"))
    if final.get("tokens"):
        rows.append(("trained on", f"{final['tokens']:,} tokens in {final.get('steps', origin['step']):,} steps"))
    # The score is of the run's last step; another checkpoint has none here.
    if final.get("val_bpb") is not None and final.get("steps") == origin["step"]:
        stderr = final.get("val_bpb_stderr")
        spread = f" ± {stderr:.4f}" if stderr is not None else ""
        rows.append(("score", f"{final['val_bpb']:.4f}{spread} bits per byte on validation text (lower is better)"))
    for name, key in (
        ("hash of the data", "data_hash"),
        ("hash of the validation text", "val_hash"),
        ("hash of the tokenizer", "tokenizer_hash"),
        ("code", "git_commit"),
    ):
        if origin.get(key):
            rows.append((name, f"`{origin[key]}`"))
    versions = origin.get("versions") or {}
    if versions:
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows
