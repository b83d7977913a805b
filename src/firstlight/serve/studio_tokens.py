"""The studio's token viewer: a text, and a conversation, as the served run's tokenizer cuts them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI
from starlette.responses import Response

from firstlight.errors import FirstlightError
from firstlight.recipes.explain.pieces import visible
from firstlight.serve.studio_json import answer, problem
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import parse_messages, render

MOST_BYTES = 64 * 1024
"""Of text in one request: a page cannot show more tokens than that comes to, and encoding it takes milliseconds."""


def add_tokens(app: FastAPI, *, run_dir: Path) -> None:
    """Hang ``POST /api/tokenize`` and ``POST /api/render`` on a server. Raises DataError for a damaged tokenizer."""
    tokenizer = Tokenizer.load(run_dir / "tokenizer.json")

    @app.post("/api/tokenize", include_in_schema=False)
    def tokenize(text: Annotated[str, Body(embed=True)]) -> Response:
        if len(text) > MOST_BYTES or len(text.encode("utf-8", "replace")) > MOST_BYTES:
            return problem(f"the text is longer than {MOST_BYTES:,} bytes", hint="paste a part of it", status_code=413)
        try:
            ids = tokenizer.encode(text)
        except FirstlightError as error:
            return problem(error.what, hint=error.hint)
        return answer(
            {
                "tokens": [token_of(tokenizer, id) for id in ids],
                "num_bytes": len(text.encode()),
                "vocab_size": tokenizer.vocab_size,
            }
        )

    @app.post("/api/render", include_in_schema=False)
    def rendered(messages: Annotated[Any, Body(embed=True)]) -> Response:
        try:
            parsed = parse_messages(messages, where="the conversation")
            if sum(len(part.text) for message in parsed for part in message.parts) > MOST_BYTES:
                return problem(f"the conversation is longer than {MOST_BYTES:,} characters", status_code=413)
            document = render(parsed, tokenizer)
        except FirstlightError as error:
            return problem(error.what, hint=error.hint)
        # Packing puts BOS in front of every document; it is never a target.
        assert document.loss_mask is not None
        pairs = [(tokenizer.bos_id, False), *zip(document.ids.tolist(), document.loss_mask.tolist(), strict=True)]
        return answer(
            {
                "tokens": [token_of(tokenizer, id) | {"carries_loss": carries} for id, carries in pairs],
                "num_with_loss": sum(carries for _, carries in pairs),
            }
        )


def token_of(tokenizer: Tokenizer, id: int) -> dict[str, Any]:
    """One token for the page: its id, its bytes as one line of text, and in hexadecimal; a special one has no bytes."""
    raw = tokenizer.id_bytes(id)
    if id in tokenizer.special_ids.values():
        return {"id": id, "text": raw.decode(), "hex": "", "is_special": True}
    return {"id": id, "text": visible(raw), "hex": raw.hex(" ").upper(), "is_special": False}
