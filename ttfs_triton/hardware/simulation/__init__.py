"""A network run as hardware would run it: on a clock, in integers."""
