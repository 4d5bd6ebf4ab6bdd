"""Images and labels: from the Hub, parquet files or folders, decoded once, pixel by pixel as they are.

Nothing is imported here: networks that classify need `pixels` only, not what reads data sets.
"""
