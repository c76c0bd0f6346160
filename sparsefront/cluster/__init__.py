"""Where it runs: dispatch with Ray Tune, faults, the mirror in MLflow. The only place that knows either."""
