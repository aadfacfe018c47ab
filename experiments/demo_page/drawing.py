"""What was computed, as HTML; every text in it is escaped."""

import base64
import html
import io
import math
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from experiments.demo_page.asking import Answer
from experiments.demo_page.tokens import Token
from experiments.demo_page.traces import Trace
from gradmem_jax.foreign_text import one_line
from gradmem_jax.memory.interface import Memory

_NEGATIVE, _POSITIVE = (47, 111, 179), (217, 119, 6)  # they show on white and on black
_MOST_ROWS = 64  # memory vectors that are drawn
_LONGEST_WORD = 30  # answers that are shown large
_MOST_LABELS = 12  # bars with their numbers above


def escape(text: str) -> str:
    """A text to stand in HTML, also between quotes."""
    return html.escape(text, quote=True)


def status(text: str, kind: str = "info") -> str:
    """A line that says what happens; `kind` is "info", "warning" or "error"."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="gm-status gm-{kind}" role="{role}">{escape(one_line(text, 600))}</div>'


def view(trace: Trace, step: int) -> str:
    """Everything about a WRITE after some of its steps."""
    step = min(step, trace.last)
    parts = [_facts(trace, step)]
    if len(trace.write_losses) > 1:
        parts.append(_section("WRITE loss by step", _loss_bars(trace.write_losses, step)))
    if trace.texts:
        title = "The text, as the memory predicts it"
        parts.append(_section(title, _texts(trace, step), _legend(_blind(trace))))
    if not trace.knows_all_texts:
        said = "The first text came from a memory file, which has no text in it."
        parts.append(f'<p class="gm-quiet">{said}</p>')
    parts.append(_memory(trace, step))
    return f'<div class="gm-view" data-step="{step}">{"".join(parts)}</div>'


def _section(title: str, body: str, beside: str = "") -> str:
    return f"<section><header><h3>{title}</h3>{beside}</header>{body}</section>"


def _blind(trace: Trace) -> float:
    """Loss in nats of a guess among all tokens alike."""
    return math.log(trace.model.opened.model.config.lm.vocab_size)


def _facts(trace: Trace, step: int) -> str:
    sizes, losses = trace.sizes, trace.write_losses
    facts = []
    if losses:
        first = f"{losses[0]:.2f} → " if step else ""
        facts.append((f"{first}{losses[step]:.2f}", "WRITE loss, nats a token"))
    elif trace.context.final_loss is not None:
        facts.append((f"{trace.context.final_loss:.2f}", "loss of its text, nats a token"))
    facts.append((size(sizes["memory_bytes"]), "memory"))
    if "cache_bytes" in sizes:
        ratio = sizes["cache_bytes"] / sizes["memory_bytes"]
        cache = f"key-value cache of the text, {ratio:.1f} times as much"
        facts.append((size(sizes["cache_bytes"]), cache))
    tiles = (f"<div><b>{escape(value)}</b><span>{name}</span></div>" for value, name in facts)
    return f'<div class="gm-facts">{"".join(tiles)}</div>'


def size(num_bytes: int) -> str:
    """Bytes in a unit that suits them."""
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes} bytes"


def _loss_bars(losses: Sequence[float], step: int) -> str:
    most = max([*losses, 1e-9])
    bars = []
    for k, loss in enumerate(losses):
        label = f"<i>{loss:.2f}</i>" if len(losses) <= _MOST_LABELS else ""
        number = f"<u>{k}</u>" if len(losses) <= _MOST_LABELS else ""
        chosen = " gm-chosen" if k == step else ""
        bars.append(
            f'<div class="gm-bar{chosen}" title="after {k} steps: {loss:.4f} nats a token">'
            f'{label}<s style="height:{100 * loss / most:.1f}%"></s>{number}</div>'
        )
    few = "" if len(losses) <= _MOST_LABELS else " gm-many"
    return f'<div class="gm-bars{few}">{"".join(bars)}</div>'


def _legend(blind: float) -> str:
    return f'<span class="gm-legend">knows it<i></i>guesses blindly ({blind:.1f} nats)</span>'


def _texts(trace: Trace, step: int) -> str:
    pairs = list(zip(trace.texts, trace.steps[step].losses, strict=True))
    blind = _blind(trace)
    texts = []
    for number, (text, losses) in enumerate(pairs, 1):
        mean = f"<small>text {number}: {losses.mean():.2f}</small>" if len(pairs) > 1 else ""
        spans = map(_span, text.tokens, losses.tolist(), [blind] * len(losses))
        texts.append(f'{mean}<p class="gm-text">{"".join(spans)}</p>')
    return "".join(texts)


def _span(token: Token, loss: float, blind: float) -> str:
    share = min(max(loss / blind, 0.0), 1.0)
    shown = escape(one_line(token.text, 200)) if token.text else "·"
    return (
        f"{escape(token.space)}"
        f'<span style="--loss:{100 * share:.0f}%" title="{loss:.3f} nats">{shown}</span>'
    )


def memory_rows(memory: Memory) -> np.ndarray:
    """The vectors of a memory: float [rows, d], those of its first array if it has several."""
    leaves = [np.asarray(x)[0] for x in jax.tree.leaves(memory)]
    leaf = next((x for x in leaves if x.ndim > 1 and x.dtype.kind not in "iub"), leaves[0])
    return leaf.astype(np.float32).reshape(-1, leaf.shape[-1])


def moved(trace: Trace, step: int) -> np.ndarray:
    """How far each memory vector is from where this WRITE began: float [rows]."""
    now, first = (memory_rows(trace.steps[k].memory) for k in (step, 0))
    return np.linalg.norm(now - first, axis=-1)


def _memory(trace: Trace, step: int) -> str:
    rows, first, last = (memory_rows(trace.steps[k].memory) for k in (step, 0, -1))
    far, furthest = moved(trace, step), float(moved(trace, trace.last).max(initial=0))
    scale = float(np.quantile(np.abs([first, last]), 0.98)) or 1.0
    drawn = rows[:_MOST_ROWS]
    maps = f"<figure>{_image(drawn, scale)}<figcaption>vectors</figcaption></figure>"
    if trace.last:
        maps += (
            f"<figure>{_image(drawn - first[:_MOST_ROWS], scale)}"
            "<figcaption>their change</figcaption></figure>"
        )
        shares = (100 * far / max(furthest, 1e-9)).tolist()
        bars = "".join(
            f'<s style="width:{share:.1f}%" title="vector {i}: {x:.3f}"></s>'
            for i, (share, x) in enumerate(zip(shares, far.tolist(), strict=True))
            if i < _MOST_ROWS
        )
        maps += (
            f'<figure class="gm-moved"><div>{bars}</div><figcaption>how far</figcaption></figure>'
        )
    height = min(max(5 * len(drawn), 60), 200)
    count = f"{len(rows)} vectors of {rows.shape[1]} numbers"
    more = f", {len(drawn)} drawn" if len(drawn) < len(rows) else ""
    body = f'<div class="gm-maps" style="--height:{height}px">{maps}</div>'
    return _section("The memory", body, f'<span class="gm-quiet">{count}{more}</span>')


def _image(values: np.ndarray, scale: float) -> str:
    """A heat map: blue below zero, orange above, the clearer the nearer to it."""
    share = np.clip(np.abs(values) / scale, 0, 1)
    colors = np.where(values[..., None] < 0, _NEGATIVE, _POSITIVE)
    pixels = np.concatenate([colors, (255 * share)[..., None]], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="heat map" src="data:image/png;base64,{data}">'


def answers(found: Sequence[tuple[str, Sequence[Answer]]]) -> str:
    """Answers to a question, of one memory or of two, each with its name."""
    columns = []
    for name, several in found:
        title = f"<h3>{escape(name)}</h3>" if len(found) > 1 else ""
        columns.append(f'<div class="gm-of">{title}{"".join(map(_answer, several))}</div>')
    return f'<div class="gm-answers">{"".join(columns)}</div>'


def _answer(one: Answer) -> str:
    rows = "".join(
        f'<li title="{share:.2%}"><span>{escape(one_line(token, 40)) or "·"}</span>'
        f'<s><b style="width:{100 * share:.1f}%"></b></s><em>{_percent(share)}</em></li>'
        for token, share in one.likely
    )
    note = f'<p class="gm-quiet">{escape(one_line(one.note, 300))}</p>' if one.note else ""
    said = escape(one_line(one.text, 600)) or "–"
    long = " gm-long" if len(one.text) > _LONGEST_WORD else ""
    return (
        f'<article><header>{escape(one.source)}</header><p class="gm-said{long}">{said}</p>'
        f"<ol>{rows}</ol>{note}</article>"
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "&lt;1%"
