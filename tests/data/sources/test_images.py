"""Images of all common formats are decoded to the saved pixels."""

import struct
import sys
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fedprox.data.sources.images import CHUNK, Wanted, decode, decoded, full_range
from fedprox.errors import UserError
from tests.data.refusals import line_of

AS_IS = Wanted(size=None, channels=None, skip_broken=False)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = COLOURS[:, :, 0]


def saved(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("png", {}), ("bmp", {}), ("tiff", {}), ("ppm", {}), ("tga", {}), ("webp", {"lossless": True}), ("jpeg2000", {})],
)
def test_lossless_formats_give_the_saved_pixels(kind, options):
    assert (decode(saved(COLOURS, kind, **options), AS_IS) == COLOURS).all()


def test_a_jpeg_is_near_the_saved_pixels():
    smooth = np.add.outer(np.arange(0, 160, 10), np.arange(0, 80, 5)).astype(np.uint8)
    pixels = decode(saved(smooth, "jpeg", quality=95), AS_IS).astype(int)
    assert np.abs(pixels - smooth[:, :, None]).max() <= 4  # quantised, by steps of a few levels at this quality


def test_a_program_in_postscript_is_not_an_image():
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(OSError, match="cannot identify image file"):
        decode(program, AS_IS)


def test_an_animation_gives_its_first_image():
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    content = saved(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode(content, AS_IS).tolist() == [[[255, 0, 0]] * 4] * 3


def test_colours_of_a_palette_are_looked_up():
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    first, second = [10, 20, 30], [40, 50, 60]
    assert decode(saved(palette, "png"), AS_IS).tolist() == [[first, second], [second, first]]


def test_transparency_is_dropped_and_colours_stay():
    transparent = np.dstack([COLOURS, np.full(COLOURS.shape[:2], 7, dtype=np.uint8)])
    assert (decode(saved(transparent, "png"), AS_IS) == COLOURS).all()


def png(width: int, height: int, bits: int, channels: int, pixels: bytes) -> bytes:
    """Return a PNG file with this header and these pixels, lines that begin with 0, whether they fit or not."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """Return a PNG file, which Pillow cannot write, of uint16, shape (height, width, 2 to 4)."""
    height, width, channels = pixels.shape
    return png(width, height, 16, channels, b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels))


DEEP = np.random.default_rng(1).integers(0, 65536, (2, 5, 3)).astype(np.uint16)
OF_16_BITS = {
    "grey PNG": (saved(DEEP[:, :, 0], "png"), DEEP[:, :, :1]),
    "grey TIFF": (saved(DEEP[:, :, 0], "tiff"), DEEP[:, :, :1]),
    "grey PGM": (b"P5 5 2 65535\n" + DEEP[:, :, 0].astype(">u2").tobytes(), DEEP[:, :, :1]),
    "grey PGM of 12 bits": (b"P5 5 2 4095\n" + (DEEP[:, :, 0] >> 4).astype(">u2").tobytes(), DEEP[:, :, :1] >> 4),
}


@pytest.mark.parametrize(("content", "pixels"), OF_16_BITS.values(), ids=OF_16_BITS)
def test_all_sixteen_bits_are_read(content, pixels):
    decoded_pixels = decode(content, AS_IS)
    assert decoded_pixels.dtype == np.uint16
    assert decoded_pixels.tolist() == pixels.tolist()


@pytest.mark.parametrize(
    "content",
    [
        png_of_16_bits(DEEP),
        png_of_16_bits(np.dstack([DEEP, DEEP[:, :, 0]])),
        png_of_16_bits(DEEP[:, :, :2]),
        b"P6 5 2 65535\n" + DEEP.astype(">u2").tobytes(),
    ],
    ids=["PNG", "PNG with transparency", "grey PNG with transparency", "PPM"],
)
def test_colours_of_sixteen_bits_which_pillow_would_cut_are_refused(content):
    with pytest.raises(ValueError, match="colours of 16 bits are more than Pillow reads; save it with 8 bits"):
        decode(content, AS_IS)


def grey16(*numbers: int) -> bytes:
    return saved(np.array([numbers], dtype=np.uint16), "png")


@pytest.mark.parametrize(("largest", "white"), [(255, 255), (256, 1023), (4000, 4095), (16383, 16383), (16384, 65535)])
def test_sixteen_bits_are_scaled_by_the_range_that_all_of_them_use(largest, white):
    # The largest number is in one of them only, and all are scaled by the same factor.
    contents = {"a.png": grey16(0, 200), "b.png": grey16(largest, 100), "c.png": saved(np.uint8([[7, 250]]), "png")}
    made = decoded(*of(contents), AS_IS, 2)
    assert (made.num_wide, made.largest, full_range(largest)) == (2, largest, white)
    scaled = [round(number * 255 / white) for number in (0, 200, largest, 100)]
    assert made.images[:, 0, :, 0].ravel().tolist() == [*scaled, 7, 250]  # 8 bits do not change


def test_sixteen_bits_have_the_channels_and_size_that_are_asked_for():
    bright = saved((GREY.astype(np.uint16) << 8) | GREY, "png")  # 257 times as bright, so scaled it is the same image
    for channels in (1, 3):
        for size in (None, 4):
            wide, plain = (decode(each, Wanted(size, channels, False)) for each in (bright, saved(GREY, "png")))
            assert wide.shape == plain.shape
            np.testing.assert_allclose(wide / 257, plain, atol=1.01)  # Pillow rounds after each pass


def test_a_photograph_is_rotated_as_its_exif_data_say():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be rotated by 90 degrees, clockwise
    assert (decode(saved(COLOURS, "png", exif=exif), AS_IS) == np.rot90(COLOURS, -1)).all()


@pytest.mark.parametrize(("channels", "shape"), [(1, (6, 5, 1)), (3, (6, 5, 3))])
def test_channels_are_as_asked_for(channels, shape):
    wanted = Wanted(None, channels, False)
    for pixels in (COLOURS, GREY):
        assert decode(saved(pixels, "png"), wanted).shape == shape
    assert (decode(saved(GREY, "png"), Wanted(None, 3, False)) == GREY[:, :, None]).all()


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_resizing_takes_the_largest_square_in_the_middle(size, upright):
    # Pixel x of 24 x 8 is 10 x, so the square has x = 8 .. 15. Resizing leaves a slope as it is: new pixel j has its
    # centre at 8 + (j + 1/2) 8 / size, and pixel x has its at x + 1/2.
    pixels = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (8, 1))
    expected = 10 * (8 + (np.arange(size) + 0.5) * 8 / size - 0.5)
    made = decode(saved(pixels.T.copy() if upright else pixels, "png"), Wanted(size, None, False))[:, :, 0]
    for row in made.T if upright else made:
        np.testing.assert_allclose(row, expected, atol=1.01)  # rounded, by each of two passes


def test_an_image_of_the_asked_size_keeps_its_pixels():
    square = COLOURS[:5]
    assert (decode(saved(square, "png"), Wanted(5, None, False)) == square).all()


# Many of them.


def of(contents: dict[str, bytes]):
    return contents.__getitem__, list(contents)


def error_line(contents: dict[str, bytes], wanted: Wanted = AS_IS) -> str:
    return line_of(decoded, *of(contents), wanted, 2)


NUM = 2 * CHUNK + 5


def test_any_number_of_threads_gives_the_images_in_their_order():
    contents = {f"{i}.png": saved(np.full((2, 3), i, dtype=np.uint8), "png") for i in range(NUM)}
    for num_threads in (1, 4):
        made = decoded(*of(contents), AS_IS, num_threads)
        assert made.images.shape == (NUM, 2, 3, 1)
        assert made.images[:, 0, 0, 0].tolist() == list(range(NUM))
        assert made.broken == {}


WHOLE = saved(COLOURS, "png")
BROKEN = {
    "empty": b"",
    "truncated": WHOLE[: len(WHOLE) // 2],
    "altered": WHOLE[:40] + bytes([WHOLE[40] ^ 255]) + WHOLE[41:],
    "32 bits": saved(Image.fromarray(np.ones((6, 5), dtype=np.float32)), "tiff"),
    "a bomb": png(60_000, 60_000, 8, 1, b""),
    "a bomb of which Pillow only warns": png(10_000, 10_000, 8, 1, b""),
    "no size": png(0, 0, 8, 1, b""),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named_or_left_out_as_asked(kind):
    contents = {f"{i}.png": WHOLE for i in range(NUM)} | {"spoilt.png": BROKEN[kind]} | {"last.png": WHOLE}
    line = error_line(contents)
    assert line.startswith("spoilt.png cannot be read as an image (")
    assert "dataset.skip_broken=true" in line
    made = decoded(*of(contents), Wanted(None, None, True), 2)
    assert len(made.images) == NUM + 1
    assert (made.images == COLOURS).all()
    assert list(made.broken) == [NUM]


def test_a_file_that_cannot_be_read_is_named():
    def read(name: str) -> bytes:
        if name == "b.png":
            raise PermissionError(13, "Permission denied")
        return WHOLE

    with pytest.raises(UserError, match=r"^b\.png cannot be read as an image \(PermissionError.*Permission denied"):
        decoded(read, ["a.png", "b.png"], AS_IS, 2)


def test_if_all_images_are_broken_the_first_is_named():
    assert "none of 2 images can be read; a.png: " in error_line(
        {"a.png": b"x", "b.png": b"x"}, Wanted(None, None, True)
    )


def test_images_of_different_shapes_are_refused_with_a_file_of_each():
    contents = {"a.png": saved(np.zeros((40, 30), np.uint8), "png"), "b.png": WHOLE}
    line = error_line(contents)
    assert "but a.png has (40, 30, 1) and b.png (6, 5, 3); set dataset.size, such as 32, and dataset.channels=3" in line
    assert decoded(*of(contents), Wanted(16, 1, False), 2).images.shape == (2, 16, 16, 1)


def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch):
    contents = {f"{i}.png": WHOLE for i in range(NUM)}
    decoded(*of(contents), AS_IS, 1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    decoded(*of(contents), AS_IS, 1)
    assert "decoding" in capsys.readouterr().err


def test_pillows_warnings_do_not_reach_the_user():
    transparent_palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    transparent_palette.putpalette([10, 20, 30, 40, 50, 60])
    content = saved(transparent_palette, "png", transparency=b"\x00\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(content, AS_IS).tolist() == [[[10, 20, 30], [40, 50, 60]]]
