"""Draws the pictures of the explanations: `python docs/pictures.py` writes docs/pictures/*.svg.

What can be asked of the program is asked: the order of images and the shares of ranks come from the sampler, the sums
of floats from Python. A picture has a background of its own, light or dark as the reader's system is, and is narrow,
so that its text stays readable on a phone.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from mnist_dist.data.sampler import GlobalBatchSampler

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 480
RANKS = ("blue", "orange", "green", "purple")
"""Colour of each rank."""
STYLE = """\
text { font: 14px system-ui, sans-serif; fill: #1d2330 }
.small { font-size: 12px } .mono { font-family: ui-monospace, monospace; font-size: 13px } .bold { font-weight: 600 }
.page { fill: #ffffff } .box { fill: #eef0f4; stroke: #8b93a3 } .line { stroke: #5b6374; stroke-width: 1.5; fill: none }
.none { fill: none; stroke: #8b93a3; stroke-dasharray: 3 3 }
.blue { fill: #cfe0fb; stroke: #3b6fc4 } .orange { fill: #fde0c0; stroke: #b8691a }
.green { fill: #cdeccf; stroke: #3c8a42 } .purple { fill: #e6d6f7; stroke: #7a4fb0 }
.red { fill: #fbd0d0; stroke: #c03030 }
@media (prefers-color-scheme: dark) {
text { fill: #e8ebf2 }
.page { fill: #1e2129 } .box { fill: #2c313c; stroke: #7d8696 } .line { stroke: #a8b0c0 } .none { stroke: #7d8696 }
.blue { fill: #1f3a66; stroke: #7fb0ff } .orange { fill: #5c3a14; stroke: #f0a860 }
.green { fill: #1f4a26; stroke: #7fd08a } .purple { fill: #43295f; stroke: #c0a0f0 }
.red { fill: #642020; stroke: #ff9090 }
}"""


class Picture:
    """An SVG of `WIDTH` by `height`, with a title for those who cannot see it."""

    def __init__(self, title: str, height: int) -> None:
        self.title, self.height = title, height
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """A line of text, whose baseline is at `y`."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box", *lines: str) -> None:
        """A rectangle with lines of text in its middle."""
        size = f'width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" {size} rx="4" class="{kind}"/>')
        for i, line in enumerate(lines):
            self.text(x + width / 2, y + height / 2 + 5 + 16 * (i - (len(lines) - 1) / 2), line, "small", "middle")

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A line with a head at its end."""
        self.parts.append(f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" class="line" marker-end="url(#head)"/>')

    def line(self, *points: tuple[float, float]) -> None:
        """A line through points."""
        self.parts.append(f'<path d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}" class="line"/>')

    def svg(self) -> str:
        """The whole file."""
        head = (
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 L8 4 L0 8" class="line"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<style>\n{STYLE}\n</style>",
                f"<defs>{head}</defs>",
                f'<rect width="{WIDTH}" height="{self.height}" rx="8" class="page"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def draw_order(images: int = 10, batch_size: int = 4) -> Picture:
    """One epoch of ten images: the permutation, its global batches, and the slices of 1, 2 and 4 processes."""
    picture = Picture("One permutation an epoch, cut into global batches; a process computes a slice of each", 350)
    size, gap = 34, 16
    sampler = GlobalBatchSampler(images, batch_size)
    order = sampler.permutation().tolist()

    def column(position: int) -> float:
        return 24 + position * (size + 2) + position // batch_size * gap

    picture.text(24, 28, "epoch 0 of seed 0: one permutation of the images", "bold")
    for position, image in enumerate(order):
        picture.box(column(position), 40, size, size, "box", str(image))
    for step, first in enumerate(range(0, images, batch_size)):
        last = min(first + batch_size, images) - 1
        left, right = column(first), column(last) + size
        picture.line((left, 82), (left, 88), (right, 88), (right, 82))
        picture.text((left + right) / 2, 106, f"step {step + 1}: {last - first + 1} images", "small", "middle")
    for row, world_size in enumerate((1, 2, 4)):
        y = 130 + row * 66
        picture.text(24, y + 8, f"{world_size} process{'es' * (world_size > 1)}", "bold")
        for rank in range(world_size):
            share = GlobalBatchSampler(images, batch_size, rank=rank, world_size=world_size)
            for batch in share.batches():
                for position in range(batch.shards[0][0].start, batch.shards[-1][-1].stop):
                    picture.box(column(position), y + 16, size, 28, RANKS[rank], str(order[position]))
    for rank in range(4):
        picture.box(24 + rank * 76, 324, 12, 12, RANKS[rank])
        picture.text(41 + rank * 76, 335, f"rank {rank}", "small")
    return picture


def draw_exact_metrics() -> Picture:
    """Counts of three ranks, added as integers and divided once; the same as floats, in two orders."""
    picture = Picture("Each rank counts integers; one all-reduce adds them, one division makes the metric", 312)
    counts = ((3411, 3344), (3308, 3251), (3281, 3222))
    picture.text(24, 28, "each rank counts the images that it evaluated", "bold")
    for rank, (count, correct) in enumerate(counts):
        picture.box(24 + rank * 148, 40, 136, 48, RANKS[rank], f"rank {rank}", f"{correct} of {count} right")
        picture.arrow(92 + rank * 148, 90, 92 + rank * 148 + (1 - rank) * 50, 116)
    count, correct = (sum(values) for values in zip(*counts, strict=True))
    picture.box(100, 120, 280, 34, "box", f"one all-reduce of int64: {correct} of {count}")
    picture.arrow(240, 156, 240, 178)
    picture.box(100, 182, 280, 34, "box", f"one division: accuracy {correct / count:.4f}")
    picture.text(24, 246, "the same losses as floats, added in two orders", "bold")
    picture.text(24, 268, f"(0.1 + 0.2) + 0.3 = {(0.1 + 0.2) + 0.3!r}", "mono")
    picture.text(24, 288, f"0.1 + (0.2 + 0.3) = {0.1 + (0.2 + 0.3)!r}", "mono")
    return picture


def draw_fixed_shards() -> Picture:
    """Four shards, their gradients added along one tree, computed by 1, 2 or 4 processes."""
    picture = Picture("Four shards of a batch, their gradients added along one tree, on 1, 2 or 4 processes", 372)
    picture.text(24, 28, "256 images: four shards, each computed alone", "bold")
    centres = [78 + shard * 108 for shard in range(4)]
    for shard, x in enumerate(centres):
        picture.box(x - 48, 40, 96, 34, "box", f"shard {shard}: 64")
        picture.arrow(x, 76, x, 92)
        picture.box(x - 48, 96, 96, 30, "box", f"gradient {shard}")
    for left in (0, 2):
        middle = (centres[left] + centres[left + 1]) / 2
        picture.arrow(centres[left], 128, middle - 10, 148)
        picture.arrow(centres[left + 1], 128, middle + 10, 148)
        picture.box(middle - 48, 152, 96, 30, "box", f"{left} + {left + 1}")
        picture.arrow(middle, 184, 240 + (10 if left else -10), 206)
    picture.box(160, 210, 160, 30, "box", "(0 + 1) + (2 + 3)")
    picture.text(24, 268, "who computes which shard changes no sum", "bold")
    for row, world_size in enumerate((1, 2, 4)):
        y = 280 + row * 28
        picture.text(24, y + 16, f"{world_size} process{'es' * (world_size > 1)}", "small")
        for shard in range(4):
            rank = shard * world_size // 4
            picture.box(104 + shard * 90, y, 86, 24, RANKS[rank], f"rank {rank}")
    return picture


def draw_resume() -> Picture:
    """A run of eight steps, undisturbed, and killed after step 6 and started again from the checkpoint of step 4."""
    picture = Picture(
        "A run that is killed after step 6 goes on from its checkpoint of step 4, to the same weights", 348
    )

    def steps(y: float, numbers: range, kind: str) -> None:
        for step in numbers:
            picture.box(24 + (step - 1) * 46, y, 40, 30, kind, str(step))

    picture.text(24, 28, "undisturbed", "bold")
    steps(38, range(1, 9), "blue")
    picture.text(398, 58, "weights A", "small")
    picture.text(24, 102, "killed after step 6", "bold")
    steps(112, range(1, 5), "blue")
    steps(112, range(5, 7), "none")
    picture.box(24 + 6 * 46, 112, 84, 30, "red", "SIGKILL")
    picture.arrow(182, 146, 182, 168)
    picture.text(192, 162, "checkpoint of step 4: whole, or absent", "small")
    steps(172, range(5, 9), "blue")
    picture.text(398, 192, "weights A", "small")
    picture.text(24, 192, "same command", "small")
    picture.text(24, 236, "saved", "bold")
    for i, line in enumerate(("weights, optimizer, average", "step and epoch", "counts so far")):
        picture.box(24, 246 + i * 30, 200, 26, "green", line)
    picture.text(250, 236, "not saved: follows from", "bold")
    for i, line in enumerate(("order: seed, epoch", "augmentation: seed, epoch", "dropout: seed, step, shard")):
        picture.box(250, 246 + i * 30, 206, 26, "none", line)
    return picture


def draw_watchdog() -> Picture:
    """Three ranks: one is stuck, the others wait, ask everyone, and name it."""
    picture = Picture("Rank 1 is stuck; the others wait for run.timeout, ask every rank, name rank 1, and end", 306)
    left, stuck, asked, named = 72, 150, 292, 372
    for rank in range(3):
        y = 60 + rank * 52
        picture.text(16, y + 20, f"rank {rank}", "bold")
        picture.box(left, y, stuck - left - 4, 30, RANKS[rank], "step 7")
        if rank == 1:
            picture.box(stuck, y, 262, 30, "red", "stuck in my_net.py:12 forward")
            picture.box(stuck + 266, y, 50, 30, "box", "ended")
        else:
            picture.box(stuck, y, asked - stuck - 4, 30, "none", "waits in all-reduce")
            picture.box(asked, y, named - asked - 4, 30, "box", "asks all")
            picture.box(named, y, 94, 30, "box", "names rank 1")
    picture.text(stuck, 30, "run.timeout", "small")
    picture.line((stuck, 36), (stuck, 42), (asked - 4, 42), (asked - 4, 36))
    picture.text(asked, 30, "3 s at most", "small")
    picture.line((asked, 36), (asked, 42), (named - 4, 42), (named - 4, 36))
    picture.text(16, 236, "the answer of a rank, from a thread of its own", "bold")
    for i, line in enumerate(
        ("waiting: it is not the one", "busy: stuck, and where", "no answer: stopped, killed or out of reach")
    ):
        picture.text(16, 256 + i * 18, f"- {line}", "small")
    return picture


PICTURES = {
    "order": draw_order,
    "exact-metrics": draw_exact_metrics,
    "fixed-shards": draw_fixed_shards,
    "resume": draw_resume,
    "watchdog": draw_watchdog,
}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg())
