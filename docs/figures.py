"""Draws docs/gradmem.png, in half a minute: `python -m docs.figures`.

Left a schematic of WRITE and READ; right the loss of every word of a story, and an answer, given
the memory of the model in experiments/models/babi_qa2 after 0, 1 and 2 WRITE steps.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import gradmem_jax
from experiments.answers.open_model import open_model

matplotlib.use("Agg")

ROOT = pathlib.Path(__file__).parents[1]
STORY = (
    "Mary went to the kitchen. Mary got the milk there. "
    "John moved to the office. Mary travelled to the garden."
)
QUESTION, RIGHT_ANSWER = "Where is the milk?", "garden"
MAX_STEPS = 2
DARKEST_LOSS = 4.0  # nats
SIZE, DPI = (10.8, 4.55), 150  # inches

INK, GREY, RED, GREEN = "#24292f", "#57606a", "#c9443c", "#1a7f37"
MODEL_COLOR, MEMORY_COLOR, TEXT_COLOR = "#d7e5f7", "#f2c14e", "#f1f3f5"
LOSS_COLORS = LinearSegmentedColormap.from_list(
    "loss", ["#ffffff", "#fbd9c9", "#f09c80", "#dd5b4a"]
)
MIDDLE = {"ha": "center", "va": "center", "color": INK}
Point = tuple[float, float]


class Written(NamedTuple):
    """What a memory holds.

    Attributes:
        losses: [S], nats, of every word of the story given the memory and the words before it.
        answer: to the question, from the memory alone.
    """

    losses: np.ndarray
    answer: str


def write_and_ask() -> tuple[list[str], list[Written]]:
    """Returns the words of the story, and what the memory holds after 0, 1, ... steps."""
    opened = open_model(str(ROOT / "experiments/models/babi_qa2"))
    model, params, tokenizer = opened.model, opened.params, opened.tokenizer
    story = tokenizer.encode(STORY)[None]
    question = tokenizer.encode(opened.prompt(QUESTION))[None]
    write = jax.jit(model.write_memory, static_argnames="max_steps")
    measure = jax.jit(model.write_token_losses)
    written = []
    for num_steps in range(MAX_STEPS + 1):
        memory, _ = write(params, story, num_steps=num_steps, max_steps=MAX_STEPS)
        ids = gradmem_jax.generate(model, params, memory, question, 1, stop_id=opened.end_id)
        losses = np.asarray(measure(params, memory, story))[0]
        written.append(Written(losses, tokenizer.decode(np.asarray(ids)[0])))
    return [tokenizer.decode([word]) for word in story[0]], written


def draw_box(ax: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    """Draws a box with round corners; (x, y) is its lower left one."""
    style = "round,pad=0,rounding_size=0.06"
    ax.add_patch(FancyBboxPatch((x, y), width, height, style, fc=color, ec=INK, lw=0.9))


def draw_arrow(ax: Axes, *points: Point, color: str = INK) -> None:
    """Draws a line through points with a head at its end."""
    xs, ys = zip(*points, strict=True)
    ax.plot(xs[:-1], ys[:-1], lw=1.4, color=color, solid_capstyle="butt")
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "lw": 1.4, "color": color}
    ax.add_patch(FancyArrowPatch(*points[-2:], shrinkA=0, shrinkB=0, **style))


def draw_phase(ax: Axes, y: float, name: str, text: str, given: str, result: str) -> None:
    """Draws WRITE or READ: memory and text below the model, the result behind it."""
    ax.text(0, y + 1.6, name, fontsize=13, weight="bold", color=INK, va="center")
    ax.text(0.85, y + 1.59, text, fontsize=10.5, color=GREY, va="center")
    draw_box(ax, 0.02, y, 1.03, 0.38, MEMORY_COLOR)
    ax.text(0.525, y + 0.185, "memory M", fontsize=10.5, **MIDDLE)
    draw_box(ax, 1.2, y, 1.95, 0.38, TEXT_COLOR)
    ax.text(2.175, y + 0.185, given, fontsize=10.5, **MIDDLE)
    draw_box(ax, 0.02, y + 0.74, 3.13, 0.42, MODEL_COLOR)
    ax.text(1.575, y + 0.945, "language model, weights frozen", fontsize=10.5, **MIDDLE)
    draw_arrow(ax, (0.525, y + 0.4), (0.525, y + 0.73))
    draw_arrow(ax, (2.175, y + 0.4), (2.175, y + 0.73))
    draw_arrow(ax, (3.17, y + 0.95), (3.5, y + 0.95))
    ax.text(3.57, y + 0.945, result, fontsize=11.5, color=INK, va="center")


def draw_schematic(ax: Axes) -> None:
    """Draws WRITE above READ, in inches."""
    y = 2.57
    draw_phase(ax, y, "WRITE", "K gradient steps change the memory", "story", "loss $L$")
    loop = [(3.82, y + 0.8), (3.82, y - 0.38), (0.525, y - 0.38), (0.525, y - 0.02)]
    draw_arrow(ax, *loop, color=RED)
    ax.text(
        2.2,
        y - 0.38,
        r"$M \leftarrow M - \alpha \, dL/dM$",
        fontsize=12.5,
        ha="center",
        va="center",
        color=RED,
        bbox={"fc": "white", "lw": 0, "pad": 3},
    )
    draw_phase(ax, 0.1, "READ", "the story is gone", QUESTION, RIGHT_ANSWER)


def draw_words(ax: Axes, x: float, y: float, words: Sequence[str], losses: np.ndarray) -> None:
    """Draws words in a line, each on the color of its loss."""
    to_inches = ax.transData.inverted().transform
    for word, loss in zip(words, losses, strict=True):
        shown = ax.text(x + 0.04, y, word, fontsize=11.5, color=INK, va="center")
        end = to_inches(shown.get_window_extent().max)[0] + 0.04
        color = LOSS_COLORS(min(float(loss) / DARKEST_LOSS, 1.0))
        ax.add_patch(plt.Rectangle((x, y - 0.135), end - x, 0.27, fc=color, lw=0, zorder=0))
        x = end + 0.025


def draw_scale(ax: Axes, x: float, y: float) -> None:
    """Draws what the colors of words mean; x is the right end."""
    small = {"fontsize": 10.5, "color": GREY, "va": "center"}
    ax.text(x - 1.72, y, "loss of a word, nats", ha="right", **small)
    ax.text(x - 1.55, y, "0", ha="center", **small)
    ax.text(x, y, f"{DARKEST_LOSS:.0f}+", ha="right", **small)
    ramp, edges = np.linspace(0, 1, 256)[None], (x - 1.42, x - 0.3, y - 0.09, y + 0.09)
    ax.imshow(ramp, cmap=LOSS_COLORS, extent=edges, aspect="auto")


def draw_memories(ax: Axes, words: list[str], written: list[Written]) -> None:
    """Draws what the memory holds after each number of steps, in inches."""
    width, height = ax.get_xlim()[1], ax.get_ylim()[1]
    ax.text(0, 4.17, "After K steps", fontsize=13, weight="bold", color=INK, va="center")
    draw_scale(ax, width, 4.16)
    ax.set(xlim=(0, width), ylim=(0, height))
    half = words.index(".", words.index(".") + 1) + 1
    for num_steps, (losses, answer) in enumerate(written):
        y = 3.12 - 1.28 * num_steps
        header = {"y": y + 0.42, "va": "center"}
        ax.text(0, s=f"K = {num_steps}", fontsize=11.5, weight="bold", color=INK, **header)
        ax.text(0.7, s=f"mean loss {losses.mean():.2f}", fontsize=10.5, color=GREY, **header)
        ax.text(3.05, s=QUESTION, fontsize=10.5, color=GREY, **header)
        color = GREEN if answer == RIGHT_ANSWER else RED
        ax.text(4.55, s=answer, fontsize=11.5, weight="bold", color=color, **header)
        draw_words(ax, 0, y + 0.07, words[:half], losses[:half])
        draw_words(ax, 0, y - 0.24, words[half:], losses[half:])


def draw(path: pathlib.Path) -> None:
    """Draws the figure into a file."""
    words, written = write_and_ask()
    figure = plt.figure(figsize=SIZE, dpi=DPI, facecolor="white")
    panels = []
    for left, width in ((0.3, 4.7), (5.3, 5.2)):
        place = (left / SIZE[0], 0.1 / SIZE[1], width / SIZE[0], 4.4 / SIZE[1])
        panel = figure.add_axes(place)
        panel.set(xlim=(0, width), ylim=(0, 4.4))
        panel.axis("off")
        panels.append(panel)
    draw_schematic(panels[0])
    draw_memories(panels[1], words, written)
    figure.savefig(path, pil_kwargs={"optimize": True})
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/gradmem.png")
    draw(parser.parse_args().out)
