"""Numbers, bytes, seconds and operations as text, in the unit that leaves a number of one to three digits."""


def count_text(number: float) -> str:
    """A number of parameters, such as `1.50 k` or `2,000.00 M`."""
    return _scaled(number, 1000, ("", "k", "M")).strip()


def bytes_text(size: float) -> str:
    """Memory, such as `1.50 GiB` or `12.00 MiB`."""
    return _scaled(size, 2**10, ("B", "KiB", "MiB", "GiB", "TiB"))


def flop_text(flops: float) -> str:
    """A number of operations, such as `1.50 TFLOP` or `12.00 MFLOP`."""
    return _scaled(flops, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def traffic_text(size: float) -> str:
    """Bytes that are moved, such as `1.50 GB`."""
    return _scaled(size, 1000, ("B", "kB", "MB", "GB", "TB"))


def seconds_text(seconds: float) -> str:
    """A time, such as `1.50 s` or `12.00 ms`."""
    return _scaled(seconds * 1e6, 1000, ("us", "ms", "s"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if round(value, 2) < base:
            return f"{value:.2f} {unit}"
        value /= base
    return f"{value:,.2f} {units[-1]}"
