"""The study: what was asked, what came back, and who proposes next."""
