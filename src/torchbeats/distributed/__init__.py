"""A table that many machines write together, under Ray: block by block, a Parquet file each."""
