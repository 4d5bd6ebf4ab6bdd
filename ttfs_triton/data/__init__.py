"""Images and labels from the Hub, parquet files or folders, decoded once; recordings of event cameras as images.

Nothing is imported here, since a network that classifies needs `pixels` only, not the packages that read data sets.
"""
