"""The live page: the report, fed by the records while trials run."""
