#!/usr/bin/env python3
"""Makes examples/pictures again, byte for byte: 48 small pictures, and 4 broken files on purpose.

    python3 -m venv /tmp/pictures && /tmp/pictures/bin/pip install pillow==12.0.0
    /tmp/pictures/bin/python examples/make_pictures.py            # writes examples/pictures
    /tmp/pictures/bin/python examples/make_pictures.py --check    # compares, writes nothing

Everything is drawn here: no photographs, nobody's rights. Another Pillow draws the same pictures,
but its encoders may give other bytes; that is why the version is pinned.
"""

import argparse
import io
import math
import pathlib
import random
import sys

import PIL
from PIL import Image, ImageDraw

PILLOW = "12.0.0"
# Shapes are drawn this many times larger and then averaged, since ImageDraw doesn't smooth edges.
ZOOM = 4

SKIN = ["#f6d7c0", "#eac09a", "#d9a377", "#b97b50", "#8d5a3a", "#5f3b28"]
HAIR = ["#1c1715", "#3b2618", "#6b4324", "#a8692d", "#d8b46a", "#8c8c90"]
CLOTH = ["#33658a", "#86bbd8", "#758e4f", "#f6ae2d", "#f26419", "#6d597a", "#355070", "#b56576"]
WALL = [("#dfe7ec", "#aebfc9"), ("#f3e9dc", "#d5bfa1"), ("#e3ecdf", "#b0c4a4"), ("#ece3f0", "#bfa9cc")]

PEOPLE = (
    "amara bruno chiara dmitri elif farid greta hiro ines jonas "
    "kofi leila mateo nadia olu priya quentin rosa sven tala"
).split()
PLACES = (
    "alps-dawn alps-night bay-evening bay-morning city-dusk city-night city-noon desert-noon "
    "desert-evening forest-fog forest-summer hills-autumn hills-spring lake-noon lake-night island-dawn"
).split()
THINGS = (
    "apple balloon checker cup die flag fish moon-phases pinwheel spiral tiles traffic-light"
).split()


def rgb(colour):
    """'#rrggbb' as numbers."""
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def mix(a, b, share):
    """The colour `share` of the way from a to b."""
    return tuple(round(x + (y - x) * share) for x, y in zip(rgb(a), rgb(b)))


class Canvas:
    """A picture drawn ZOOM times larger, in coordinates of the final size."""

    def __init__(self, width, height, top, bottom):
        self.size = (width, height)
        column = Image.new("RGB", (1, height * ZOOM))
        for y in range(height * ZOOM):
            column.putpixel((0, y), mix(top, bottom, y / (height * ZOOM - 1)))
        self.image = column.resize((width * ZOOM, height * ZOOM), Image.Resampling.NEAREST)
        self.draw = ImageDraw.Draw(self.image)

    @staticmethod
    def _scaled(points):
        return [round(p * ZOOM) for p in points]

    def ellipse(self, cx, cy, rx, ry, fill):
        self.draw.ellipse(self._scaled((cx - rx, cy - ry, cx + rx, cy + ry)), fill=fill)

    def box(self, x0, y0, x1, y1, fill, radius=0):
        self.draw.rounded_rectangle(self._scaled((x0, y0, x1, y1)), radius * ZOOM, fill=fill)

    def polygon(self, points, fill):
        self.draw.polygon([tuple(self._scaled(p)) for p in points], fill=fill)

    def line(self, points, fill, width):
        self.draw.line([tuple(self._scaled(p)) for p in points], fill, round(width * ZOOM), joint="curve")

    def arc(self, cx, cy, rx, ry, start, end, fill, width):
        area = self._scaled((cx - rx, cy - ry, cx + rx, cy + ry))
        self.draw.arc(area, start, end, fill, round(width * ZOOM))

    def pie(self, cx, cy, r, start, end, fill):
        self.draw.pieslice(self._scaled((cx - r, cy - r, cx + r, cy + r)), start, end, fill=fill)

    def done(self):
        return self.image.resize(self.size, Image.Resampling.BOX)


def face(number):
    """A portrait; every trait follows from the number."""
    dice = random.Random(f"face {number}")
    skin = SKIN[number % len(SKIN)]
    shade = mix(skin, "#2a1a12", 0.18)
    hair = HAIR[int(dice.random() * len(HAIR))]
    cloth = CLOTH[number % len(CLOTH)]
    c = Canvas(176, 208, *WALL[number % len(WALL)])
    wide = 40 + dice.random() * 8
    tall = 52 + dice.random() * 6
    x, y = 88 + dice.random() * 6 - 3, 96
    long_hair = dice.random() < 0.45

    if long_hair:
        c.ellipse(x, y - 4, wide + 13, tall + 10, hair)
        c.box(x - wide - 13, y - 4, x + wide + 13, y + 62, hair, 16)
    c.ellipse(x, 222, 74, 62, cloth)
    c.polygon([(x - 20, 160), (x + 20, 160), (x, 190)], mix(cloth, "#ffffff", 0.35))
    c.box(x - 16, y + 30, x + 16, 172, shade, 12)
    for side in (-1, 1):
        c.ellipse(x + side * wide, y + 4, 8, 12, shade)
    if not long_hair:
        c.ellipse(x, y - 16, wide + 4, tall - 4, hair)
    c.ellipse(x, y, wide, tall, skin)
    # The fringe: the upper part of the head, cut by a slanted line.
    slant = dice.random() * 24 - 12
    c.polygon(
        [
            (x + wide * math.cos(a), y - tall * math.sin(a))
            for a in [math.radians(d) for d in range(24, 157, 4)]
        ]
        + [(x - wide * 0.8, y - 26 - slant), (x + wide * 0.8, y - 26 + slant)],
        hair,
    )
    gap = wide * 0.42
    iris = ["#3c2415", "#2f5d62", "#4a6fa5", "#5b7f3a"][int(dice.random() * 4)]
    look = dice.random() * 4 - 2
    for side in (-1, 1):
        ex = x + side * gap
        c.ellipse(ex, y - 4, 8, 5.5, "#fbfbf8")
        c.ellipse(ex + look, y - 4, 4.2, 4.6, iris)
        c.ellipse(ex + look, y - 4, 2, 2.2, "#101010")
        c.ellipse(ex + look + 1.2, y - 5.4, 0.9, 0.9, "#ffffff")
        c.arc(ex, y - 10, 11, 7, 205, 335, mix(hair, "#000000", 0.25), 2.4)
    c.line([(x + 1, y), (x + 5, y + 14), (x - 2, y + 16)], shade, 2)
    mouth = mix(skin, "#a3283a", 0.55)
    mood = dice.random()
    if mood < 0.4:
        c.pie(x, y + 25, 13, 10, 170, mouth)
        c.box(x - 9, y + 27.5, x + 9, y + 30.5, "#ffffff", 1)
    elif mood < 0.8:
        c.arc(x, y + 20, 14, 11, 25, 155, mouth, 3)
    else:
        c.line([(x - 11, y + 30), (x + 11, y + 29)], mouth, 3)
    if dice.random() < 0.3:
        for side in (-1, 1):
            c.arc(x + side * gap, y - 4, 13, 11, 0, 360, "#24262b", 2)
        c.line([(x - gap + 13, y - 5), (x + gap - 13, y - 5)], "#24262b", 2)
    if not long_hair and dice.random() < 0.35:
        beard = mix(hair, skin, 0.25)
        c.arc(x, y + 2, wide - 3, tall - 3, 30, 150, beard, 9)
    return c.done()


SKY = {
    "dawn": ("#5b6fa8", "#f7c8a0"),
    "morning": ("#7fb2e5", "#f3ead7"),
    "noon": ("#3f8fd8", "#cfe8f7"),
    "evening": ("#3a3d78", "#f08a5d"),
    "dusk": ("#2b2d5b", "#d97b66"),
    "night": ("#070b1f", "#27335c"),
    "fog": ("#aab4b8", "#dfe4e3"),
    "summer": ("#4a9be0", "#dff1f7"),
    "autumn": ("#88a9c4", "#f2ddb5"),
    "spring": ("#79b8ea", "#eaf5e1"),
}
GROUND = {
    "alps": ("#8fa3bd", "#2c3e50"),
    "bay": ("#7ba3a8", "#12496b"),
    "city": ("#6c7390", "#171b2e"),
    "desert": ("#e8bf7a", "#a5622a"),
    "forest": ("#7fa08a", "#173a2a"),
    "hills": ("#a9b665", "#3f6b35"),
    "lake": ("#88a6b5", "#1f5673"),
    "island": ("#9ab0c8", "#1d5a7a"),
}


def ridge(dice, width, base, height, rough):
    """Points of a ridge from left to right, by halving: each new point is the middle, moved."""
    points = [(0, base - height * dice.random()), (width, base - height * dice.random())]
    step = height
    while len(points) < 130:
        finer = []
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            finer += [(x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2 + (dice.random() - 0.5) * step)]
        points = finer + [points[-1]]
        step *= rough
    return points


def place(name):
    """A landscape: the first word says what stands there, the second when."""
    what, when = name.split("-")
    dice = random.Random(f"place {name}")
    width, height = 256, 160
    c = Canvas(width, height, *SKY[when])
    dark = when in ("night", "dusk")
    sun = 40 + dice.random() * 176
    if when == "night":
        for _ in range(70):
            c.ellipse(dice.random() * width, dice.random() * 90, 0.6, 0.6, "#e8ecff")
    if when != "fog":
        low = when in ("dawn", "evening", "dusk")
        c.ellipse(sun, 78 if low else 32, 13, 13, "#f4f1e0" if dark else "#fff3c4")
    if when in ("noon", "summer", "spring", "morning"):
        for _ in range(3):
            x, y = dice.random() * width, 18 + dice.random() * 36
            for _ in range(5):
                c.ellipse(x + dice.random() * 36, y + dice.random() * 6, 12, 6, "#ffffff")
    far, near = GROUND[what]
    rough = {"alps": 0.56, "desert": 0.34, "hills": 0.36}.get(what, 0.46)
    for layer in range(4):
        share = layer / 3
        fill = mix(far, near, share)
        if dark:
            fill = mix("#%02x%02x%02x" % fill, "#05070f", 0.45)
        base = 96 + layer * 18
        points = ridge(dice, width, base, 44 - layer * 9, rough)
        c.polygon(points + [(width, height), (0, height)], fill)
        if what == "forest" or (what == "hills" and layer == 3):
            for _ in range(26):
                x = dice.random() * width
                y = min(points, key=lambda p: abs(p[0] - x))[1]
                size = 9 + layer * 4 + dice.random() * 6
                tree = mix("#%02x%02x%02x" % fill, "#061a10", 0.25)
                c.polygon([(x - size * 0.4, y + 4), (x, y - size), (x + size * 0.4, y + 4)], tree)
    if what == "city":
        x = 0
        while x < width:
            w, h = 12 + dice.random() * 18, 30 + dice.random() * 62
            wall = mix("#23273d", "#4c5470", dice.random())
            c.box(x, height - h, x + w - 1, height, wall)
            for wy in range(int(height - h) + 4, height - 4, 6):
                for wx in range(int(x) + 2, int(x + w) - 4, 5):
                    lit = dice.random() < (0.5 if dark else 0.2)
                    c.box(wx, wy, wx + 2, wy + 3, "#ffd978" if lit else "#1b2033")
            x += w
    if what in ("bay", "lake", "island"):
        level = 118
        top, bottom = SKY[when]
        for y in range(level, height):
            c.box(0, y, width, y + 1, mix(near, "#%02x%02x%02x" % mix(bottom, top, 0.4), 0.55 - (y - level) / 90))
        for _ in range(60):
            y = level + 2 + dice.random() * 38
            x = sun + (dice.random() - 0.5) * (20 + (y - level) * 2)
            c.line([(x - 5, y), (x + 5, y)], mix(near, "#fff3c4", 0.7), 0.8)
    if what == "island":
        c.ellipse(150, 121, 40, 9, "#d8b982")
        c.line([(150, 118), (158, 84)], "#6b4a2b", 3)
        for angle in (150, 190, 230, 310, 350, 30):
            a = math.radians(angle)
            c.line([(158, 84), (158 + 18 * math.cos(a), 84 + 12 * math.sin(a) + 3)], "#2f6b3a", 3.4)
    return c.done()


def thing(name):
    """An icon or a pattern; two of them are animations, given as lists."""
    size = 128
    middle = size / 2
    c = Canvas(size, size, "#f4f6f8", "#d7dee5")
    if name == "apple":
        c.ellipse(48, 74, 30, 34, "#c8352b")
        c.ellipse(78, 74, 30, 34, "#d8443a")
        c.ellipse(44, 62, 7, 11, "#ef9a90")
        c.line([(63, 46), (66, 24)], "#5a3a22", 4)
        c.ellipse(80, 30, 14, 6, "#5d9c3f")
    elif name == "balloon":
        c.line([(64, 86), (60, 104), (67, 124)], "#5b6470", 1.5)
        c.polygon([(58, 92), (70, 92), (64, 84)], "#a8263d")
        c.ellipse(64, 50, 32, 38, "#d6405a")
        c.ellipse(53, 36, 8, 12, "#f2a3b1")
    elif name == "checker":
        for x in range(8):
            for y in range(8):
                if (x + y) % 2:
                    c.box(x * 16, y * 16, x * 16 + 16, y * 16 + 16, "#2f3e4e")
    elif name == "cup":
        c.arc(88, 66, 16, 16, 270, 90, "#33658a", 7)
        c.box(30, 42, 88, 100, "#33658a", 10)
        c.ellipse(59, 44, 29, 7, "#5c3b24")
        for x in (48, 60, 72):
            c.line([(x, 34), (x + 4, 26), (x - 2, 18), (x + 2, 10)], "#a9b4bd", 2)
    elif name == "die":
        c.box(20, 20, 108, 108, "#fdfdfb", 16)
        for x, y in ((42, 42), (86, 42), (64, 64), (42, 86), (86, 86)):
            c.ellipse(x, y, 9, 9, "#1f2933")
    elif name == "flag":
        c.line([(24, 12), (24, 120)], "#6b4a2b", 5)
        for band, fill in enumerate(("#264653", "#e9c46a", "#e76f51")):
            top = [(27 + x, 20 + band * 20 + 4 * math.sin(x / 12)) for x in range(0, 85, 4)]
            c.polygon(top + [(x, y + 20) for x, y in reversed(top)], fill)
    elif name == "fish":
        c.polygon([(28, 64), (8, 44), (8, 84)], "#e07a2f")
        c.ellipse(66, 64, 42, 26, "#f2913d")
        for x in (52, 72):
            c.arc(x, 64, 10, 24, 280, 80, "#ffffff", 5)
        c.ellipse(92, 57, 6, 6, "#ffffff")
        c.ellipse(93, 57, 3, 3, "#101820")
    elif name == "tiles":
        for x in range(0, size, 32):
            for y in range(0, size, 32):
                c.pie(x, y, 32, 0, 90, CLOTH[(x // 32 + y // 32) % 4])
                c.pie(x + 32, y + 32, 20, 180, 270, CLOTH[4 + (x // 32 + y // 16) % 4])
    elif name == "traffic-light":
        c.box(40, 8, 88, 120, "#20262d", 12)
        for y, fill in ((28, "#e5383b"), (64, "#f9c74f"), (100, "#43aa8b")):
            c.ellipse(64, y, 15, 15, fill)
    elif name == "spiral":
        points = []
        for step in range(0, 1440, 6):
            r, a = 4 + step / 26, math.radians(step)
            points.append((middle + r * math.cos(a), middle + r * math.sin(a)))
        c.line(points, "#6d597a", 4)
    elif name == "pinwheel":
        frames = []
        for turn in range(0, 90, 15):
            c = Canvas(72, 72, "#f4f6f8", "#d7dee5")
            for blade in range(4):
                c.pie(36, 36, 32, turn + blade * 90, turn + blade * 90 + 45, CLOTH[blade * 2])
            c.ellipse(36, 36, 4, 4, "#20262d")
            frames.append(c.done())
        return frames
    elif name == "moon-phases":
        frames = []
        for shift in range(-36, 37, 12):
            c = Canvas(72, 72, "#070b1f", "#141c3a")
            c.ellipse(36, 36, 24, 24, "#efe9d2")
            c.ellipse(36 + shift, 36, 24, 24, "#0d1430")
            frames.append(c.done())
        return frames
    else:
        raise ValueError(name)
    return c.done()


def encoded(image, kind, **options):
    """The file's bytes."""
    out = io.BytesIO()
    if isinstance(image, list):
        frames = [f.quantize(48, dither=Image.Dither.NONE) for f in image]
        frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=120, loop=0)
    else:
        image.save(out, kind, **options)
    return out.getvalue()


def pictures():
    """Path to bytes of the 48 whole pictures: JPEG (baseline, progressive, grey), PNG (RGB, palette,
    grey, with alpha), WebP (both ways) and GIF, since a real folder has all of them."""
    files = {}
    for number, name in enumerate(PEOPLE):
        image = face(number)
        if number % 10 == 9:
            files[f"faces/{name}.png"] = encoded(image.quantize(96, dither=Image.Dither.NONE), "PNG")
        elif number % 10 == 4:
            files[f"faces/{name}.jpg"] = encoded(image.convert("L"), "JPEG", quality=84)
        else:
            files[f"faces/{name}.jpg"] = encoded(image, "JPEG", quality=84, progressive=number % 3 == 0)
    for number, name in enumerate(PLACES):
        image = place(name)
        if number % 8 == 3:
            files[f"places/{name}.webp"] = encoded(image, "WEBP", quality=80, method=4)
        elif number % 8 == 6:
            files[f"places/{name}.png"] = encoded(image, "PNG", optimize=True)
        else:
            files[f"places/{name}.jpeg"] = encoded(image, "JPEG", quality=82, progressive=number % 2 == 0)
    for name in THINGS:
        image = thing(name)
        if isinstance(image, list):
            files[f"things/{name}.gif"] = encoded(image, "GIF")
        elif name == "tiles":
            files[f"things/{name}.webp"] = encoded(image, "WEBP", lossless=True, method=4)
        elif name == "die":
            files[f"things/{name}.png"] = encoded(image.convert("L"), "PNG", optimize=True)
        elif name in ("apple", "balloon"):
            image.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda v: 255 - v // 3))
            files[f"things/{name}.png"] = encoded(image, "PNG", optimize=True)
        else:
            files[f"things/{name}.png"] = encoded(image, "PNG", optimize=True)
    return files


def broken(whole):
    """Path to bytes of the 4 files that no decoder takes for a picture."""
    png = whole["places/city-noon.png"]
    jpeg = whole["faces/bruno.jpg"]
    # A JPEG with damaged pixels decodes to a damaged picture; without its tables and frame header it
    # can't be decoded. No 0xff in the garbage, so that it holds no marker either.
    dice = random.Random("garbage")
    garbage = bytes(int(dice.random() * 255) for _ in range(len(jpeg) // 2))
    return {
        # A copy that stopped half-way.
        "places/city-noon-copy.png": png[: len(png) // 2],
        # The first half, after the JFIF header, was overwritten.
        "faces/bruno-recovered.jpg": jpeg[:20] + garbage + jpeg[20 + len(garbage) :],
        # Somebody's note, saved under the wrong name.
        "things/read-me-first.png": b"The pictures of the second week are still on the camera.\n",
        # The camera's card was full.
        "faces/unnamed.jpg": b"",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).resolve().parent
    parser.add_argument("--out", type=pathlib.Path, default=here / "pictures", help="folder to write to")
    parser.add_argument("--check", action="store_true", help="compare with the folder, write nothing")
    args = parser.parse_args()
    if PIL.__version__ != PILLOW:
        print(f"this is Pillow {PIL.__version__}, not {PILLOW}: the bytes may differ", file=sys.stderr)

    whole = pictures()
    files = whole | broken(whole)
    if args.check:
        there = {p.relative_to(args.out).as_posix(): p.read_bytes() for p in args.out.rglob("*") if p.is_file()}
        wrong = sorted(name for name in there.keys() | files.keys() if there.get(name) != files.get(name))
        for name in wrong:
            print(f"differs: {name}")
        print(f"{len(files)} files compared, {len(wrong)} differ")
        return 1 if wrong else 0
    for name, content in files.items():
        path = args.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"{len(whole)} pictures and {len(files) - len(whole)} broken files, {sum(map(len, files.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
