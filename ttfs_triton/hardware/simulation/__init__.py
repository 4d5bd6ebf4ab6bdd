"""A network run as hardware would: on a clock, in integers, or event by event."""
