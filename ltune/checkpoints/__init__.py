"""The on-disk checkpoint protocol: publish, verify, load, keep the newest."""
