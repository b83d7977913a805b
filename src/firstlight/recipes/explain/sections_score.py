"""The page's stages behind the model: logits, guesses, the loss of each token, and bits per byte done right."""

from __future__ import annotations

import math

from firstlight.recipes.explain.drawing import esc
from firstlight.recipes.explain.facts import Facts, Position, Walk


def percent(share: float) -> str:
    """A probability for people; small ones keep two digits.

    >>> percent(0.4125), percent(0.00024)
    ('41.2 %', '0.024 %')
    """
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2g} %"


def logits_section(facts: Facts, walk: Walk) -> str:
    """Stage 5: scores before and after the cap, and what becomes of them."""
    cap = facts.model.softcap
    stats = {stage.key: stage.stats for stage in walk.stages}
    after = stats["logits"]
    assert after is not None
    if cap:
        words = (
            f"<p>The head gives one score for each of the {facts.model.vocab_size:,} ids. The <b>soft cap</b>"
            f" {cap:g} · tanh(z / {cap:g}) keeps them within ±{cap:g}, so that no single score can run away: here they went from"
            f" {walk.cap_low:.2f} … {walk.cap_high:.2f} before to {after.low:.2f} … {after.high:.2f} after it.</p>"
        )
    else:
        words = (
            f"<p>The head gives one score for each of the {facts.model.vocab_size:,} ids, here from {after.low:.2f} to"
            f" {after.high:.2f}. This model has no cap on them.</p>"
        )
    position = min(walk.positions, key=lambda each: (each.rank != 1, abs(each.probability - 0.5)))
    bars = "".join(
        f'<div class="meter"><span><bdi>{esc(guess.text)}</bdi></span><i><b class="violet"'
        f' style="width:{100 * guess.probability:.1f}%"></b></i><em>{percent(guess.probability)}</em></div>'
        for guess in position.top
    )
    return (
        words
        + "<p><b>Softmax</b> turns scores into probabilities: each is exp(score), divided by the sum of them all."
        + f" Behind <span class='piece c0'><bdi>{esc(position.input.text)}</bdi></span> (position {position.index}) the likeliest"
        f" next tokens were these; the text goes on with <span class='piece c2'><bdi>{esc(position.target.text)}</bdi></span>.</p>"
        f"<div class='card pad'>{bars}</div>"
    )


def loss_section(walk: Walk, vocab_size: int) -> str:
    """Stage 6: the text coloured by its losses, and every position with its guesses."""
    score = walk.score
    worst = max(position.loss_nats for position in walk.positions)
    strip = "".join(
        f'<span class="piece heat" style="--l:{position.loss_nats / worst:.2f}" title="{esc(_title(position))}">'
        f"<bdi>{esc(position.target.text)}</bdi><small>{position.loss_nats:.2f}</small></span>"
        for position in walk.positions
    )
    lines = "".join(_line(position, worst) for position in walk.positions)
    first = sum(position.rank == 1 for position in walk.positions)
    return (
        "<p>The <b>loss</b> of a token is -ln of the probability that the model gave to it: 0 if it was sure and right, and more"
        f" the more surprised it was. Guessing evenly among {vocab_size:,} ids costs ln {vocab_size:,} ="
        f" {math.log(vocab_size):.2f} nats. Here the {score.num_tokens} tokens cost <b>{score.nats:.2f} nats</b> together,"
        f" {score.nats_per_token:.3f} each; {first} of them were the model's first choice. exp of the mean, the"
        f" <b>perplexity</b>, is {score.perplexity:,.1f}: as unsure as a throw among so many equal ones.</p>"
        f'<div class="card pad"><div class="pieces losses" dir="ltr">{strip}</div><p class="hint2">The stronger the colour, the more'
        " surprising the token was; under it its loss in nats.</p></div>"
        "<details open><summary>Every position</summary><div class='scroll tall'><table class='wide-table guesses'><thead><tr>"
        "<th>after</th><th>true token</th><th>probability</th><th>rank</th><th>loss</th><th>the model's guesses</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div></details>"
    )


def _title(position: Position) -> str:
    return (
        f"p = {position.probability:.4f}, rank {position.rank}, loss {position.loss_nats:.3f} nats; "
        f"first guess {position.top[0].text}"
    )


def _line(position: Position, worst: float) -> str:
    guesses = " ".join(
        f"<span class='guess{' hit' if guess.id == position.target.id else ''}'><bdi>{esc(guess.text)}</bdi>"
        f" <small>{percent(guess.probability)}</small></span>"
        for guess in position.top
    )
    return (
        f"<tr><td><bdi>{esc(position.input.text)}</bdi></td><td><bdi><b>{esc(position.target.text)}</b></bdi></td>"
        f"<td>{position.probability:.4f}</td><td>{position.rank:,}</td>"
        f"<td class='heat' style='--l:{position.loss_nats / worst:.2f}'>{position.loss_nats:.3f}</td><td>{guesses}</td></tr>"
    )


def bpb_section(facts: Facts, walk: Walk) -> str:
    """Stage 7: from nats to bits per byte, and the listing that averages wrongly."""
    score = walk.score
    known = (
        f" On {esc(facts.val_of)} this checkpoint has <b>{facts.val_bpb:.4f}</b>." if facts.val_bpb is not None else ""
    )
    return (
        "<p>A loss per token cannot be compared between tokenizers: longer tokens are harder to guess, and there are fewer of"
        " them. Bytes are the same for all, so the score is <b>bits per byte</b>: all nats of the text, in bits (divided by"
        " ln 2), divided by all its bytes.</p>"
        f"<p class='formula'>bpb = {score.nats:.4f} nats / (ln 2 × {score.num_bytes:,} bytes) ="
        f" <b>{score.bits_per_byte:.4f}</b></p>"
        f"<p>Text as it lies on disk takes 8.{known}</p>"
        "<div class='card pad boxed'><h3>A remark: sums, not means</h3><p>Listings of this score often look like the one on the"
        " left: for every batch the <i>mean</i> loss of its tokens is multiplied by the batch's bytes, and in the end the sum is"
        " divided by all bytes. The bytes cancel, and what is left is bits per <i>token</i>"
        f" ({score.bits_per_token:.4f} here), not per byte.</p><div class='half'>"
        "<div><b class='wrong'>wrong</b><pre>total_loss  += loss.mean() * num_bytes\ntotal_bytes += num_bytes\n"
        f"bpb = total_loss / total_bytes / ln(2)</pre><p class='result'>{score.seed_bpb:.4f}</p></div>"
        "<div><b class='right'>right</b><pre>total_nats  += loss.sum()\ntotal_bytes += num_bytes\n"
        f"bpb = total_nats / (ln(2) * total_bytes)</pre><p class='result'>{score.bits_per_byte:.4f}</p></div></div>"
        f"<p class='hint2'>Both from the losses above, the text cut into {score.seed_batches} batches. The wrong one is"
        f" {score.seed_bpb / score.bits_per_byte:.2f} times the right one, near the {score.num_bytes / score.num_tokens:.2f} bytes"
        " of a token.</p></div>"
    )
