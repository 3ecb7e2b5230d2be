"""Draw the sprites: python -m training.emoji_llava.sprites NotoColorEmoji.ttf lmm_lens/bundled/emoji/sprites.png

The font is Noto Color Emoji (SIL Open Font License 1.1), on Debian in the package fonts-noto-color-emoji.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lmm_lens.bundled.emoji.render import TILE, TILES_PER_ROW
from lmm_lens.bundled.emoji.scenes import EMOJI

DRAWN_AT = 109  # pixels: the one size that the font's bitmaps have


def tile(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji in the middle of a transparent tile."""
    large = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(large).text((10, 10), character, font=font, embedded_color=True)
    thing = large.crop(large.getbbox())
    thing.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    framed = Image.new("RGBA", (TILE, TILE), (0, 0, 0, 0))
    framed.paste(thing, ((TILE - thing.width) // 2, (TILE - thing.height) // 2))
    return framed


def sheet(font_file: Path) -> Image.Image:
    font = ImageFont.truetype(str(font_file), DRAWN_AT)
    rows = -(-len(EMOJI) // TILES_PER_ROW)
    out = Image.new("RGBA", (TILES_PER_ROW * TILE, rows * TILE), (0, 0, 0, 0))
    for i, character in enumerate(EMOJI.values()):
        out.paste(tile(character, font), (i % TILES_PER_ROW * TILE, i // TILES_PER_ROW * TILE))
    return out


if __name__ == "__main__":
    sheet(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
