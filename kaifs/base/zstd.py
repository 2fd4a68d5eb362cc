"""zstd frames that somebody may have damaged or made."""


def expand(frame: bytes | memoryview, least: int, most: int) -> bytes:
    """Return the content of one zstd frame, which must say that it is *least* to *most* bytes.

    Any thread may call it.

    Raises:
        ValueError: it is no frame, or says another size.
    """
    # 10 ms to load, and often nothing is compressed.
    import zstandard

    try:
        # The frame says how much memory to take, so it is asked before it is believed.
        if not least <= zstandard.frame_content_size(frame) <= most:
            raise ValueError("frame of another size")
        # Not shared: a decompressor is for one thread.
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
