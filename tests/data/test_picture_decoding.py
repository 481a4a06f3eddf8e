"""Pictures of all common formats become arrays; the pixels are those that were saved."""

import sys
import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fedprox.data.picture_decoding import CHUNK, Wanted, decode, decoded
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
def test_a_grey_picture_has_one_channel(kind):
    assert decode(saved(GREY, kind), AS_IS).shape == (6, 5, 1)
    if kind != "jpeg":
        assert (decode(saved(GREY, kind), AS_IS)[:, :, 0] == GREY).all()


def test_a_jpeg_is_near_the_saved_pixels():
    smooth = np.add.outer(np.arange(0, 160, 10), np.arange(0, 80, 5)).astype(np.uint8)
    pixels = decode(saved(smooth, "jpeg", quality=95), AS_IS)[:, :, 0].astype(int)
    assert np.abs(pixels - smooth).max() <= 4  # quantised, by steps of a few levels at this quality


def test_a_program_in_postscript_is_no_picture():
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(OSError, match="cannot identify image file"):
        decode(program, AS_IS)


def test_of_an_animation_the_first_picture_is_taken():
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


def test_sixteen_bits_are_scaled_to_eight():
    deep = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for kind in ("png", "tiff"):
        assert decode(saved(deep, kind), AS_IS)[:, :, 0].tolist() == [[0, 0, 1, 128, 255]]  # x // 256


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


def test_a_picture_of_the_asked_size_keeps_its_pixels():
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


NUM = 2 * CHUNK + 5


def test_any_number_of_threads_gives_the_pictures_in_their_order():
    contents = {f"{i}.png": saved(np.full((2, 3), i, dtype=np.uint8), "png") for i in range(NUM)}
    for num_threads in (1, 4):
        pictures, broken = decoded(*of(contents), AS_IS, num_threads)
        assert pictures.shape == (NUM, 2, 3, 1)
        assert pictures[:, 0, 0, 0].tolist() == list(range(NUM))
        assert broken == {}


WHOLE = saved(COLOURS, "png")
BROKEN = {
    "empty": b"",
    "cut off": WHOLE[: len(WHOLE) // 2],
    "text": b"no picture",
    "altered": WHOLE[:40] + bytes([WHOLE[40] ^ 255]) + WHOLE[41:],
    "32 bits": saved(Image.fromarray(np.ones((6, 5), dtype=np.float32)), "tiff"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_named_or_left_out_as_asked(kind):
    contents = {f"{i}.png": WHOLE for i in range(NUM)} | {"spoilt.png": BROKEN[kind]} | {"last.png": WHOLE}
    line = error_line(contents)
    assert line.startswith("spoilt.png cannot be read as a picture (")
    assert "dataset.skip_broken=true" in line
    pictures, broken = decoded(*of(contents), Wanted(None, None, True), 2)
    assert len(pictures) == NUM + 1
    assert (pictures == COLOURS).all()
    assert list(broken) == [NUM]


def test_a_file_that_cannot_be_read_is_named():
    def read(name: str) -> bytes:
        if name == "b.png":
            raise PermissionError(13, "Permission denied")
        return WHOLE

    with pytest.raises(UserError, match=r"^b\.png cannot be read as a picture \(PermissionError.*Permission denied"):
        decoded(read, ["a.png", "b.png"], AS_IS, 2)


def test_where_all_are_broken_that_is_told():
    assert "none of 2 pictures can be read; a.png: " in error_line(
        {"a.png": b"x", "b.png": b"x"}, Wanted(None, None, True)
    )


def test_sizes_that_differ_are_told_with_a_file_of_each():
    contents = {
        "a.png": saved(np.zeros((40, 30), np.uint8), "png"),
        "b.png": saved(np.zeros((32, 32), np.uint8), "png"),
    }
    line = error_line(contents)
    assert "a.png has 30 x 40 pixels and b.png 32 x 32; set dataset.size=30" in line
    pictures, _ = decoded(*of(contents), Wanted(16, None, False), 2)
    assert pictures.shape == (2, 16, 16, 1)


def test_channels_that_differ_are_told_with_a_file_of_each():
    contents = {"a.png": saved(GREY, "png"), "b.png": WHOLE}
    line = error_line(contents)
    assert "a.png has 1 and b.png 3; set dataset.channels=3 for colours or 1 for grey" in line
    for channels in (1, 3):
        pictures, _ = decoded(*of(contents), Wanted(None, channels, False), 2)
        assert pictures.shape == (2, 6, 5, channels)


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
