"""The tables of a run: from its records to Parquet and to data frames."""
