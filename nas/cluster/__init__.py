"""Ray itself: sessions, the nodes of a cluster, signals, and a search that runs there as a job."""
