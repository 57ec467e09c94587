"""Writes GGUF files, from the published description of the format."""

import struct

import numpy as np

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
KINDS = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(x):
    """A metadata value: its type, and itself."""
    if isinstance(x, str):
        return struct.pack("<I", 8) + text(x)
    if isinstance(x, list):
        inner = [value(item) for item in x]
        head = struct.pack("<I", 9) + inner[0][:4] + struct.pack("<Q", len(x))
        return head + b"".join(item[4:] for item in inner)
    kind, form = KINDS[type(x)]
    return struct.pack("<I", kind) + struct.pack(form, x)


def write(path, metadata, tensors, *, version=3):
    """`tensors`: name to `(kind, shape, bytes)`, shape with the fastest axis last."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(x) for key, x in metadata.items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def plain(array):
    """A tensor in F32."""
    return F32, array.shape, np.ascontiguousarray(array, np.float32).tobytes()


def packed(kind, shape, codes, scales, offsets=None):
    """A quantized tensor: codes `[blocks, 32]`, one scale (and offset) for each."""
    raw = b""
    for i, block in enumerate(codes.tolist()):
        raw += struct.pack("<e", scales[i])
        if kind == Q4_1:
            raw += struct.pack("<e", offsets[i])
        if kind == Q8_0:
            raw += struct.pack("<32b", *block)
        else:  # number i shares a byte with number i + 16
            pairs = zip(block[:16], block[16:], strict=True)
            raw += bytes(low | high << 4 for low, high in pairs)
    return kind, shape, raw
