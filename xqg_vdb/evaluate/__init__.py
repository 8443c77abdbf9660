"""The benchmark harness: suites of systems and datasets, measured on real collections."""
