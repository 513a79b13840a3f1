"""One driver a study: leases in its folder and in its database."""
