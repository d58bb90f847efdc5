"""Makes the pictures in this folder (needs Pillow)."""
import struct
import zlib
from pathlib import Path

from PIL import Image

here = Path(__file__).parent


def corners():
    """32 x 16, a colour for each quarter: red, green; blue, white."""
    picture = Image.new("RGB", (32, 16), (255, 0, 0))
    picture.paste((0, 255, 0), (16, 0, 32, 8))
    picture.paste((0, 0, 255), (0, 8, 16, 16))
    picture.paste((255, 255, 255), (16, 8, 32, 16))
    return picture


def png(name, width, height, depth, colour, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    (here / name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


corners().save(here / "corners.jpg", quality=95, subsampling=0)
corners().save(here / "progressive.jpg", quality=95, subsampling=0, progressive=True)
corners().convert("CMYK").save(here / "cmyk.jpg")
corners().convert("L").save(here / "grey.jpg", quality=95)
corners().save(here / "corners.bmp")
corners().save(here / "corners.webp", quality=95)
exif = Image.Exif()
exif[0x0112] = 6  # turned by 90 degrees
corners().save(here / "turned.webp", lossless=True, exif=exif)
corners().save(here / "animated.webp", save_all=True, append_images=[corners().rotate(180)])
with_alpha = Image.new("RGBA", (2, 1), (200, 100, 0, 255))
with_alpha.putpixel((1, 0), (200, 100, 0, 51))
with_alpha.save(here / "rgba.webp", lossless=True, exact=True)
palette = corners().quantize(4)
palette.save(here / "palette.png", transparency=palette.getpixel((0, 0)))  # red is transparent
# 257 is 1 in 8 bits, 384 rounds down to 1 and 386 up to 2.
png("grey16.png", 4, 1, 16, 0, [struct.pack(">4H", 0, 384, 386, 65535)])
png("rgba16.png", 2, 1, 16, 6, [struct.pack(">8H", 65535, 0, 32768, 65535, 0, 65535, 1, 32768)])
png("grey_alpha.png", 3, 1, 8, 4, [bytes([10, 255, 10, 0, 0, 128])])
png("rgba.png", 2, 1, 8, 6, [bytes([200, 100, 0, 255, 200, 100, 0, 51])])
