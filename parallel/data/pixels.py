"""Read an image file as numbers, and bring it to the size and channels that a model takes.

Every image becomes float32 in [0, 1] by the full range of its form: 8 bits over 255, 16 bits over 65,535. What is
transparent is laid over white, as a page shows it. The orientation that a camera noted is applied. Of images with
several frames the first is used. Numbers whose range nobody knows (32-bit integers, floating point) are refused.
"""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paralab.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .bmp .dib .gif .webp .tif .tiff .pbm .pgm .ppm .pnm .tga .avif .jp2".split()
)
MEAN = STD = 0.5
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL's convert("L")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0, section 4


def fit(images: Tensor, *, size: int, channels: int) -> Tensor:
    """Make (rows, any channels, any height, any width) into (rows, channels, size, size) float32 in [-1, 1].

    images: uint8, or float32 in [0, 1]. Raises: DataError when the channels cannot be converted.
    """
    x = _to_channels(images.float() / 255.0 if images.dtype == torch.uint8 else images, channels)
    height, width = x.shape[2:]
    longer = max(height, width)
    if longer > size:
        height, width = (max(1, round(side * size / longer)) for side in (height, width))
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    top, left = (size - height) // 2, (size - width) // 2
    x = F.pad(x, (left, size - width - left, top, size - height - top))
    return (x - MEAN) / STD


def _to_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    if channels == 1:
        return torch.einsum("nchw,c->nhw", x, x.new_tensor(_LUMA))[:, None]
    raise DataError(f"images have {x.shape[1]} channels, this model takes {channels}: use another --size")


def decode(content: bytes, *, path: Path) -> Tensor:
    """Return the image as float32 (1 or 3 channels, height, width) in [0, 1].

    path: names the file in errors. Raises: DataError when it is damaged, no image, or of a range nobody knows.
    """
    import PIL
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is not used, and sizes below the limit
            with Image.open(io.BytesIO(content)) as image:
                return torch.from_numpy(_planes(image, path=path))
    except DataError:
        raise
    except PIL.UnidentifiedImageError as error:
        what = "is no image that can be read" if content else "is empty"
        raise DataError(f"image {path} {what}: repair or remove it") from error
    # the decoders of damaged files raise nearly everything
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"image {path} cannot be decoded ({reason}): repair, save it again or remove it") from error


def check(content: bytes, *, path: Path, most_pixels: int) -> int:
    """Decode an image of at most so many pixels, and read the header of a larger one. Returns: pixels decoded.

    Raises: DataError as `decode` does.
    """
    from PIL import Image

    pixels = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                pixels = image.width * image.height
    except Exception:  # decode says it
        pass
    if 0 < pixels and pixels > most_pixels:
        return 0
    decode(content, path=path)
    return pixels


def _planes(image: "Image", *, path: Path) -> np.ndarray:
    """Return (1 or 3, height, width) float32 in [0, 1] of an opened image."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _sixteen_bits(image)[None]
    if image.mode in ("I", "F"):
        kind = "signed or 32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DataError(f"image {path} holds {kind}, whose range is not known: save it with 8 or 16 bits a channel")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        upon = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(upon, _rgba(image)).convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode != "L":
        image = image.convert("RGB")
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def _rgba(image: "Image") -> "Image":
    if image.mode == "La":  # premultiplied
        image = image.convert("LA")
    return image.convert("RGBA")


def _sixteen_bits(image: "Image") -> np.ndarray:
    """Return (height, width) float32 in [0, 1] of a grey image of up to 16 bits."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values = np.array(image).astype(np.float32)
    transparent = image.info.get("transparency")
    shades = values / np.float32(2**bits - 1)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shades = 1 - shades
    if isinstance(transparent, int):
        shades[values == transparent] = 1
    return shades
