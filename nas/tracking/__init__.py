"""Tracking: the only code that writes to MLflow. Events wait in an outbox until a server takes them."""
