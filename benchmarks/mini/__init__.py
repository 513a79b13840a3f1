"""How the embedded teacher `mini` is made."""
