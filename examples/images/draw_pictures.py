"""Draws pictures of circles, squares and triangles into `pictures/`, beside this file: a small folder of images to try a sweep with."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

PER_CLASS = 150
SIZE = 64  # pixels along a side

if __name__ == "__main__":
    folder = Path(__file__).with_name("pictures")
    generator = random.Random(0)
    for shape in ("circle", "square", "triangle"):
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for number in range(PER_CLASS):
            radius = generator.randint(14, 24)
            x, y = (generator.randint(radius, SIZE - radius) for _ in range(2))
            background, colour = (tuple(generator.randint(low, low + 100) for _ in range(3)) for low in (0, 150))
            picture = Image.new("RGB", (SIZE, SIZE), background)
            pen = ImageDraw.Draw(picture)
            if shape == "circle":
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
            else:
                pen.regular_polygon((x, y, radius), 4 if shape == "square" else 3, rotation=generator.randint(-15, 15), fill=colour)
            picture.save(folder / shape / f"{number:03d}.png")
