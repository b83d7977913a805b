"""The explanation as one page of HTML: no script, no request, light and dark, desk and phone."""

from __future__ import annotations

from pathlib import Path

from firstlight.errors import ConfigError
from firstlight.recipes import report
from firstlight.recipes.explain.drawing import esc
from firstlight.recipes.explain.facts import Facts
from firstlight.recipes.explain.sections_data import batch_section, text_section
from firstlight.recipes.explain.sections_model import (
    attention_section,
    model_section,
    pass_section,
    stream_section,
    weights_section,
)
from firstlight.recipes.explain.sections_score import bpb_section, logits_section, loss_section
from firstlight.recipes.explain.sections_training import (
    memory_section,
    schedule_section,
    step_section,
    work_section,
)
from firstlight.recipes.report_style import LOGO, PAGE_CSS
from firstlight.runtime.console import format_count

EXPLAIN_CSS = """
section.stage{margin:44px 0 0} section.stage>h2{font-size:24px;margin:0 0 10px;display:flex;gap:12px;align-items:baseline}
section.stage>h2 i{font-style:normal;font-size:15px;font-weight:650;color:var(--card);background:var(--indigo);
 border-radius:99px;min-width:28px;height:28px;display:inline-flex;align-items:center;justify-content:center;
 align-self:center;flex:none}
section.stage p,section.stage>ul{max-width:76ch} section.stage h3{font-size:16px;margin:0 0 8px}
section.stage>h3{margin-top:26px} section.stage li{margin:4px 0}
.pad,.stack>.card.pad{padding:16px 20px} .half{display:grid;grid-template-columns:1fr 1fr;gap:20px;align-items:start;
 margin:16px 0}
.card.pad{margin:14px 0} .half>.card.pad{margin:0} .hint2{color:var(--soft);font-size:14px;margin:8px 0}
.note{border-left:3px solid var(--amber);padding:2px 0 2px 14px;color:var(--soft)}
.toc{display:flex;flex-wrap:wrap;gap:8px;margin:18px 0 0;padding:0;list-style:none;font-size:14px}
.toc a{display:block;color:var(--ink);text-decoration:none;border:1px solid var(--line);background:var(--card);
 border-radius:99px;padding:3px 12px} .toc a:hover{border-color:var(--indigo)}
.pieces{display:flex;flex-wrap:wrap;gap:5px 4px;margin:14px 0;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.piece{display:inline-flex;flex-direction:column;align-items:center;border-radius:7px;padding:3px 7px 2px;font-size:15px;
 line-height:1.35;background:color-mix(in srgb,var(--hue) 17%,transparent);white-space:pre;
 border-bottom:2px solid color-mix(in srgb,var(--hue) 65%,transparent)}
.piece small{font-size:11px;color:var(--soft);font-variant-numeric:tabular-nums} p .piece{padding:0 6px;vertical-align:baseline;
 display:inline-block;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.c0{--hue:var(--indigo)} .c1{--hue:var(--amber)} .c2{--hue:var(--teal)} .c3{--hue:var(--violet)} .c4{--hue:var(--rose)}
.c5{--hue:var(--green)}
.heat{background:color-mix(in srgb,var(--rose) calc(var(--l)*62%),transparent)} .piece.heat{border-bottom-color:transparent} .piece.heat small{color:var(--ink);opacity:.78}
.bytes{display:flex;flex-wrap:wrap;gap:3px;margin:12px 0;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.bytes span{display:inline-flex;flex-direction:column;align-items:center;min-width:26px;padding:2px 3px;border-radius:5px;
 background:var(--code);font-size:14px;line-height:1.35} .bytes b{font-weight:500;min-height:1.35em} .bytes small{font-size:11px;
 color:var(--soft)} .bytes .soft{background:none;justify-content:center}
.scroll{overflow-x:auto;margin:12px 0;-webkit-overflow-scrolling:touch} .tall{max-height:520px;overflow-y:auto}
.scroll table{width:auto;min-width:100%} .scroll td,.scroll th{width:auto;padding:5px 12px 5px 0;overflow-wrap:normal}
.scroll thead th{position:sticky;top:0;background:var(--page);font-size:12.5px;border-top:0;white-space:nowrap;z-index:1}
.scroll td{white-space:nowrap} .scroll th small,.scroll td small{display:block;color:var(--soft);font-size:12px}
.wide-table td{text-align:right} .wide-table td:nth-child(2){text-align:left} .wide-table thead th:nth-child(n+3){text-align:right}
.wide-table th[scope]{color:var(--ink);min-width:150px} .wide-table th code{white-space:nowrap} .stages th i{font-style:normal;font-size:11px;color:var(--soft);
 border:1px solid var(--line);border-radius:4px;padding:0 4px}
.guesses td{text-align:left!important} .guesses thead th{text-align:left!important} .guesses td.heat{padding-left:8px;
 border-radius:5px} .guesses td:last-child{padding-left:14px} .guess{display:inline-block;margin-right:10px;font-family:ui-monospace,SFMono-Regular,Menlo,monospace;
 font-size:13px} .guess small{display:inline!important} .guess.hit{color:var(--good);font-weight:700}
.guesses bdi{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:13px}
.shift td,.shift thead th{text-align:center;border:1px solid var(--line);padding:4px 8px!important;
 font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:14px;background:var(--card)} .shift{min-width:0!important}
.shift th[scope]{border-top:0;white-space:nowrap} .shift .bos{background:color-mix(in srgb,var(--amber) 20%,var(--card))}
.shift .empty{color:var(--soft)} .shift thead th{background:none;border:0;color:var(--soft)}
.flow{display:block;width:100%;max-width:520px;height:auto;margin:0 auto;font-family:ui-sans-serif,system-ui,-apple-system,
 "Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.flow .box{fill:color-mix(in srgb,var(--hue) 9%,var(--card));stroke:color-mix(in srgb,var(--hue) 45%,var(--line))}
.flow .edge{fill:var(--hue)} .flow .soft{--hue:var(--soft)} .flow .t{font-size:14px;font-weight:650;fill:var(--ink)}
.flow .w{font-size:12.5px;fill:var(--soft)} .flow .s{font-size:12px;fill:var(--soft);font-family:ui-monospace,monospace}
.flow .arrow{fill:none;stroke:var(--soft);stroke-width:1.8} .flow .tip{fill:var(--soft)}
.flow .frame{fill:color-mix(in srgb,var(--ink) 3%,transparent);stroke:var(--line);stroke-dasharray:5 4}
.flow .plus{fill:var(--card);stroke:var(--amber);stroke-width:2} .flow .sign{stroke:var(--amber);stroke-width:2}
.bar{display:flex;height:26px;border-radius:8px;overflow:hidden;margin:6px 0 12px;gap:2px} .bar i{background:var(--hue);
 min-width:2px} .legend{list-style:none;margin:0!important;padding:0;font-size:14.5px}
.legend li{display:grid;grid-template-columns:14px 1fr auto 58px;gap:0 10px;align-items:baseline;padding:5px 0;
 border-top:1px solid var(--grid);margin:0!important} .legend li:first-child{border-top:0} .legend small{grid-column:2/5;
 color:var(--soft);font-size:12.5px} .legend em{font-style:normal;text-align:right;font-variant-numeric:tabular-nums}
.dot{width:11px;height:11px;border-radius:3px;background:var(--hue);display:inline-block}
.meter{display:grid;grid-template-columns:150px 1fr 58px;gap:10px;align-items:center;font-size:14px;padding:3px 0}
.meter i{background:var(--grid);height:14px;border-radius:4px;overflow:hidden;display:block} .meter b{display:block;height:100%;
 background:var(--hue);border-radius:4px} .meter em{font-style:normal;text-align:right;font-variant-numeric:tabular-nums}
.meter span{white-space:pre;font-variant-numeric:tabular-nums}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:14px;margin:16px 0}
.maps figure{margin:0;padding:12px} .maps img{width:100%;height:auto;aspect-ratio:1;image-rendering:pixelated;display:block;
 background:linear-gradient(to top right,var(--grid) 50%,transparent 50.2%);border-radius:6px}
.maps figcaption{font-size:13.5px;margin-top:8px;display:grid;grid-template-columns:1fr auto} .maps small{grid-column:1/3;
 color:var(--soft)} .maps figcaption span{color:var(--soft)}
.bigmap{display:block;min-width:520px;width:100%;max-width:640px;height:auto;font-family:ui-monospace,SFMono-Regular,Menlo,
 Consolas,monospace} .bigmap text{font-size:11.5px;fill:var(--ink)}
.gate{display:grid;grid-template-columns:auto 1fr;gap:2px 14px;align-items:baseline;font-size:14px;margin-top:8px}
.gate .pieces{grid-column:1/3;margin:4px 0} .gate span{color:var(--soft)} .gate .piece{font-size:13px;color:var(--ink)}
.gate .heat{background:color-mix(in srgb,var(--amber) calc(var(--l)*70%),transparent)}
.formula{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:15px;background:var(--code);
 border-radius:9px;padding:10px 16px;max-width:none!important;overflow-x:auto}
.boxed{border:2px solid var(--amber)} .boxed pre{background:var(--code);border-radius:9px;padding:10px 14px;overflow-x:auto;
 font-size:13px;margin:6px 0;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace} .boxed .half{margin:10px 0}
.wrong{color:var(--bad)} .right{color:var(--good)} .result{font-size:30px;font-weight:700;margin:4px 0;letter-spacing:-.02em;
 font-variant-numeric:tabular-nums}
.chartcard{margin:14px 0;padding:6px} .chartcard .wide{max-width:820px}
.mapside{grid-template-columns:3fr 2fr}
section.stage a{color:var(--indigo)}
@media (max-width:760px){.half,.mapside{grid-template-columns:minmax(0,1fr);gap:14px}
 .meter{grid-template-columns:112px 1fr 52px} .maps{grid-template-columns:1fr 1fr;gap:10px}
 section.stage>h2{font-size:21px} .pad{padding:14px} .maps figure{padding:8px} .legend small{grid-column:2/5}
 .wide-table th[scope]{min-width:128px}}
@media print{.tall{max-height:none} section.stage{break-before:auto}}
"""


def write_page(facts: Facts, path: Path) -> Path:
    """Write the page in one move; returns its path. Raises ConfigError where it cannot be written."""
    try:
        report.write_page(path, render_page(facts))
    except OSError as error:
        raise ConfigError(
            f"--page {path} cannot be written: {error.strerror or error}",
            hint="name a file in a folder that exists and that you may write to",
        ) from error
    return path


def render_page(facts: Facts) -> str:
    """The whole page as text."""
    walk = facts.walk
    stages = [
        ("text", "From text to token ids", text_section(facts)),
        ("batch", "The batch, shifted by one", batch_section(facts)),
        ("model", "The model", model_section(facts) + "<h3>Every weight</h3>" + weights_section(facts.weights)),
        ("pass", "The forward pass, tensor by tensor", pass_section(facts) + (stream_section(walk) if walk else "")),
    ]
    if walk is not None:
        stages += [
            ("attention", "What attention looks at", attention_section(facts, walk)),
            ("logits", "From scores to probabilities", logits_section(facts, walk)),
            ("loss", "The loss, token by token", loss_section(walk, facts.model.vocab_size)),
            ("bpb", "Bits per byte", bpb_section(facts, walk)),
        ]
    stages += [
        ("step", "A training step", step_section(facts)),
        ("schedule", "The schedule", schedule_section(facts)),
        ("memory", "Where the memory goes", memory_section(facts.training)),
        ("work", "Where the work goes", work_section(facts.training)),
    ]
    toc = "".join(f'<li><a href="#{key}">{i}. {title}</a></li>' for i, (key, title, _) in enumerate(stages, 1))
    body = "".join(
        f'<section class="stage" id="{key}"><h2><i>{i}</i>{title}</h2>{content}</section>'
        for i, (key, title, content) in enumerate(stages, 1)
    )
    notes = "".join(f'<p class="note">{esc(note)}</p>' for note in facts.notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Nothing may be fetched or run, whatever a text says.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f"<title>{esc(facts.title)} explained · firstlight</title><style>{PAGE_CSS}{EXPLAIN_CSS}</style></head><body>"
        '<div class="dawn"></div><header><div class="top">'
        f"{LOGO}<h1>{esc(facts.title)}, explained</h1></div>"
        f'<p class="sub">{esc(" · ".join(about(facts)))}</p></header><main>{notes}'
        + tiles(facts)
        + f'<nav aria-label="Stages"><ul class="toc">{toc}</ul></nav>{body}</main>'
        "<footer>Made by firstlight from the model itself; the same numbers come from <code>firstlight explain --json</code>."
        "</footer></body></html>\n"
    )


def about(facts: Facts) -> list[str]:
    """Words under the title: what kind of model, how large, how far trained."""
    words = [
        f"preset {facts.preset}",
        f"depth {facts.model.n_layer}",
        f"{format_count(sum(facts.groups.values()))} parameters",
    ]
    words.append(f"step {facts.step:,}" if facts.step is not None else "before training")
    if facts.val_bpb is not None:
        words.append(f"{facts.val_bpb:.3f} bits per byte on unseen text")
    return words


def tiles(facts: Facts) -> str:
    """The walk in six numbers."""
    score, train = (facts.walk.score if facts.walk else None), facts.training
    cells = [
        ("This text", f"{len(facts.text.encode()):,} <small>bytes</small>"),
        ("Tokens", f"{len(facts.pieces):,} <small>of {facts.tokenizer_size:,} kinds</small>"),
        ("Parameters", f"{format_count(sum(facts.groups.values()))} <small>in {len(facts.weights):,} tensors</small>"),
        ("Loss", f"{score.nats_per_token:.3f} <small>nats per token</small>" if score else None),
        ("Bits per byte", f"{score.bits_per_byte:.3f} <small>on this text</small>" if score else None),
        ("A training step", f"{format_count(train.total_batch_size)} <small>tokens</small>"),
    ]
    body = "".join(f'<div class="tile"><dt>{name}</dt><dd>{value or "–"}</dd></div>' for name, value in cells)
    return f'<dl class="card tiles" style="margin:22px 0 0">{body}</dl>'
