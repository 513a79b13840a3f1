"""Running: Ray, its workers, and Ray Tune."""
