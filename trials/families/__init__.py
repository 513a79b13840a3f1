"""Model families: the structure of each kind of decoder, and how it is cut."""
