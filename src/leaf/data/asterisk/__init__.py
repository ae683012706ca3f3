"""The embedded data set: telephone announcements in one voice."""
