"""Images of all common formats become arrays; the pixels are those that were saved."""

import struct
import sys
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedprox.data.sources import images as module
from fedprox.data.sources.images import (
    TAKEN_AT_ONCE,
    Wanted,
    channel_sums,
    channels_first,
    decode,
    decoded,
    mean_and_std,
)
from fedprox.errors import UserError

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
def test_formats_without_loss_give_the_saved_pixels(kind, options):
    assert (decode(saved(COLOURS, kind, **options), AS_IS) == COLOURS).all()


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm", "jpeg"])
def test_a_grey_image_has_one_channel(kind):
    assert decode(saved(GREY, kind), AS_IS).shape == (6, 5, 1)
    if kind != "jpeg":
        assert (decode(saved(GREY, kind), AS_IS)[:, :, 0] == GREY).all()


def test_a_jpeg_is_near_the_saved_pixels():
    smooth = np.add.outer(np.arange(0, 160, 10), np.arange(0, 80, 5)).astype(np.uint8)
    pixels = decode(saved(smooth, "jpeg", quality=95), AS_IS)[:, :, 0].astype(int)
    assert np.abs(pixels - smooth).max() <= 4  # quantised, by steps of a few levels at this quality


def test_a_program_in_postscript_is_no_image():
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(OSError, match="cannot identify image file"):
        decode(program, AS_IS)


def test_of_an_animation_the_first_image_is_taken():
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
    """Return a PNG file whose header says this, whether or not the pixels, lines that begin with 0, fit."""

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
    "grey JPEG 2000": (saved(DEEP[:, :, 0], "jpeg2000"), DEEP[:, :, :1]),
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


@pytest.mark.parametrize(
    ("largest", "white"), [(255, 255), (256, 1023), (1023, 1023), (4000, 4095), (16383, 16383), (16384, 65535)]
)
def test_sixteen_bits_are_scaled_by_the_range_that_all_of_them_use(largest, white):
    # The largest number is in one of them only, and all are scaled by the same factor.
    contents = {"a.png": grey16(0, 200), "b.png": grey16(largest, 100), "c.png": saved(np.uint8([[7, 250]]), "png")}
    images, _, wide = decoded(*of(contents), AS_IS, 2)
    assert (wide.num, wide.largest, wide.white) == (2, largest, white)
    scaled = [round(number * 255 / white) for number in (0, 200, largest, 100)]
    assert images[:, 0, :, 0].ravel().tolist() == [*scaled, 7, 250]  # what has 8 bits stays


def test_sixteen_bits_have_the_channels_and_size_that_are_asked_for():
    bright = saved((GREY.astype(np.uint16) << 8) | GREY, "png")  # 257 times as bright, so scaled it is the same image
    for channels in (1, 3):
        for size in (None, 4):
            wide, plain = (decode(each, Wanted(size, channels, False)) for each in (bright, saved(GREY, "png")))
            assert wide.shape == plain.shape
            np.testing.assert_allclose(wide / 257, plain, atol=1.01)  # Pillow rounds after each pass


def test_a_photograph_is_turned_as_its_exif_data_say():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees, clockwise
    turned = decode(saved(COLOURS, "png", exif=exif), AS_IS)
    assert (turned == np.rot90(COLOURS, -1)).all()


@pytest.mark.parametrize(("channels", "shape"), [(1, (6, 5, 1)), (3, (6, 5, 3))])
def test_channels_are_as_asked_for(channels, shape):
    wanted = Wanted(None, channels, False)
    for pixels in (COLOURS, GREY):
        assert decode(saved(pixels, "png"), wanted).shape == shape
    assert (decode(saved(GREY, "png"), Wanted(None, 3, False)) == GREY[:, :, None]).all()


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("size", [2, 4, 8, 16])
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
    with pytest.raises(UserError) as caught:
        decoded(*of(contents), wanted, 2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NUM = 2 * TAKEN_AT_ONCE + 5


def test_any_number_of_threads_gives_the_images_in_their_order():
    contents = {f"{i}.png": saved(np.full((2, 3), i, dtype=np.uint8), "png") for i in range(NUM)}
    for num_threads in (1, 4):
        images, broken, _ = decoded(*of(contents), AS_IS, num_threads)
        assert images.shape == (NUM, 2, 3, 1)
        assert images[:, 0, 0, 0].tolist() == list(range(NUM))
        assert broken == {}


WHOLE = saved(COLOURS, "png")
BROKEN = {
    "empty": b"",
    "cut off": WHOLE[: len(WHOLE) // 2],
    "text": b"no image",
    "altered": WHOLE[:40] + bytes([WHOLE[40] ^ 255]) + WHOLE[41:],
    "32 bits": saved(Image.fromarray(np.ones((6, 5), dtype=np.float32)), "tiff"),
    "a bomb": png(60_000, 60_000, 8, 1, b""),
    "a smaller bomb": png(10_000, 10_000, 8, 1, b""),
    "no size": png(0, 0, 8, 1, b""),
    "a TIFF that ends": b"II*\0",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named_or_left_out_as_asked(kind):
    contents = {f"{i}.png": WHOLE for i in range(NUM)} | {"spoilt.png": BROKEN[kind]} | {"last.png": WHOLE}
    line = error_line(contents)
    assert line.startswith("spoilt.png cannot be read as an image (")
    assert "dataset.skip_broken=true" in line
    images, broken, _ = decoded(*of(contents), Wanted(None, None, True), 2)
    assert len(images) == NUM + 1
    assert (images == COLOURS).all()
    assert list(broken) == [NUM]


def test_a_file_that_cannot_be_read_is_named():
    def read(name: str) -> bytes:
        if name == "b.png":
            raise PermissionError(13, "Permission denied")
        return WHOLE

    with pytest.raises(UserError, match=r"^b\.png cannot be read as an image \(PermissionError.*Permission denied"):
        decoded(read, ["a.png", "b.png"], AS_IS, 2)


def test_where_all_are_broken_that_is_told():
    assert "none of 2 images can be read; a.png: " in error_line(
        {"a.png": b"x", "b.png": b"x"}, Wanted(None, None, True)
    )


def test_sizes_that_differ_are_told_with_a_file_of_each():
    contents = {
        "a.png": saved(np.zeros((40, 30), np.uint8), "png"),
        "b.png": saved(np.zeros((32, 32), np.uint8), "png"),
    }
    line = error_line(contents)
    assert "a.png has 30 x 40 pixels and b.png 32 x 32; set dataset.size=30" in line
    images, _, _ = decoded(*of(contents), Wanted(16, None, False), 2)
    assert images.shape == (2, 16, 16, 1)


def test_channels_that_differ_are_told_with_a_file_of_each():
    contents = {"a.png": saved(GREY, "png"), "b.png": WHOLE}
    line = error_line(contents)
    assert "a.png has 1 and b.png 3; set dataset.channels=3 for colours or 1 for grey" in line
    for channels in (1, 3):
        images, _, _ = decoded(*of(contents), Wanted(None, channels, False), 2)
        assert images.shape == (2, 6, 5, channels)


def test_a_terminal_sees_how_far_it_is_and_anything_else_sees_nothing(capsys, monkeypatch):
    contents = {f"{i}.png": WHOLE for i in range(NUM)}
    decoded(*of(contents), AS_IS, 1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    decoded(*of(contents), AS_IS, 1)
    assert "decoding" in capsys.readouterr().err


def test_no_warning_is_left_to_the_user():
    transparent_palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    transparent_palette.putpalette([10, 20, 30, 40, 50, 60])
    content = saved(transparent_palette, "png", transparency=b"\x00\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(content, AS_IS).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def noise(seed: int, num: int, height: int, width: int, num_channels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, num_channels), dtype=np.uint8)


def test_channels_first_is_a_view_of_what_lies_channels_last():
    made = noise(0, 4, 2, 3, 3)
    seen = channels_first(made)
    assert seen.shape == (4, 3, 2, 3)
    assert np.shares_memory(seen, made)
    assert seen[1, 2, 0, 1] == made[1, 0, 1, 2]
    assert seen.transpose(0, 2, 3, 1).flags.c_contiguous


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))
def test_sums_and_statistics_are_those_of_all_pixels(seed, num, height, width, num_channels):
    made = noise(seed, num, height, width, num_channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SQUARED_AT_ONCE", 3)  # whole chunks, and one that is not
        sums = channel_sums(made)
    assert (sums[:, 0] == made.sum(axis=(1, 2), dtype=np.int64)).all()
    assert (sums[:, 1] == np.square(made, dtype=np.int64).sum(axis=(1, 2))).all()
    mean, std = mean_and_std(sums, height * width)
    flat = made.reshape(-1, num_channels).astype(np.float64)
    expected = flat.std(axis=0)
    assert mean.shape == std.shape == (num_channels, 1, 1)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean.ravel(), flat.mean(axis=0), rtol=1e-6)  # float32 has seven digits
    np.testing.assert_allclose(std.ravel(), np.where(expected == 0, 1, expected), rtol=1e-6)


def test_the_deviation_is_exact_where_nearly_all_pixels_are_alike():
    # One pixel of n = 10^9 is 254, the others 255: variance p (1 - p) with p = 1 / n. n times the sum of squares is
    # 6.5 * 10^22, of which float64 keeps 16 digits, and what is left of it after the subtraction is n - 1.
    n = 10**9
    _, std = mean_and_std(np.array([[[255 * n - 1], [255**2 * n - 255**2 + 254**2]]]), n)
    assert std.item() == pytest.approx(np.sqrt(1 / n * (1 - 1 / n)), rel=1e-6)  # float32 has seven digits


def test_a_channel_that_never_changes_has_the_deviation_1():
    made = noise(0, 3, 4, 4, 3)
    made[..., 1] = 7
    mean, std = mean_and_std(channel_sums(made), 16)
    assert (mean[1].item(), std[1].item()) == (7, 1)
    assert std[0] > 1
