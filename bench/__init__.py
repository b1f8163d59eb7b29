"""The benchmark: the same work through Keystile and through other proxies, in one run. See docs/bench.md."""
