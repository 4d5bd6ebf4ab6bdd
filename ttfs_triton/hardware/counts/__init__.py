"""What a running network did, as exact integers."""
