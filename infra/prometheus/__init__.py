"""What is measured and what is alarmed: the exporter, and Prometheus's configuration and rules."""
