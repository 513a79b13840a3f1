"""Model families: what each kind of decoder looks like inside, and how it is cut."""
