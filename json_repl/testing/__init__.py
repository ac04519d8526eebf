"""What the pytest plugin does once a recording is used in a test."""
