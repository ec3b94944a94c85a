"""Notes on clips that are kept: what is unusual about them, and what is lost of them."""

_LOST = "lost: "


def lost(what: str) -> str:
    """A note on a clip that is kept, of which `what` is lost; `--strict` takes no such clip."""
    return f"{_LOST}{what}"


def too_deep(bits: int) -> str:
    """The note on pictures of so many bits a colour."""
    return lost(f"its {bits} bits, scaled to 8")


def is_loss(note: str) -> bool:
    """Whether a note on a clip is one of `lost`."""
    return note.startswith(_LOST)


ON_BLACK = lost("its transparency, laid on black")
