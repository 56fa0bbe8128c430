"""Encoded images become pixels inside a TensorFlow graph, for a server that receives the bytes of files.

`finetune.data` does the same with Pillow; classifiers are trained and measured with that, and this follows it step
by step: the reduced decoding of large JPEGs, EXIF orientation, transparency on black, the crop in whole pixels, the
antialiased resize. What remains is rounding (Pillow rounds after each direction, TensorFlow once) and the rim
of a crop (Pillow looks beyond it), in sum a fifth of one of 255 steps on average; CMYK, and formats that TensorFlow
does not read (only JPEG and PNG). `finetune export` measures the effect.
"""

import math
from typing import Any

from finetune.data import Transform
from finetune.utils import tf


def batch_pixels(encoded: Any, transform: Transform) -> Any:
    """Bytes of image files, (N,) string -> (N, S, S, 3) float32 of whole numbers 0..255, as a classifier takes them.

    A file that TensorFlow cannot decode fails the whole batch with InvalidArgumentError.
    """
    shape = tf.TensorSpec((transform.size, transform.size, 3), tf.float32)
    return tf.map_fn(lambda content: pixels(content, transform), encoded, fn_output_signature=shape)


def pixels(encoded: Any, transform: Transform) -> Any:
    """Bytes of one file, scalar string -> (S, S, 3) float32."""
    fraction = transform.crop if transform.resize == "crop" else 1.0
    near = math.ceil(transform.size / fraction)

    def refuse() -> Any:  # TensorFlow's decoders of BMP and GIF can be made to end the whole process
        with tf.control_dependencies([tf.debugging.Assert(False, ["the file is neither JPEG nor PNG"])]):
            return tf.zeros((1, 1, 3), tf.uint8)

    image = tf.case(
        [
            (tf.io.is_jpeg(encoded), lambda: _decode_jpeg(encoded, near)),
            (tf.equal(tf.strings.substr(encoded, 0, 4), b"\x89PNG"), lambda: _decode_png(encoded)),
        ],
        default=refuse,
    )
    image = tf.ensure_shape(image, (None, None, 3))
    return tf.ensure_shape(square(image, transform), (transform.size, transform.size, 3))


def square(image: Any, transform: Transform) -> Any:
    """(H, W, 3) uint8 -> (S, S, 3) float32 of whole numbers, by the transform's way to a square."""
    size = transform.size
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    if transform.resize == "squash":
        return _resize(image, (size, size), transform)
    if transform.resize == "pad":
        scale = size / tf.cast(tf.maximum(height, width), tf.float64)
        new_height, new_width = _scaled(height, scale), _scaled(width, scale)
        fitted = _resize(image, (new_height, new_width), transform)
        top, left = (size - new_height) // 2, (size - new_width) // 2
        return tf.image.pad_to_bounding_box(fitted, top, left, size, size)
    side = _scaled(tf.minimum(height, width), transform.crop)
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(image[top : top + side, left : left + side], (size, size), transform)


def _scaled(length: Any, scale: Any) -> Any:
    """`max(1, round(scale * length))`, halves to even as Python does."""
    return tf.maximum(1, tf.cast(tf.round(tf.cast(length, tf.float64) * scale), tf.int32))


def _resize(image: Any, size: tuple[Any, Any], transform: Transform) -> Any:
    resized = tf.image.resize(image, size, method=transform.interpolation, antialias=True)
    return tf.clip_by_value(tf.round(resized), 0, 255)


# --------------------------------------------------------------------------------------------------- decoding


def _decode_jpeg(encoded: Any, near: int) -> Any:
    """Upright, and at 1/2, 1/4 or 1/8 of its size where both sides keep `2 * near` pixels, as Pillow's `draft` does."""

    def at(ratio: int) -> Any:
        return lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    spare = tf.reduce_min(tf.io.extract_jpeg_shape(encoded)[:2]) // (2 * near)
    chosen = sum(tf.cast(spare >= ratio, tf.int32) for ratio in (2, 4, 8))
    image = tf.switch_case(chosen, [at(1), at(2), at(4), at(8)])
    flip, turn = tf.image.flip_left_right, tf.image.rot90
    upright = [  # for the EXIF orientations 1 to 8
        lambda: image,
        lambda: flip(image),
        lambda: turn(image, k=2),
        lambda: tf.image.flip_up_down(image),
        lambda: tf.transpose(image, (1, 0, 2)),
        lambda: turn(image, k=3),
        lambda: tf.transpose(turn(image, k=2), (1, 0, 2)),
        lambda: turn(image, k=1),
    ]
    return tf.switch_case(_orientation(encoded) - 1, upright)


def _decode_png(encoded: Any) -> Any:
    """Transparency composited on black."""
    rgba = tf.cast(tf.io.decode_png(encoded, channels=4), tf.float32)
    alpha = rgba[..., 3:]
    alpha = tf.where(tf.reduce_all(alpha == 1), 255.0, alpha)  # so TensorFlow calls "opaque" with one bit a pixel
    return tf.cast(tf.round(rgba[..., :3] * alpha / 255), tf.uint8)


def _orientation(encoded: Any) -> Any:
    """The EXIF orientation of a JPEG, 1..8; 1 where there is none or it is damaged.

    EXIF is a small TIFF file: byte order, place of a directory, and there 12 bytes an entry: tag (0x0112 for the
    orientation), type, count, value.
    """
    marker = b"Exif\0\0"  # in the first 64 KiB of the file
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, 65536), tf.uint8), tf.int32)
    length = tf.size(head)
    head = tf.pad(head, [[0, 16]])

    def byte(at: Any) -> Any:  # whatever a damaged file points to, only what is there is read
        return tf.gather(head, tf.clip_by_value(at, 0, length + 15))

    begins = tf.reduce_all([head[i : length + i] == value for i, value in enumerate(marker)], axis=0)
    tiff = tf.argmax(tf.cast(begins, tf.int32), output_type=tf.int32) + len(marker)
    little = byte(tiff) == ord("I")

    def short(at: Any) -> Any:
        return tf.where(little, byte(at) + 256 * byte(at + 1), 256 * byte(at) + byte(at + 1))

    # a directory is never far in; two bytes of its place are enough and cannot overflow
    directory = tiff + tf.where(little, short(tiff + 4), short(tiff + 6))
    entries = directory + 2 + 12 * tf.range(tf.minimum(short(directory), 512))
    values = tf.where(short(entries) == 0x0112, short(entries + 8), 0)
    orientation = tf.reduce_max(tf.concat([values, [0]], 0))
    valid = tf.reduce_any(begins) & (orientation >= 1) & (orientation <= 8)
    return tf.where(valid, orientation, 1)
