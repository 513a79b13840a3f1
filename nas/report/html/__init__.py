"""HTML: the result, or what is known so far, as one page that needs nothing but itself."""
