"""Clips with their videos in Parquet shards, which stream from a disk, the Hub or any other store."""
